"""The study of all rules: read, checked and resolved before any job."""

import os
import subprocess
from pathlib import Path

from apet.errors import ApetError
from apet.study.archive import restore
from apet.study.resolved import read_resolved
from apet.study.resources import CostModel
from apet.study.grid import load_grid
from apet.study.paths import ResultPaths
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
    COSTS = CostModel(GRID, read_resolved(Path(STUDY))["plms"])
    restore(GRID)
except (ApetError, OSError) as error:
    raise WorkflowError(str(error))


def start():
    """Check the disks once, instead of in every job, and lock the results. Snakemake's own locks do not suffice: a run
    that ends removes the locks of all runs.
    """
    try:
        check_writable(Path("data"), Path("models"), Path("results"))
        acquire_lock(Path("results"))
    except ApetError as error:
        raise WorkflowError(str(error))


def more_each_attempt(first):
    """Return a resource: the estimate, multiplied by the number of the attempt."""
    return lambda wildcards, attempt: attempt * first


def gpus(devices):
    """Return the GPUs of a PLM that needs several. For all others the profile decides."""
    return {"gpu": devices} if devices > 1 else {}


def device_of(resources):
    """Return cuda for a job with a GPU. To override: snakemake … --config device=cpu"""
    return config.get("device", "cuda" if resources.get("gpu", 0) else "cpu")


def metrics_of(cells):
    """Return the files that mark cells as finished."""
    return [f"results/cells/{cell.path}/metrics.json" for cell in cells]


METRICS = metrics_of(GRID.cells)

# snakemake … --config allow_missing=true: results of the finished cells; missing.csv lists the others.
ALLOW_MISSING = config.get("allow_missing", False)

# It exists if the tables and figures in results/ belong to this study and, with allow_missing=true, to these finished cells.
PUBLISHED = str(
    published_marker(
        Path("results"),
        GRID.id,
        (
            missing_cells(
                (cell.path for cell in GRID.cells), ResultPaths(Path("results"))
            )
            if ALLOW_MISSING
            else ()
        ),
    )
)


def all_cells(wildcards):
    """Return all cells as inputs, or none with allow_missing=true, which must not train. A function, so that Snakemake
    handles thousands of names only for the jobs that need them.
    """
    return [] if ALLOW_MISSING else ancient(METRICS)
