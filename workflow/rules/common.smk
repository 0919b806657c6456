"""The study that all rules speak of, read, checked and resolved before anything runs."""

import os
import subprocess
from pathlib import Path

from apet.study.workdir import acquire_lock, check_writable, date_results, settle_times
from apet.config.study_config import load_study
from apet.errors import ApetError
from apet.study.grid import Grid
from apet.study.archive import restore
from apet.study.resolved import read_resolved
from apet.study.resources import CostModel

PARAMS = str(config.get("params", "params.yaml"))

if PARAMS.startswith("-") or set("{}") & set(os.path.abspath(PARAMS)):
    raise WorkflowError(
        f"{os.path.abspath(PARAMS)}: a path with a brace is a pattern to Snakemake, and a name that begins with - an"
        " option to commands. Give it another name."
    )

try:
    GRID = Grid(load_study(Path(PARAMS)), Path(PARAMS))
except ApetError as error:
    raise WorkflowError(str(error))

# The resolved study: what jobs read. Its name is a hash of its cells, so it is made once, and it is not a rule's output
# because a budget that no PLM can meet must stop even a dry run.
STUDY = f"results/studies/{GRID.id[:12]}.json"

if not Path(STUDY).exists():
    checked = subprocess.run(
        ["apet", "resolve", "--params", PARAMS, "--out-file", STUDY],
        capture_output=True,
        text=True,
    )
    if checked.returncode:
        raise WorkflowError(checked.stderr.strip())

# What names cannot say, times do: whose the results are, and that nothing is of the future, where a clock ran ahead.
try:
    COSTS = CostModel(GRID, read_resolved(Path(STUDY))["plms"])
    restore(GRID)
    settle_times()
    date_results(GRID, Path(STUDY))
except (ApetError, OSError) as error:
    raise WorkflowError(str(error))


def start():
    """Before the first job: a disk that no job could write to is said once, and not by each. And two runs that make the
    same are told apart by a lock of the system's: Snakemake's own vanish when a third run ends.
    """
    try:
        check_writable(Path("data"), Path("models"), Path("results"))
        acquire_lock(Path("results"))
    except ApetError as error:
        raise WorkflowError(str(error))


def more_each_attempt(first):
    """A resource of a rule: the estimate, and that much again with each retry."""
    return lambda wildcards, attempt: attempt * first


def gpus(devices):
    """The resource of a rule whose PLM takes several; of one device the profile says whether it is a GPU."""
    return {"gpu": devices} if devices > 1 else {}


def device_of(resources):
    """A job that is given a GPU trains on it, unless told otherwise: snakemake … --config device=cpu"""
    return config.get("device", "cuda" if resources.get("gpu", 0) else "cpu")


def metrics_of(cells):
    """The files that tell that cells are complete, the last to be there."""
    return [f"results/cells/{cell.path}/metrics.json" for cell in cells]


METRICS = metrics_of(GRID.cells)

# snakemake … --config allow_missing=true: results of the finished cells; missing.csv lists the others.
ALLOW_MISSING = config.get("allow_missing", False)


def all_cells(wildcards):
    """As an input. A function, so that thousands of names become files only for those jobs that are wanted. None where
    cells may be missing, for a job that failed would be tried again.
    """
    return [] if ALLOW_MISSING else ancient(METRICS)
