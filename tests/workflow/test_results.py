"""Aggregation of a study: tables, missing cells, costs, margins; with Snakemake and DVC."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import yaml

from apet.analysis.aggregate import aggregate
from apet.analysis.claims import CLAIMS
from apet.analysis.tidy import read_tidy
from apet.config.study_config import AnalysisConfig, load_study
from apet.core.atomic import write_json
from apet.core.records import write_json_record
from apet.errors import ConfigError, CorruptError, DataError
from apet.report.result_tables import write_findings
from apet.study.cell_record import read_record, write_record
from apet.study.grid import Grid
from apet.study.paths import ResultPaths
from apet.study.resolved import read_resolved
from forkserver import programs
from lab import Lab
from simulated_claims import Truth, simulate
from simulated_study import study as simulated_study
from simulated_study import write_cells
from toy import PARAMS

ID = "ab" * 32
MARGINS = {"chance_margin": 1.0, "full_ft_margin": 3.0, "equivalence_margin": 0.25}
CELLS = dict(simulated_study()[:6])
FIRST, SECOND, THIRD, *_ = sorted(CELLS)
RUN = {
    "seconds": 1.5, "cpu_seconds": 1.25, "peak_memory_mb": 512, "resumed": False, "begun_on": [], "trained": ["b0"],
    "finished": "2026-01-01T00:00:00Z", "host": "here", "machine": "x86_64", "processor": "some", "device": "cpu",
    "devices": 1, "threads": 1, "dtype": "float32", "versions": {"torch": "2.0", "python": "3.12"},
}  # fmt: skip


@pytest.fixture
def results(tmp_path: Path) -> ResultPaths:
    """Six simulated cells, one with a run record, beside their resolved study."""
    cells = {path: metrics["cell"] for path, metrics in CELLS.items()}
    write_json_record(tmp_path / "study.json", {"study": ID, "name": "tiny", "analysis": MARGINS, "cells": cells})
    found = ResultPaths(tmp_path / "results")
    write_cells(found.cells, CELLS.items())
    write_json(found.runs / f"{SECOND}.json", RUN)
    return found


def gathered(results: ResultPaths, **options: bool) -> Path:
    aggregate(read_resolved(results.root.parent / "study.json"), results, results.root, **options)
    return results.root


def csv(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, keep_default_na=False)


def test_aggregate_of_a_complete_study_writes_all_tables(results: ResultPaths) -> None:
    out = gathered(results)
    frame = read_tidy(out / "tidy.parquet")
    assert set(frame.cell_path) == set(CELLS)
    assert frame.attrs == {
        "study": ID,
        "name": "tiny",
        "margins": MARGINS,
        "missing": [],
        "digest": frame.attrs["digest"],
    }
    assert (out / "missing.csv").read_text() == "model,task,placement,budget,cell_path,reason\n"
    assert {path.name for path in out.glob("*.*")} == {
        "tidy.parquet", "tidy.csv", "tidy_columns.csv", "tasks.csv", "costs.csv", "missing.csv"
    }  # fmt: skip


def test_aggregate_with_a_missing_cell_writes_nothing(results: ResultPaths) -> None:
    for cell in (FIRST, THIRD):
        shutil.rmtree(results.cells / cell)
    with pytest.raises(DataError) as error:
        gathered(results)
    for words in (FIRST, "not trained", "2 of 6 cells missing", "apet status", "--allow-missing"):
        assert words in str(error.value)
    assert not list(results.root.glob("*.*"))


def test_aggregate_partial_lists_missing_cells_with_reasons(results: ResultPaths) -> None:
    write_json(results.failed / f"{FIRST}.json", {"error": "ValueError: no\n  room"})
    (results.checkpoints / SECOND).mkdir(parents=True)
    for cell in (FIRST, SECOND, THIRD):
        (results.cells / cell / "metrics.json").unlink()
    out = gathered(results, partial=True)
    frame = read_tidy(out / "tidy.parquet")
    assert set(frame.cell_path) == set(CELLS) - {FIRST, SECOND, THIRD}
    listed = csv(out / "missing.csv").set_index("cell_path")
    assert listed.reason.to_dict() == {
        FIRST: "ValueError: no room", SECOND: "started, not finished", THIRD: "not trained"
    }  # fmt: skip
    assert frame.attrs["missing"] == csv(out / "missing.csv").to_dict("records")
    coordinates = ["model", "task", "placement", "budget"]
    assert listed.loc[FIRST, coordinates].to_dict().items() <= CELLS[FIRST]["cell"].items()


def test_aggregate_without_any_cell_raises(results: ResultPaths) -> None:
    shutil.rmtree(results.cells)
    with pytest.raises(DataError, match="no finished cell"):
        gathered(results, partial=True)


def test_aggregate_costs_come_from_run_records_and_may_be_empty(results: ResultPaths) -> None:
    (results.runs / f"{THIRD}.json").parent.mkdir(parents=True, exist_ok=True)
    (results.runs / f"{THIRD}.json").write_text("{")
    costs = csv(gathered(results) / "costs.csv").set_index("cell_path")
    assert list(costs.index) == sorted(CELLS)
    told = costs.loc[SECOND]
    assert told.model == CELLS[SECOND]["cell"]["model"] and told.budget == CELLS[SECOND]["cell"]["budget"]
    expected = {**{name: str(RUN[name]) for name in RUN if name in costs}, "versions.torch": "2.0"}
    assert told[list(expected)].astype(str).to_dict() == expected
    assert (costs.drop(SECOND).drop(columns=["model", "task", "placement", "budget"]) == "").all(axis=None)
    before = (results.root / "tidy.parquet").read_bytes()
    write_json(results.runs / f"{SECOND}.json", RUN | {"seconds": 9.0})
    assert (gathered(results) / "tidy.parquet").read_bytes() == before


def test_aggregate_with_different_weights_of_one_plm_raises(results: ResultPaths) -> None:
    metrics = read_record(results.cells / SECOND)
    metrics["plm"]["content"] = "c1"
    write_record(results.cells / SECOND, SECOND, metrics)
    with pytest.raises(CorruptError, match="trained on weights of") as error:
        gathered(results)
    assert SECOND in str(error.value)


def test_aggregate_with_another_plm_than_the_cells_raises(results: ResultPaths) -> None:
    metrics = read_record(results.cells / SECOND)
    metrics["plm"]["name"] = "other"
    write_record(results.cells / SECOND, SECOND, metrics)
    with pytest.raises(CorruptError, match=f"{SECOND}: expected PLM .*, got other"):
        gathered(results)


def grid(folder: Path, **changes: object) -> Grid:
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(PARAMS | changes))
    return Grid(load_study(path), path)


def test_margins_do_not_change_the_study_id_or_cells(tmp_path: Path) -> None:
    without, usual = grid(tmp_path), grid(tmp_path, analysis={"chance_margin": 2, "equivalence_margin": 0.5})
    assert without.study.analysis == AnalysisConfig(2.0, 2.0, 0.5) and without.id == usual.id
    other = grid(tmp_path, analysis={"equivalence_margin": 0.25})
    assert other.study.analysis == AnalysisConfig(2.0, 2.0, 0.25)
    assert other.id != usual.id and other.cells == usual.cells
    assert other.record()["analysis"] == {"chance_margin": 2.0, "full_ft_margin": 2.0, "equivalence_margin": 0.25}


@pytest.mark.parametrize(
    ("analysis", "words"),
    [
        (3, "analysis: expected"),
        ({"chance_margin": 0}, "analysis.chance_margin: expected a number above 0"),
        ({"full_ft_margin": 101}, "analysis.full_ft_margin: expected a number above 0, at most 100"),
        (
            {"equivalence_margin": "half"},
            "analysis.equivalence_margin: expected a number above 0, at most 10, got 'half'",
        ),
        ({"margin": 2}, "unknown key 'margin'"),
    ],
)
def test_margins_out_of_range_raise(tmp_path: Path, analysis: object, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        grid(tmp_path, analysis=analysis)
    assert words in str(error.value)


@pytest.mark.slow
def test_dvc_metrics_diff_shows_a_changed_verdict(tmp_path: Path) -> None:
    def run(*command: str) -> str:
        path = f"{programs()}{os.pathsep}{os.environ['PATH']}"
        named = {f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        environment = {**os.environ, **named, "PATH": path, "DVC_NO_ANALYTICS": "1"}
        options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
        return subprocess.run(command, check=True, **options).stdout

    truth = Truth(plms=4, n=1000, sweep=(), method_variance=40.0)
    write_findings(simulate(truth.changed(method_change=-35.0), 3), tmp_path)
    (tmp_path / "dvc.yaml").write_text("metrics: [metrics.json]\n")
    run("git", "init", "--quiet")
    run("dvc", "init", "--quiet")
    run("git", "add", "--all")
    run("git", "commit", "--quiet", "--message", "one")
    write_findings(simulate(truth.changed(method_change=35.0), 3), tmp_path)
    changes = json.loads(run("dvc", "metrics", "diff", "--json"))["metrics.json"]
    verdict, sign = (changes[f"findings.methods.overall.{key}"] for key in ("verdict", "sign"))
    assert (verdict["old"], verdict["new"]) == ("supported", "contradicted")
    assert (sign["old"], sign["new"], sign["diff"]) == (1, -1, -2)
    assert {f"findings.methods.overall.{key}" for key in ("estimate", "low", "high")} <= changes.keys()
    (line,) = (line for line in run("dvc", "metrics", "diff").splitlines() if "methods.overall.verdict" in line)
    assert line.split()[1:] == ["findings.methods.overall.verdict", "supported", "contradicted", "-"]
    shown = json.loads((tmp_path / "metrics.json").read_text())["findings"]
    assert set(shown) == {claim.name for claim in CLAIMS}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"), max_steps=2, num_evals=1, lr_multipliers=[1.0])


@pytest.mark.slow
def test_results_of_a_run_with_failures_are_partial_then_complete(lab: Lab, tmp_path: Path) -> None:
    """A folder where a cell's run record should be: the cell is an error, and its siblings have results."""
    checkout = lab.checkout(tmp_path / "study")
    bad, root = lab.cells["lora"].path, checkout.folder / "results"
    (root / "runs" / f"{bad}.json").mkdir(parents=True)
    checkout.snakemake(check=False)
    (root / "cells" / bad / "metrics.json").unlink()
    assert not (root / "metrics.json").exists()
    before = checkout.trained()

    checkout.snakemake("--config", "allow_missing=true")
    assert checkout.trained() == before
    (listed,) = csv(root / "missing.csv").to_dict("records")
    assert listed["cell_path"] == bad and listed["reason"].startswith("PathError")
    assert json.loads((root / "findings.json").read_text())["missing"] == 1
    assert json.loads((root / "metrics.json").read_text())["missing"] == 1
    assert listed["reason"] in (root / "findings.md").read_text()
    assert list((root / "figures").glob("*.svg"))

    (root / "runs" / f"{bad}.json").rmdir()
    checkout.snakemake()
    assert json.loads((root / "metrics.json").read_text())["missing"] == 0
    assert bad in (root / "tidy.csv").read_text() and not len(csv(root / "missing.csv"))
    assert checkout.nothing_to_do()
