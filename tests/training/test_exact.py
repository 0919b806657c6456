"""One cell, trained in every circumstance there is, by real processes: always the same bytes."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from apet.core.hashing import DIGEST
from apet.core.records import write_json_record
from apet.study.cell_record import METRICS, THETA, WITHOUT_WEIGHTS, read_record
from apet.study.cells import Cell
from apet.study.paths import ResultPaths
from lab import Lab

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """One block of all cells has been trained, in the study's order."""
    made = Lab(tmp_path_factory.mktemp("exact"), max_steps=6)
    made.train("block", *made.cells.values())
    return made


def same(lab: Lab, results: str, *cells: Cell) -> None:
    for cell in cells:
        assert lab.contents(results, cell) == lab.contents("block", cell), cell.path


def test_a_cell_alone_is_the_cell_in_a_block(lab):
    lab.train("alone", lab.cells["uniform"])
    same(lab, "alone", lab.cells["uniform"])


def test_another_order_and_other_neighbours_change_nothing(lab):
    others = [lab.cells[name] for name in ("uniform", "full", "lora")]
    lab.train("order", *others)
    same(lab, "order", *others)


def test_more_cores_change_nothing(lab):
    """Libraries told to use four threads, and a process that may use one core alone."""
    cells = [lab.cells["full"], lab.cells["uniform"]]
    four = {f"{library}_NUM_THREADS": "4" for library in ("OMP", "MKL", "OPENBLAS")}
    lab.train("four", *cells, alone=True, **four)
    same(lab, "four", *cells)
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})  # which children inherit
        lab.train("one", *cells, alone=True)
    finally:
        os.sched_setaffinity(0, allowed)
    same(lab, "one", *cells)
    run = json.loads((lab.results("four").runs / f"{cells[0].path}.json").read_text())
    assert run["threads"] == 1


def test_verify_says_equal_and_which_machine_made_what_differs(lab):
    shutil.copytree(lab.folder / "block", lab.folder / "elsewhere")
    one = lab.cells["lora"].path
    path = lab.results("elsewhere").runs / f"{one}.json"
    run = json.loads(path.read_text())
    run["processor"], run["dtype"], run["versions"]["torch"] = "another", "bfloat16", "1.0"
    run["instruction_sets"]["onednn"] = "AVX"
    path.write_text(json.dumps(run))
    done = lab.apet("verify", "--resolved", "study.json", "--results-dir", "elsewhere", one)
    assert done.returncode == 0, done.stderr
    assert f"equal      {one}" in done.stdout
    printed = done.stdout.partition("trained on another machine type: ")[2]
    assert "onednn: AVX there, " in printed
    assert "dtype: bfloat16 there, float32 here" in printed
    assert "torch: 1.0 there, " in printed and "numpy" not in printed and "processor" not in printed
    again = lab.apet("verify", "--resolved", "study.json", "--results-dir", "block", one)
    assert "another machine" not in again.stdout


def test_cell_without_theta_is_finished_and_verified_by_its_digests(lab):
    one = lab.cells["lora"].path
    shutil.copytree(lab.folder / "block", lab.folder / "published")
    (lab.folder / "published" / "cells" / one / THETA).unlink()
    (lab.folder / "published" / "cells" / one / WITHOUT_WEIGHTS).touch()
    assert lab.apet("verify", "--resolved", "study.json", "--results-dir", "published", one).returncode == 0
    lab.train("published", lab.cells["lora"])
    assert not (lab.folder / "published" / "cells" / one / THETA).exists()


@pytest.mark.parametrize(
    ("other_machine", "tolerance", "verdict"),
    [(True, 5, "close"), (True, 1, "DIFFERENT"), (True, None, "DIFFERENT"), (False, 5, "DIFFERENT")],
)
def test_verify_tolerates_other_scores_of_another_machine_type_only(lab, tmp_path, other_machine, tolerance, verdict):
    one = lab.cells["lora"].path
    shutil.copytree(lab.folder / "block", tmp_path / "other")
    results = ResultPaths(tmp_path / "other")
    record = read_record(results.cells / one)
    record["replicates"][0]["test"]["score"] -= 0.02
    write_json_record(results.cells / one / METRICS, {key: value for key, value in record.items() if key != DIGEST})
    if other_machine:
        path = results.runs / f"{one}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"machine": "another"}))
    options = ["--results-dir", str(results.root), *(["--tolerance", str(tolerance)] if tolerance else [])]
    done = lab.apet("verify", "--resolved", "study.json", *options, one)
    assert done.stdout.startswith(f"{verdict:9}  {one}  metrics.json (test scores differ by at most 2.00 points)")
    assert done.returncode == (0 if verdict == "close" else 1)


def test_inputs_that_are_not_there_are_no_difference(lab):
    one = lab.cells["lora"].path
    done = lab.apet("verify", "--resolved", "study.json", "--results-dir", "block", "--project-dir", "nowhere", one)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("apet: nowhere/models/plm")


def test_what_defines_the_class_of_machine_is_recorded(lab):
    run = json.loads((lab.results("block").runs / f"{lab.cells['full'].path}.json").read_text())
    assert {"machine", "instruction_sets", "processor", "device", "threads", "dtype", "versions"} <= run.keys()
    assert run["instruction_sets"].keys() == {"torch", "onednn", "blas"} and all(run["instruction_sets"].values())
    assert run["versions"]["torch"] and run["dtype"] == "float32"
    assert (run["resumed"], run["begun_on"]) == (False, [])
