"""The tidy table: one typed row a replicate, the only input of statistics, tables and figures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pandas as pd

from apet.analysis.columns import COLUMNS, METRICS, SCHEMA, Column
from apet.analysis.predictions import Predictions
from apet.errors import DataError
from apet.record import read_record

OUTCOMES = ("ok", "diverged")
COORDINATES = ["model", "task", "placement", "budget", "draw", "rerun"]
ORDER = ["family", "non_embedding", "model", "task", "placement", "tunable", "budget", "draw", "rerun"]
FRACTIONS = ("score", "validation_score", "chance", "majority")
KINDS: dict[str, tuple[Any, str]] = {
    "str": (str, "a string"),
    "int64": (int, "an integer"),
    "Int64": (int, "an integer"),
    "float64": ((int, float), "a number"),
}


def read_records(root: Path, cells: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each cell's path relative to `root` with its record. Raises as `read_record`."""
    for cell in cells:
        yield cell, read_record(root / cell, cell)


def tidy(
    records: Iterable[tuple[str | PurePath, Mapping[str, Any]]], predictions: Predictions | None = None
) -> pd.DataFrame:
    """One row a replicate, columns and dtypes of `SCHEMA`, sorted by coordinates whatever the order of the records.

    predictions: where the column `rows` is from; without them its arrays are empty. Raises DataError, naming file and
    key, for a missing key, a wrong type, a score outside [0, 1], or two replicates that share their coordinates, which
    every mean would mix up in silence; and as `Predictions.rows`.
    """
    rows = []
    for cell, metrics in records:
        path = PurePath(cell).as_posix()
        found = list(_rows(path, metrics))
        scores = predictions.rows(path, metrics, found) if predictions else [np.empty(0, np.float32)] * len(found)
        rows += [row | {"rows": values} for row, values in zip(found, scores, strict=True)]
    if not rows:
        raise DataError("no replicate: the study has no finished cell to aggregate.")
    frame = pd.DataFrame(rows, columns=list(SCHEMA)).astype(SCHEMA)
    doubled = frame[frame.duplicated(COORDINATES, keep=False)].sort_values(COORDINATES)
    if len(doubled):
        first = doubled.iloc[0][COORDINATES].to_dict()
        cells = ", ".join(sorted(doubled.cell.unique())[:2])
        raise DataError(f"{cells}: two replicates share the coordinates {first}; a study holds each once.")
    return frame.sort_values(ORDER, ignore_index=True)


def _rows(cell: str, metrics: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    where = f"{cell}/metrics.json"
    replicates = metrics.get("replicates")
    if not isinstance(replicates, list) or not replicates:
        raise DataError(f"{where}: key 'replicates' must be a list of at least one replicate.")
    for index, replicate in enumerate(replicates):
        record = {**metrics, "replicate": replicate}
        row = {c.name: _value(record, c, f"{where}: replicate {index}") for c in COLUMNS if c.key}
        if row["parameters"] <= 0:
            raise DataError(f"{where}: key 'plm.parameters' is {row['parameters']}; allowed: above 0.")
        others = _metrics(replicate, f"{where}: replicate {index}")
        if row["outcome"] == "diverged":  # the record's are of the θ before, perhaps of an untrained one
            row, others = row | dict.fromkeys(("score", "test_loss")), dict.fromkeys(others)
        yield {**row, **others, "share": row["tunable"] / row["parameters"], "cell": cell}


def _metrics(replicate: Mapping[str, Any], where: str) -> dict[str, float | None]:
    """Every metric of the test split by name, None where the task does not ask for it."""
    found = replicate["test"].get("metrics", {})
    for name, value in found.items():
        if name not in METRICS or not isinstance(value, float | int) or not 0 <= value <= 1:
            raise DataError(
                f"{where}: test.metrics has {name!r}: {value!r}; allowed: fractions of {', '.join(METRICS)}."
            )
    return {name: found.get(name) for name in METRICS}


def _value(record: Mapping[str, Any], column: Column, where: str) -> Any:
    """The value at a dotted key, checked against the column's dtype and range."""
    value: Any = record
    for part in column.key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise DataError(f"{where}: key {column.key!r} is missing.")
        value = value[part]
    if value is None and (column.empty == "always" or column.empty == _outcome(record)):
        return None
    kind, wanted = KINDS[column.dtype]
    if not isinstance(value, kind) or isinstance(value, bool) or (isinstance(value, float) and math.isnan(value)):
        raise DataError(f"{where}: key {column.key!r} is {value!r}; allowed: {wanted}.")
    if column.name in FRACTIONS and not 0 <= value <= 1:
        raise DataError(f"{where}: key {column.key!r} is {value!r}; allowed: a fraction from 0 to 1.")
    if column.name == "outcome" and value not in OUTCOMES:
        raise DataError(f"{where}: key {column.key!r} is {value!r}; allowed: {', '.join(OUTCOMES)}.")
    return value


def _outcome(record: Mapping[str, Any]) -> Any:
    replicate = record["replicate"]
    return replicate.get("outcome") if isinstance(replicate, Mapping) else None
