"""The pipeline on a Slurm cluster of one node: requested resources, and recovery from killed jobs."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from apet.study.resolve import sizes
from apet.study.resources import CostModel
from slurm_cluster import IMPATIENT, MODEL, NUM_CELLS, Cluster, SlurmCheckout, slurm, wait_for
from toy import ROOT, trainings

pytestmark = pytest.mark.slurm

TRAIN = f"train_{MODEL}"
RERUN = ("snakemake", "--profile", "slurm")
CANCELLED, TIMED_OUT, OUT_OF_MEMORY, FAILED_CELL = range(4)
"""Fault of each job of the study, by number."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    made.script("up.sh")
    yield made
    made.script("down.sh")


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, wheels_folder: Path) -> Iterator[SlurmCheckout]:
    """Run the study without Slurm. `local.process` runs while the tests wait for Slurm."""
    checkout = SlurmCheckout(tmp_path_factory.mktemp("local") / "study", wheels_folder)
    with checkout.running("snakemake", "--profile", "workflow/profiles/local", "--cores", "1") as checkout.process:
        yield checkout


@pytest.fixture(scope="module")
def faulted(cluster: Cluster, local, tmp_path_factory: pytest.TempPathFactory, wheels_folder: Path) -> SlurmCheckout:
    """Run the study on Slurm with a GPU for each training, while jobs are cancelled, hang, fail and lack memory.

    `before` has the cells of a job that were trained before its fault.
    """
    checkout = SlurmCheckout(tmp_path_factory.mktemp("slurm") / "study", wheels_folder)
    jobs = checkout.grid.jobs()
    enough = CostModel(checkout.grid, sizes(checkout.grid)).memory_mb(jobs[CANCELLED])
    is_little = f"wildcards.job == '{jobs[OUT_OF_MEMORY].name}'"
    memory = f"200 * 10 ** (attempt - 1) if {is_little} else {enough} * attempt"
    changes = {TRAIN: {"mem_mb": memory}, "aggregate": {"slurm_partition": "'cpu'"}}
    checkout.edit_profile({"default-resources": {"slurm_partition": "'gpu'", "gpu": 1}, "set-resources": changes})
    # A folder in place of the run record lets the cell fail once.
    (checkout.folder / "results" / "runs" / f"{jobs[FAILED_CELL].cells[2].path}.json").mkdir(parents=True)
    # The GPU of the cluster does not exist. The test checks that it was requested.
    with checkout.running(*IMPATIENT, "--config", "device=cpu") as process:
        hit = {CANCELLED: cancel, TIMED_OUT: hang}
        checkout.before = {}

        def all_hit() -> bool:
            for number in set(hit) - set(checkout.before):
                if checkout.trained_of(jobs[number]):
                    hit[number](cluster, cluster.jobs(checkout, checkout.rule(jobs[number]))[-1])
                    checkout.before[number] = checkout.trained_of(jobs[number])
            return set(hit) <= set(checkout.before)

        wait_for(all_hit, "one job was cancelled and one hangs", process)
        checkout.finish(process)
    return checkout


def cancel(cluster: Cluster, job: dict[str, str]) -> None:
    slurm("scancel", job["JobId"])
    wait_for(lambda: job["JobId"] in cluster.ended(), "the cancelled job's end")


def hang(cluster: Cluster, job: dict[str, str]) -> None:
    """Stop the training process and shorten the time limit of the job, so that it times out on any machine."""
    workers = cluster.workers(job)
    assert workers, job
    for process in workers:
        os.kill(process, signal.SIGSTOP)
    slurm("scontrol", "update", f"JobId={job['JobId']}", "TimeLimit=1")


def test_slurm_run_with_faults_writes_the_bytes_of_a_local_run(faulted, local):
    local.finish(local.process)
    here, there = local.results(), faulted.results()
    assert here.keys() == there.keys()
    assert [path for path in here if here[path] != there[path]] == []
    assert faulted.nothing_to_do()


def test_slurm_runs_every_rule_as_a_job(faulted, cluster):
    jobs = cluster.jobs(faulted)
    rules = {job["Comment"].removeprefix("rule_").partition("_wildcards_")[0] for job in jobs}
    assert rules == {TRAIN, "aggregate"}
    assert cluster.queued(faulted) == []
    assert {job["JobId"] for job in jobs} <= set(cluster.ended())


def test_slurm_jobs_request_partition_and_gpu(faulted, cluster):
    for job in cluster.jobs(faulted):
        is_training = job["Comment"].startswith(f"rule_{TRAIN}")
        assert job["Partition"] == ("gpu" if is_training else "cpu"), job
        assert job.get("TresPerJob") == ("gres:gpu:1" if is_training else None), job


def test_slurm_cancelled_job_is_resubmitted_with_twice_the_resources(faulted, cluster):
    job, costs = faulted.grid.jobs()[CANCELLED], CostModel(faulted.grid, sizes(faulted.grid))
    first, second = cluster.jobs(faulted, faulted.rule(job))
    assert (first["JobState"], second["JobState"]) == ("CANCELLED", "COMPLETED")
    for attempt, slurm_job in enumerate((first, second), start=1):
        assert megabytes(slurm_job["MinMemoryNode"]) == attempt * costs.memory_mb(job)
        assert minutes(slurm_job["TimeLimit"]) == attempt * costs.runtime_minutes(job)


def test_slurm_job_that_times_out_is_resubmitted_with_more_time(faulted, cluster):
    job, costs = faulted.grid.jobs()[TIMED_OUT], CostModel(faulted.grid, sizes(faulted.grid))
    first, second = cluster.jobs(faulted, faulted.rule(job))
    assert (first["JobState"], second["JobState"]) == ("TIMEOUT", "COMPLETED")
    assert minutes(second["TimeLimit"]) == 2 * costs.runtime_minutes(job)


def test_slurm_job_out_of_memory_is_resubmitted_with_more_memory(faulted, cluster):
    first, second = cluster.jobs(faulted, faulted.rule(faulted.grid.jobs()[OUT_OF_MEMORY]))
    assert first["JobState"] != "COMPLETED"
    assert second["JobState"] == "COMPLETED"
    assert (megabytes(first["MinMemoryNode"]), megabytes(second["MinMemoryNode"])) == (200, 2000)
    assert "exceeded memory limit" in Path(first["StdOut"]).read_text()


def test_slurm_resubmitted_job_skips_finished_cells(faulted):
    jobs = faulted.grid.jobs()
    for number in (CANCELLED, TIMED_OUT):
        before = faulted.before[number]
        assert 1 <= len(before) < len(jobs[number].cells)
        assert trainings(before, faulted.trained_of(jobs[number])).isdisjoint(before)


def test_slurm_job_with_a_failed_cell_trains_the_others(faulted, cluster):
    """The first job trains the other cells, and the second has nothing to train."""
    job = faulted.grid.jobs()[FAILED_CELL]
    first, second = cluster.jobs(faulted, faulted.rule(job))
    assert (first["JobState"], second["JobState"]) == ("FAILED", "COMPLETED")
    log = (faulted.folder / "results" / "logs" / "train" / MODEL / f"{job.name}.log").read_text()
    assert f"trained 0 of {len(job.cells)} cells" in log
    assert len(faulted.trained_of(job)) == len(job.cells)


@pytest.fixture(scope="module")
def untrained(faulted: SlurmCheckout, tmp_path_factory: pytest.TempPathFactory) -> SlurmCheckout:
    """Copy data and PLMs without cells, with all cells in one job and the profile of the repository."""
    checkout = faulted.copy(tmp_path_factory.mktemp("killed") / "study")
    for name in ("cells", "runs"):
        shutil.rmtree(checkout.folder / "results" / name)
    (checkout.folder / "results" / "metrics.json").unlink()
    checkout.write(checkout.params | {"cells_per_job": NUM_CELLS})
    return checkout


def test_slurm_jobs_are_cancelled_by_interrupting_snakemake_and_survive_killing_it(untrained, cluster, faulted):
    """The commands in the documentation then finish the study with the same bytes."""
    with untrained.running(*IMPATIENT, "cells") as process:
        wait_for(untrained.trained, "a cell is trained", process)
        process.send_signal(signal.SIGINT)
        wait_for(lambda: not cluster.queued(untrained), "the interrupted run's jobs end")
        wait_for(lambda: process.poll() is not None, "the interrupted Snakemake ends")
    assert process.returncode != 0
    interrupted = untrained.trained()
    assert len(interrupted) < NUM_CELLS
    assert [job["JobState"] for job in cluster.jobs(untrained)] == ["CANCELLED"]

    with untrained.running(*IMPATIENT, "cells") as process:
        wait_for(lambda: len(untrained.trained()) > len(interrupted), "another cell is trained", process)
        os.killpg(process.pid, signal.SIGKILL)
    killed = untrained.trained()
    wait_for(lambda: len(untrained.trained()) > len(killed), "a cell is trained by the job that is left")
    assert len(cluster.queued(untrained)) == 1

    untrained.run("bash", "-euo", "pipefail", "-c", recovery_commands())
    assert cluster.queued(untrained) == []
    recovered = untrained.trained()
    assert len(killed) < len(recovered) < NUM_CELLS
    with untrained.running(*IMPATIENT, "cells") as process:
        untrained.finish(process)
    with untrained.running(*RERUN) as process:
        untrained.finish(process)
    assert len(cluster.jobs(untrained)) == 4
    assert untrained.results() == faulted.results()
    assert trainings(recovered, untrained.trained()).isdisjoint(recovered)


def recovery_commands() -> str:
    """Return the commands in the documentation for a killed Snakemake, without the last line, a new run."""
    page = (ROOT / "docs" / "executors.md").read_text()
    (commands,) = re.findall(r"```bash\n(run=.*?)```", page, flags=re.DOTALL)
    *lines, last = commands.strip().splitlines()
    assert tuple(last.split()) == RERUN
    return "\n".join(lines)


def megabytes(text: str) -> int:
    """Convert Slurm's 2000M or 2G to MB."""
    number, unit = float(text[:-1]), text[-1]
    return round(number * {"M": 1, "G": 1024}[unit])


def minutes(text: str) -> int:
    """Convert Slurm's [days-]hours:minutes:seconds to minutes."""
    days, _, clock = text.rpartition("-")
    hour, minute, _ = map(int, clock.split(":"))
    return (int(days or 0) * 24 + hour) * 60 + minute
