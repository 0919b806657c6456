"""The study that all rules speak of, read, checked and resolved before anything runs."""

import os
import subprocess
from pathlib import Path

from apet.config import load_study
from apet.errors import ApetError
from apet.grid import Grid
from apet.store import published_study, restore

PARAMS = str(config.get("params", "params.yaml"))

try:
    GRID = Grid(load_study(Path(PARAMS)), Path(PARAMS))
except ApetError as error:
    raise WorkflowError(str(error))

# The resolved study: what jobs read. Its name is a hash of its cells, so it is made once, and it is not a rule's output
# because a budget that no PLM can meet must stop even a dry run.
STUDY = f"results/studies/{GRID.id[:12]}.json"

if not Path(STUDY).exists():
    checked = subprocess.run(
        ["apet", "check", "--params", PARAMS, "--out", STUDY],
        capture_output=True,
        text=True,
    )
    if checked.returncode:
        raise WorkflowError(checked.stderr.strip())

restore(GRID)

# The results' names are fixed, so their times cannot tell whose they are: a checkout or a pull writes them anew. The
# resolved study stands for that: newer than any result of another study, older than every result of this one.
os.utime(STUDY, (0, 0) if published_study() == GRID.id else None)


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

# snakemake … --config partial=true: the results of those cells that are there, and which ones are not.
PARTIAL = config.get("partial", False)


def all_cells(wildcards):
    """As an input. A function, so that thousands of names become files only for those jobs that are wanted. None where
    results may be partial, for a job that failed would be tried again.
    """
    return [] if PARTIAL else ancient(METRICS)
