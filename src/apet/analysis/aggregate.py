"""Aggregation of a study's cells into the tidy table and the tables of tasks, costs and missing cells."""

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
from apet.core.text import plural
from apet.errors import CorruptError, DataError
from apet.study.cell_record import METRICS
from apet.study.paths import ResultPaths
from apet.study.status import read_status

COORDINATES = ("model", "task", "placement", "budget")


def aggregate(study: Mapping[str, Any], results: ResultPaths, out: Path, partial: bool = False) -> None:
    """Write a study's tidy table, `tasks.csv`, `costs.csv` and `missing.csv` from its cells.

    Args:
        study: the record of the study.
        results: folders of cells, runs, failures and checkpoints.
        out: destination.
        partial: whether to go on without missing cells.

    Raises:
        DataError: a cell is missing and `partial` is false; and as `tidy`.
        CorruptError: cells of one model were trained on different weights.
    """
    cells, margins = dict(sorted(study["cells"].items())), AnalysisConfig(**study["analysis"])
    coordinates = {path: {key: cells[path][key] for key in COORDINATES} for path in cells}
    missing = _missing(coordinates, results)
    if missing and not partial:
        first, count = missing[0], f"{len(missing):,} of {plural(len(cells), 'cell')}"
        raise DataError(
            f"{results.cells / first['cell_path'] / METRICS}: no such file ({first['reason']}); {count} missing. "
            "Train them (`apet status` lists them), or add `--allow-missing`."
        )
    absent = {row["cell_path"] for row in missing}
    records = list(read_records(results.cells, (path for path in cells if path not in absent)))
    frame = tidy(records, Predictions(results.cells))
    _check_models(records)
    write_tidy(frame, out, study["study"], margins, missing, study["name"])
    write_tasks((cell_record for _, cell_record in records), out)
    write_costs(coordinates, results.runs, out)
    table = pd.DataFrame(missing, columns=[*COORDINATES, "cell_path", "reason"])
    write_text(out / "missing.csv", table.to_csv(index=False, lineterminator="\n"))


def _missing(cells: Mapping[str, Mapping[str, str]], results: ResultPaths) -> list[dict[str, str]]:
    """Return the missing cells with their coordinates and the reason."""
    absent = [path for path in cells if not (results.cells / path / METRICS).is_file()]
    status = read_status(absent, results, time.time())
    reasons = {path: " ".join(str(record.get("error", "failed")).split()) for path, record in status.failed.items()}
    reasons |= dict.fromkeys(status.in_progress, "started, not finished")
    return [{**cells[path], "cell_path": path, "reason": reasons.get(path, "not trained")} for path in absent]


def _check_models(records: list[tuple[str, dict]]) -> None:
    """Check that all cells of a model were trained on the same weights: names alone do not identify them."""
    first: dict[str, tuple[str, str]] = {}
    for path, record in records:
        plm, model = record["plm"], record["cell"]["model"]
        if plm["name"] != model:
            raise CorruptError(f"{path}: expected PLM {model}, got {plm['name']}. Delete the cell and train again.")
        first_path, content = first.setdefault(model, (path, plm["content"]))
        if plm["content"] != content:
            raise CorruptError(
                f"{path}: trained on weights of {model} ({plm['content'][:10]}) that differ from those of "
                f"{first_path} ({content[:10]}). Delete the cells of one of them and train again."
            )


COST_COLUMNS = ("seconds", "cpu_seconds", "peak_memory_mb", "resumed", "finished")
MACHINE_COLUMNS = ("host", "machine", "processor", "device", "devices", "threads", "dtype")
VERSIONS = "versions"


def costs_table(cells: Mapping[str, Mapping[str, Any]], runs: Path) -> pd.DataFrame:
    """Build the table of what each cell cost and on which machine it ran.

    Args:
        cells: coordinates by path of the cell.
        runs: folder of the run records.

    Returns:
        One row per cell: path, coordinates, wall and CPU seconds, peak memory of the process (MB), whether the run was
        resumed, when it finished, host, machine type and versions of libraries (`versions.*`). Values are empty if the
        cell has no readable run record.
    """
    runs_by_cell = {path: _read_run(runs / f"{path}.json") for path in cells}
    libraries = sorted({name for run in runs_by_cell.values() for name in run.get(VERSIONS) or {}})
    rows = []
    for path, coordinates in cells.items():
        run = runs_by_cell[path]
        values = {name: run.get(name) for name in (*COST_COLUMNS, *MACHINE_COLUMNS)}
        versions = {f"{VERSIONS}.{name}": (run.get(VERSIONS) or {}).get(name) for name in libraries}
        rows.append({"cell_path": path, **coordinates, **values, **versions})
    return pd.DataFrame(rows).convert_dtypes()


def write_costs(cells: Mapping[str, Mapping[str, Any]], runs: Path, folder: Path) -> None:
    """Write `costs_table` to `costs.csv`."""
    write_text(folder / "costs.csv", costs_table(cells, runs).to_csv(index=False, lineterminator="\n"))


def _read_run(path: Path) -> dict[str, Any]:
    try:
        run = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return run if isinstance(run, dict) else {}


SCORED_SPLIT = "test"


def tasks_table(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Build the table of tasks from the records of cells.

    Args:
        records: records of cells.

    Returns:
        One row per task and PLM: task, model, metric, rows of each split, the shares of the rarest and the commonest
        label in the test split (empty for generation), chance (fraction), tokens of a test row with its prompt (mean,
        longest), and the share of test rows whose text was truncated.
    """
    rows = {}
    for record in records:
        task, model = record["task"], record["plm"]["name"]
        rows[task["name"], model] = {
            "task": task["name"],
            "model": model,
            "metric": task["metric"],
            **task["rows"],
            **_label_shares(task["label_counts"][SCORED_SPLIT]),
            "chance": max(task["chance"], task["majority"] or 0),
            "mean_tokens": task["lengths"][SCORED_SPLIT]["mean"],
            "longest_tokens": task["lengths"][SCORED_SPLIT]["longest"],
            "truncated": task["truncated"][SCORED_SPLIT],
        }
    return pd.DataFrame([rows[key] for key in sorted(rows)])


def write_tasks(records: Iterable[Mapping[str, Any]], folder: Path) -> None:
    """Write `tasks_table` to `tasks.csv`."""
    write_text(folder / "tasks.csv", tasks_table(records).to_csv(index=False, lineterminator="\n", float_format="%.4g"))


def _label_shares(counts: Mapping[str, int]) -> dict[str, float | None]:
    shares = [count / sum(counts.values()) for count in counts.values()]
    return {"rarest_label": min(shares, default=None), "commonest_label": max(shares, default=None)}
