"""A resolved study on disk: read by every job, and gathered into tables."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from apet.analysis.predictions import Predictions
from apet.analysis.tidy import read_records, tidy, write_tidy
from apet.config.study_config import AnalysisConfig
from apet.core.atomic import write_text
from apet.errors import CorruptError, DataError
from apet.study.cell_record import METRICS
from apet.study.paths import ResultPaths
from apet.study.resolve import read_resolved
from apet.study.status import read_status

COORDINATES = ("model", "task", "placement", "budget")


def aggregate(study: Path, results: ResultPaths, out: Path, partial: bool = False) -> None:
    """Write a study's tidy table from its cells, with tasks.csv, costs.csv, and missing.csv of the cells not there.

    Raises DataError for a cell that is not there, unless the table may be partial; CorruptError where one model's cells
    used different PLMs; and as `tidy`.
    """
    record = read_resolved(study)
    name, cells, margins = record["study"], dict(sorted(record["cells"].items())), AnalysisConfig(**record["analysis"])
    coordinates = {path: {key: cells[path][key] for key in COORDINATES} for path in cells}
    missing = _missing(coordinates, results)
    if missing and not partial:
        first = missing[0]
        raise DataError(
            f"{results.cells / first['cell'] / METRICS}: no such file ({first['reason']}); {len(missing)} of "
            f"{len(cells)} cells are missing. `apet status` tells how far they are; `apet aggregate --partial` goes on "
            "without them."
        )
    gone = {row["cell"] for row in missing}
    records = list(read_records(results.cells, (path for path in cells if path not in gone)))
    frame = tidy(records, Predictions(results.cells))
    _check_plms(records)
    write_tidy(frame, out, name, margins, missing)
    write_tasks((metrics for _, metrics in records), out)
    write_costs(coordinates, results.runs, out)
    listed = pd.DataFrame(missing, columns=[*COORDINATES, "cell", "reason"])
    write_text(out / "missing.csv", listed.to_csv(index=False, lineterminator="\n"))


def _missing(cells: Mapping[str, Mapping[str, str]], results: ResultPaths) -> list[dict[str, str]]:
    """The cells that are not there, with their coordinates and the reason."""
    absent = [path for path in cells if not (results.cells / path / METRICS).is_file()]
    status = read_status(absent, results, time.time())
    reasons = {path: " ".join(str(record.get("error", "failed")).split()) for path, record in status.failed.items()}
    reasons |= dict.fromkeys(status.in_progress, "begun, not finished")
    return [{**cells[path], "cell": path, "reason": reasons.get(path, "not trained")} for path in absent]


def _check_plms(records: list[tuple[str, dict]]) -> None:
    """Cells name the PLM by its recipe; the weights that were really loaded must agree within a model."""
    first: dict[str, tuple[str, str]] = {}
    for path, metrics in records:
        plm, named = metrics["plm"], metrics["cell"]["model"]
        if plm["name"] != named:
            raise CorruptError(f"{path}: of {named}, trained on {plm['name']}. Delete the cell and run again.")
        cell, content = first.setdefault(plm["name"], (path, plm["content"]))
        if plm["content"] != content:
            raise CorruptError(
                f"{path}: trained on other weights of {plm['name']} ({plm['content'][:10]}) "
                f"than {cell} ({content[:10]}). Delete the cells of one of them and run again."
            )


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


SPLIT = "test"
"""Lengths and balance are shown of the split that is scored; every cell's record has the others too."""


def tasks_table(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """A row for each task and PLM, from the cells' records: task, model, metric, rows of each split, the rarest and the
    commonest label's share of the test split (empty in generation), chance (fraction), tokens of a test row with its
    prompt (mean, longest), and the share of test rows whose text was cut.
    """
    rows = {}
    for record in records:
        task, model = record["task"], record["plm"]["name"]
        rows[task["name"], model] = {
            "task": task["name"],
            "model": model,
            "metric": task["metric"],
            **task["rows"],
            **_balance(task["label_counts"][SPLIT]),
            "chance": max(task["chance"], task["majority"] or 0),
            "mean_tokens": task["lengths"][SPLIT]["mean"],
            "longest_tokens": task["lengths"][SPLIT]["longest"],
            "truncated": task["truncated"][SPLIT],
        }
    return pd.DataFrame([rows[key] for key in sorted(rows)])


def write_tasks(records: Iterable[Mapping[str, Any]], folder: Path) -> None:
    """Write `tasks_table` to `tasks.csv`."""
    write_text(folder / "tasks.csv", tasks_table(records).to_csv(index=False, lineterminator="\n", float_format="%.4g"))


def _balance(counts: Mapping[str, int]) -> dict[str, float | None]:
    shares = [count / sum(counts.values()) for count in counts.values()]
    return {"rarest_label": min(shares, default=None), "commonest_label": max(shares, default=None)}
