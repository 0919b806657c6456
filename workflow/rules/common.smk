"""The study of all rules: read, checked and resolved before any job."""

import os
import subprocess
import time
from pathlib import Path
from threading import Thread

from apet.cli.status_summary import progress_line
from apet.cli.study_summary import work_line
from apet.errors import ApetError
from apet.models.registry import slug
from apet.study.archive import restore
from apet.study.resolved import read_resolved, training_steps
from apet.study.resources import CostModel, local_speed
from apet.study.grid import load_grid
from apet.study.paths import ResultPaths
from apet.study.status import read_status
from apet.study.workdir import (
    acquire_lock,
    check_writable,
    missing_cells,
    published_marker,
)

PARAMS = str(config.get("params", "params.yaml"))

if PARAMS.startswith("-") or set("{}") & set(os.path.abspath(PARAMS)):
    raise WorkflowError(
        f"{os.path.abspath(PARAMS)}: expected a name without a leading - (an option) and a path without braces (a"
        " wildcard). Rename it."
    )

try:
    GRID = load_grid(Path(PARAMS))
except ApetError as error:
    raise WorkflowError(str(error))

# The resolved study, which jobs read. No rule makes it, because a budget that no PLM can meet must stop a dry run too.
STUDY = f"results/studies/{GRID.id[:12]}.json"

if not Path(STUDY).exists():
    checked = subprocess.run(
        ["apet", "resolve", "--params", PARAMS, "--out-file", STUDY],
        capture_output=True,
        text=True,
    )
    if checked.returncode:
        raise WorkflowError(checked.stderr.strip())

try:
    RESOLVED = read_resolved(Path(STUDY))
    COSTS = CostModel(GRID, RESOLVED["plms"])
    restore(GRID)
except (ApetError, OSError) as error:
    raise WorkflowError(str(error))


# Least time between two lines of progress: snakemake … --config progress_seconds=600
PROGRESS_SECONDS = config.get("progress_seconds", 60)

if not isinstance(PROGRESS_SECONDS, int | float) or PROGRESS_SECONDS <= 0:
    raise WorkflowError(
        f"progress_seconds: expected a number above 0, got {PROGRESS_SECONDS!r}."
    )


def log_progress():
    """Log finished jobs and cells and the expected end whenever the numbers have changed. Snakemake itself counts jobs,
    which can have many cells and last for hours.
    """
    steps, logged, seconds = training_steps(RESOLVED), None, PROGRESS_SECONDS
    while True:
        time.sleep(seconds)
        now, jobs = time.time(), workflow.scheduler.finished_jobs
        status = read_status(steps, ResultPaths(Path("results")), now, steps)
        if (jobs, status.counts()) != logged:
            logged = jobs, status.counts()
            running = {
                name for job in list(workflow.scheduler.running) for name in job.rules
            }
            logger.info(progress_line(status, now, jobs, len(workflow.dag), running))
        # The folders of a large study on a slow disk take seconds to read.
        seconds = max(PROGRESS_SECONDS, 100 * (time.time() - now))


def start():
    """Check the disks once, instead of in every job, and lock the results. Snakemake's own locks do not suffice: a run
    that ends removes the locks of all runs.
    """
    try:
        check_writable(Path("data"), Path("models"), Path("results"))
        acquire_lock(Path("results"))
    except ApetError as error:
        raise WorkflowError(str(error))
    Thread(target=log_progress, daemon=True).start()


def more_each_attempt(first):
    """Return a resource: the estimate, multiplied by the number of the attempt."""
    return lambda wildcards, attempt: attempt * first


def gpus(devices):
    """Return the GPUs of a PLM that needs several. For all others the profile decides."""
    return {"gpu": devices} if devices > 1 else {}


def device_of(resources):
    """Return cuda for a job with a GPU. To override: snakemake … --config device=cpu"""
    return config.get("device", "cuda" if resources.get("gpu", 0) else "cpu")


# snakemake … --config allow_missing=true: results of the finished cells; missing.csv lists the others.
ALLOW_MISSING = config.get("allow_missing", False)

MISSING = set(
    missing_cells((cell.path for cell in GRID.cells), ResultPaths(Path("results")))
)

# It exists if the tables and figures in results/ belong to this study and, with allow_missing=true, to these finished cells.
PUBLISHED = str(
    published_marker(Path("results"), GRID.id, MISSING if ALLOW_MISSING else ())
)

JOBS = {job.name: job for job in GRID.jobs()}


def task_folders(job):
    """Return the folders of the tasks of a training job, given by name."""
    return [GRID.task_folder(task) for task in JOBS[job].tasks]


def record_of(job):
    """Return the file that a training job writes once its cells are finished. Snakemake knows one file a job, because it
    would need seconds for thousands of cells.
    """
    return f"results/jobs/{slug(job.model)}/{job.name}"


# The cells decide which jobs run, wherever they come from: a job without missing cells does not need its record, and a
# record whose cells were deleted is wrong.
PENDING = [
    record_of(job)
    for job in JOBS.values()
    if not MISSING.isdisjoint(cell.path for cell in job.cells)
]

if workflow.is_main_process:
    for record in PENDING:
        Path(record).unlink(missing_ok=True)
    logger.info(work_line(COSTS, MISSING, local_speed()))


def all_cells(wildcards):
    """Return the records of the jobs that have missing cells, or none with allow_missing=true, which must not train.
    The study comes first, because Snakemake always runs a rule without files.
    """
    return ancient([STUDY] if ALLOW_MISSING else [STUDY, *PENDING])
