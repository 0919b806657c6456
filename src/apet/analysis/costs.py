"""What the cells took, and on what: from their run records, which differ between reruns and so are no results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from apet.provenance import write_text

SPENT = ("seconds", "cpu_seconds", "peak_memory_mb", "resumed", "finished")
MACHINE = ("host", "machine", "processor", "device", "devices", "threads", "dtype")
VERSIONS = "versions"


def costs_table(cells: Mapping[str, Mapping[str, Any]], runs: Path) -> pd.DataFrame:
    """A row a cell: path, coordinates, wall and CPU seconds, peak memory of its process (MB), whether an interrupted
    run was gone on with, when it was finished, host, class of machine, and versions of the libraries (`versions.*`).

    cells: coordinates by path; runs: root of the run records. All is empty where a cell has no readable record.
    """
    found = {path: _run(runs / f"{path}.json") for path in cells}
    libraries = sorted({name for run in found.values() for name in run.get(VERSIONS) or {}})
    rows = []
    for path, coordinates in cells.items():
        run = found[path]
        told = {name: run.get(name) for name in (*SPENT, *MACHINE)}
        versions = {f"{VERSIONS}.{name}": (run.get(VERSIONS) or {}).get(name) for name in libraries}
        rows.append({"cell": path, **coordinates, **told, **versions})
    return pd.DataFrame(rows).convert_dtypes()


def write_costs(cells: Mapping[str, Mapping[str, Any]], runs: Path, folder: Path) -> None:
    """Write `costs_table` to `costs.csv`."""
    write_text(folder / "costs.csv", costs_table(cells, runs).to_csv(index=False, lineterminator="\n"))


def _run(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
