"""Status of a study, progress lines during training, and the failure table at the end of a run."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterable
from pathlib import Path

import psutil
import pytest
import yaml

from apet.cli.app import main
from apet.cli.status_summary import progress_line, status_lines
from apet.core import progress as report_module
from apet.core.atomic import write_json
from apet.core.progress import CellProgress, format_duration, format_rate
from apet.core.records import write_json_record
from apet.study.cell_record import FORMAT
from apet.study.paths import ResultPaths
from apet.study.resolved import training_steps
from apet.study.status import CLOCK, Status, differences, read_status
from apet.training.callbacks import logger_named
from lab import Lab
from toy import Checkout

NOW = 1_800_000_000.0
HERE = {
    "machine": "x86_64", "instruction_sets": {"onednn": "AVX2", "blas": "MKL A"}, "device": "cpu", "devices": 1,
    "threads": 1, "versions": {"torch": "2"},
}  # fmt: skip


def path(number: int) -> str:
    return f"{'small' if number % 2 else 'large'}/task/cell-{number}"


def done(results: ResultPaths, number: int, seconds: float = 30.0, ago: float = 0.0, **other) -> None:
    write_json(results.cells / path(number) / "metrics.json", {"format": FORMAT, "path": path(number)})
    finished = time.strftime(CLOCK, time.gmtime(NOW - ago))
    dtype = "float32" if number % 2 else "bfloat16"
    run = {"cell": path(number), "seconds": seconds, "finished": finished, **HERE, "dtype": dtype, **other}
    write_json(results.runs / f"{path(number)}.json", run)


def study_record(*names: str) -> dict:
    """Record of a study with a cell of each name, whose placement has the name."""
    cell = {"num_plans": 2, "num_seeds": 3, "training": 0}
    trainings = [{"lr_multipliers": [1, 3], "max_steps": 5}]
    return {"trainings": trainings, "cells": {name: {"placement": name} | cell for name in names}}


def failed(results: ResultPaths, number: int, error: str = "ValueError: no") -> None:
    write_json(results.failed / f"{path(number)}.json", {"cell": path(number), "error": error, "log": "some.log"})


@pytest.fixture
def results(tmp_path: Path) -> ResultPaths:
    """Ten cells: four done by two processes in a minute, one failed, one in progress, four pending."""
    found = ResultPaths(tmp_path / "results")
    for number in range(4):
        done(found, number, ago=30.0 * (number // 2))
    failed(found, 4)
    kept = found.checkpoints / path(5) / "plan0.seed0.safetensors"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"")
    os.utime(kept, (NOW - 20, NOW - 20))
    return found


def lines(results: ResultPaths, count: int = 10) -> list[str]:
    return status_lines(status(results, range(count)), NOW)


def status(results: ResultPaths, numbers: Iterable[int]) -> Status:
    return read_status(map(path, numbers), results, NOW)


def test_time_left_follows_the_steps_of_cells_and_is_a_bound_without_a_cell_of_each_plm(results):
    steps = {path(number): 10 if number < 4 else 20 for number in range(10)}
    state = read_status(steps, results, NOW, steps)
    assert state.models == ["large", "small"]
    assert "about 3 min left" in "\n".join(status_lines(state, NOW))  # 6 cells, 20 steps of 3 s each, by 2 processes
    others = {**steps, "huge/task/cell": 20}
    assert "at least 4 min left" in "\n".join(status_lines(read_status(others, results, NOW, others), NOW))


def test_untuned_plm_says_nothing_about_the_time_of_trainings(results):
    steps = {path(number): 10 for number in range(10)}
    untuned = steps | {path(number): 0 for number in range(4)}
    assert read_status(untuned, results, NOW, untuned).throughput is None
    some = steps | {path(0): 0, path(2): 0}
    assert read_status(some, results, NOW, some).throughput.step_seconds == {"small": 3.0}


def test_throughput_is_that_of_the_machine_type_of_the_last_cell(results):
    for number in (0, 1):
        done(results, number, seconds=3000.0, ago=600.0, machine="arm64")
    throughput = status(results, range(10)).throughput
    assert throughput.step_seconds == {"small": 30.0, "large": 30.0}


def test_training_steps_count_replicates_and_multipliers():
    assert training_steps(study_record("uniform", "none")) == {"uniform": 7 * 5, "none": 0}


def test_status_counts_cells_in_total_and_by_plm(results):
    printed = lines(results)
    assert printed[0] == "10 cells: 4 done, 1 failed, 1 in progress, 4 pending"
    assert "  small: 2 done, 1 in progress, 2 pending" in printed
    assert "  large: 2 done, 1 failed, 2 pending" in printed
    assert f"in progress: {path(5)} (checkpoint 20 s ago)" in printed
    assert f"failed: {path(4)}: ValueError: no" in printed


def test_progress_line_has_rules_jobs_cells_failures_and_the_end(results):
    state = status(results, range(10))
    line = progress_line(state, NOW, 3, 12, ["train_small", "train_large"])
    time_of_day = time.strftime("%H:%M", time.localtime(NOW))
    counts = "3 of 12 jobs; 4 of 10 cells; 1 failed (apet status --failed)"
    assert line.startswith(f"{time_of_day}  train_large, train_small; {counts}; about 90 s left, until ")
    finished = progress_line(status(results, range(4)), NOW, 1, 1, [])
    assert finished == f"{time_of_day}  waiting; 1 of 1 job; 4 of 4 cells"


def test_status_estimates_the_end_from_run_records(results):
    """Four cells of 30 s in 60 s are two at a time; six more take 90 s."""
    (printed,) = (line for line in lines(results) if "cells/min" in line)
    assert "4.0 cells/min by 2.0 processes" in printed
    assert "about 90 s left" in printed


def test_throughput_uses_the_mean_duration_of_each_plm(tmp_path):
    found = ResultPaths(tmp_path)
    done(found, 0, seconds=90.0)
    done(found, 1, seconds=9.0)
    assert status(found, (0, 1)).throughput.concurrency == pytest.approx(1.1)
    assert "about 16 s left" in "\n".join(status_lines(status(found, (0, 1, 3, 5)), NOW))
    done(found, 2, seconds=10_000.0, ago=50_000.0)
    assert status(found, (0, 1, 2)).throughput.concurrency == pytest.approx(1.1)


def test_status_without_finished_cells_has_no_rate_and_without_pending_cells_no_end(tmp_path):
    found = ResultPaths(tmp_path)
    assert lines(found, 2)[-1] == "end: unknown until a cell has been trained on this machine"
    done(found, 0)
    assert lines(found, 1) == ["1 cell: 1 done, 0 pending"]


def test_cell_finished_after_a_failure_counts_as_done(results):
    done(results, 4)
    later = time.time() + 10
    os.utime(results.cells / path(4) / "metrics.json", (later, later))
    assert lines(results)[0] == "10 cells: 5 done, 1 in progress, 4 pending"


def test_status_reports_more_than_one_machine_type(results):
    assert not any("machine" in line for line in lines(results))
    done(results, 6, processor="another", instruction_sets={"onednn": "AVX2", "blas": "MKL B"}, versions={"torch": "3"})
    (printed,) = (line for line in lines(results) if line.startswith("machines: "))
    assert printed.startswith("machines: 1 cell trained on another machine type than 4")
    assert printed.endswith(": blas: MKL B there, MKL A here; torch: 3 there, 2 here")
    done(results, 6, begun_on=[{**HERE, "instruction_sets": {"onednn": "AVX", "blas": "MKL A"}, "dtype": "float32"}])
    assert any(line.endswith(": onednn: AVX there, AVX2 here") for line in lines(results))


def test_other_processor_with_equal_instruction_sets_is_the_same_machine_type(results):
    done(results, 6, processor="another")
    assert not any("machine" in line for line in lines(results))


def test_differences_name_only_unequal_keys():
    assert differences(HERE, HERE) == ()
    assert differences({**HERE, "dtype": "float16"}, {**HERE, "dtype": "float32"}) == (
        "dtype: float16 there, float32 here",
    )


def test_corrupt_run_record_does_not_change_the_counts(results):
    (results.runs / f"{path(0)}.json").write_text("{")
    assert lines(results)[0].startswith("10 cells: 4 done")


@pytest.mark.slow
def test_status_of_ten_thousand_cells_takes_less_than_five_seconds(tmp_path):
    found, count = ResultPaths(tmp_path / "results"), 10_000
    write_json_record(tmp_path / "study.json", study_record(*map(path, range(count))))
    record, run = json.dumps({"format": FORMAT}), json.dumps({"seconds": 1.0, "finished": time.strftime(CLOCK), **HERE})
    for number in range(count):
        (found.cells / path(number)).mkdir(parents=True)
        (found.cells / path(number) / "metrics.json").write_text(record)
        (found.runs / path(number)).parent.mkdir(parents=True, exist_ok=True)
        (found.runs / f"{path(number)}.json").write_text(run)
    command = [sys.executable, "-X", "importtime", "-m", "apet.cli.app", "status", "--resolved", "study.json"]
    usage = os.times()
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    took = sum(os.times()[2:4]) - sum(usage[2:4])
    assert printed.stdout.startswith("10,000 cells: 10,000 done, 0 pending")
    assert not {"torch", "pandas", "transformers"} & {
        line.split("|")[-1].strip() for line in printed.stderr.splitlines()
    }
    assert took < 5, f"{took:.1f} s of processor time"


@pytest.mark.parametrize(
    ("seconds", "printed"),
    [
        (0.5, "120 cells/min"),
        (15, "4.0 cells/min"),
        (600, "0.1 cells/min"),
        (7200, "0.5 cells/h"),
        (86400, "1.0 cells/day"),
    ],
)
def test_format_rate_selects_a_readable_unit(seconds, printed):
    assert format_rate(1 / seconds) == printed


def test_status_command_refuses_a_missing_results_folder(tmp_path, capsys):
    found = ResultPaths(tmp_path / "results")
    for number in range(2):
        done(found, number, seconds=7200.0, ago=7200.0 * number)
    assert any("0.5 cells/h by 1 process," in line for line in lines(found, 3))
    write_json_record(tmp_path / "study.json", study_record(path(0)))
    command = ["status", "--resolved", str(tmp_path / "study.json"), "--results-dir"]
    assert main([*command, str(found.root)]) == 0 and "1 done" in capsys.readouterr().out
    assert main([*command, str(tmp_path / "nosuch")]) == 2
    printed = capsys.readouterr()
    problem = f"--results-dir {tmp_path}/nosuch: no such folder. Give the results folder of the study."
    assert (printed.out, printed.err) == ("", f"apet: {problem}\n")


def test_format_duration_selects_a_readable_unit():
    assert [format_duration(s) for s in (5, 119, 120, 3600, 9000, 200_000)] == [
        "5 s",
        "119 s",
        "2 min",
        "60 min",
        "2.5 h",
        "2.3 days",
    ]


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(report_module.time, "monotonic", lambda: self.now)


def test_progress_in_a_log_prints_a_line_at_intervals(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    with CellProgress("bloom-64x4 bbc_topics", 20) as report:
        for number in range(20):
            report.begin(f"bloom-64x4/bbc_topics/cell-{number}")
            clock.now += 12
            report.step("plan0.seed0.rate0", 50, 50, 0.5, 1.0)
            report.end()
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 20 * 12 // 36 + 1
    assert printed[0] == "bloom-64x4 bbc_topics: 3 of 20 cells, 5.0 cells/min, about 3 min left"
    assert printed[-1] == "bloom-64x4 bbc_topics: 20 of 20 cells in 4 min"


def test_progress_of_a_long_cell_prints_its_steps(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    report = CellProgress("t5 squad", 2)
    report.begin("t5/squad/full-own-0123456789")
    for step in range(1, 101):
        clock.now += 6
        report.step("plan0.seed0.rate0", step, 1000, 0.5, step / 1000)
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == 100 * 6 // 30
    last = "t5 squad: 0 of 2 cells, 0.6 cells/h, about 3.2 h left; full-own-0123456789 plan0.seed0.rate0: "
    assert printed[-1] == last + "step 100 of 1,000, loss 0.500"


def test_progress_rate_excludes_work_from_a_checkpoint(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    report = CellProgress("t5 squad", 1)
    report.begin("t5/squad/full")
    report.begin_run(0.5)
    for step in range(501, 601):
        clock.now += 6
        report.step("run", step, 1000, 0.5, step / 1000)
    assert "about 40 min left" in capsys.readouterr().err.splitlines()[-1]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("status"), max_steps=12, lr_multipliers=[1.0])


@pytest.mark.slow
def test_loggers_do_not_change_results(lab):
    one = lab.cells["lora"]
    lab.train("plain", one)
    for name in ("tensorboard", "dvclive"):
        lab.train(name, one, options=("--logger", name))
        assert lab.contents(name, one) == lab.contents("plain", one)
        assert not any(lab.results("plain").root.glob("loggers"))
    (record,) = json.loads(lab.contents("plain", one)["metrics.json"])["replicates"]
    where = f"{one.path}/plan0.seed0.lr0"
    events = scalars(lab.results("tensorboard").loggers / where)
    assert [step for step, _ in events["train/loss"]] == list(range(1, 13))
    assert [step for step, _ in events["validation/score"]] == [3, 6, 9, 12]
    assert dict(events["validation/score"])[record["best_step"]] == pytest.approx(record["validation"]["score"])
    table = (lab.results("dvclive").loggers / where / "plots/metrics/train/loss.tsv").read_text().split()
    assert len(table) == 2 + 2 * 12
    assert float(table[-1]) == pytest.approx(events["train/loss"][-1][1], rel=1e-5)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard itself reads from an event file."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_missing_logger_package_is_one_message(monkeypatch):
    from apet.errors import ConfigError

    monkeypatch.setitem(sys.modules, "dvclive", None)
    with pytest.raises(ConfigError, match=r"--logger dvclive.*not installed.*apet\[loggers\]"):
        logger_named("dvclive")


@pytest.mark.slow
def test_progress_on_a_terminal_is_a_bar(lab):
    parent, child = pty.openpty()
    termios.tcsetwinsize(child, (24, 120))
    process = lab.start("terminal", lab.cells["lora"], terminal=child)
    os.close(child)
    printed = b""
    while True:
        try:
            chunk = os.read(parent, 4096)
        except OSError:  # the other end is closed
            break
        printed += chunk
    assert process.wait() == 0
    assert b"plm words: 100%" in printed and b"1/1" in printed


@pytest.fixture
def checkout(lab: Lab, tmp_path: Path) -> Checkout:
    """The pipeline with the study, its PLM and its text, one cell a job but for the long one."""
    return lab.checkout(tmp_path / "study")


@pytest.mark.slow
def test_run_with_failures_prints_a_table_and_keeps_other_cells(checkout, lab):
    """A folder where a cell's run record should be: the cell is an error."""
    bad = lab.cells["lora"].path
    (checkout.folder / "results" / "runs" / f"{bad}.json").mkdir(parents=True)
    printed = checkout.snakemake("cells", check=False)
    (line,) = (line for line in printed.splitlines() if line.startswith(f"{bad}  "))
    assert "PathError" in line
    assert (checkout.folder / line.split()[-1]).is_file() and "results/logs/train/plm/words-" in line
    results = ResultPaths(checkout.folder / "results")
    good = {cell.path for cell in lab.cells.values()} - {bad}
    assert {path for path in {bad, *good} if (results.runs / f"{path}.json").is_file()} == good
    printed = checkout.run("apet", "status").stdout
    assert "4 cells: 3 done, 1 failed, 0 pending" in printed and f"failed: {bad}: PathError" in printed
    (results.runs / f"{bad}.json").rmdir()
    (results.cells / bad / "metrics.json").unlink()
    checkout.snakemake("cells")
    assert "4 cells: 4 done, 0 pending" in checkout.run("apet", "status").stdout
    assert not (results.failed / f"{bad}.json").exists()


@pytest.mark.slow
def test_job_stopped_by_sigterm_is_retried_and_resumes(checkout):
    """As on a cluster: SIGTERM to the job alone, whose rule is retried by the same run of Snakemake."""
    study = yaml.safe_load((checkout.folder / "params.yaml").read_text())
    study["grid"] = [{"placements": ["lora"], "budgets": ["@own"], "training": {"max_steps": 1000}}]
    checkout.write(study)
    command = ["snakemake", "--profile", "workflow/profiles/local", "--retries", "3", "cells"]
    options = {"cwd": checkout.folder, "env": checkout.environment, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, **options)
    while (worker := listening(checkout.folder)) is None:
        assert process.poll() is None
        time.sleep(0.05)
    while psutil.Process(worker).cpu_times().user < 1:  # it has loaded all that it needs, and trains
        time.sleep(0.05)
    os.kill(worker, signal.SIGTERM)
    printed = process.communicate(timeout=300)[1]
    assert process.returncode == 0, printed
    (log,) = (path.read_text() for path in checkout.folder.glob("results/logs/train/plm/words-*.log"))
    assert "resuming from results/checkpoints/plm/words/lora" in log
    (run,) = (checkout.folder / "results/runs").rglob("*.json")
    assert json.loads(run.read_text())["resumed"]


def listening(folder: Path) -> int | None:
    """The process that trains in a folder and has SIGTERM come to itself; None while there is none."""
    for found in Path("/proc").glob("[0-9]*"):
        try:
            if (found / "comm").read_text() == "apet train\n" and (found / "cwd").resolve() == folder.resolve():
                caught = next(line for line in (found / "status").read_text().splitlines() if line.startswith("SigCgt"))
                if int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1:
                    return int(found.name)
        except OSError:  # it has ended
            continue
    return None
