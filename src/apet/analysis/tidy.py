"""The tidy table: one typed row per replicate, and the only input of statistics, tables and figures."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from apet.analysis.columns import CSV_COLUMNS, EMPTY_NOTES, TIDY_COLUMNS, TIDY_SCHEMA, TYPE_NAMES, Column
from apet.analysis.predictions import Predictions
from apet.config.study_config import AnalysisConfig
from apet.core.atomic import write_bytes, write_text
from apet.core.hashing import bytes_digest, has_valid_checksum, with_checksum
from apet.data.label_metrics import LOWEST
from apet.data.task_config import ALL_METRICS
from apet.errors import CorruptError, DataError
from apet.study.cell_record import read_record

OUTCOMES = ("ok", "diverged")
REPLICATE = ["model", "task", "placement", "budget", "plan_index", "seed_index"]
"""Columns that identify a replicate."""
ROW_ORDER = [
    "family", "non_embedding_params", "model", "task", "placement", "trainable_params", "budget", "plan_index",
    "seed_index",
]  # fmt: skip
FRACTIONS = ("test_score", "validation_score", "chance_uniform", "chance_majority")
PYTHON_TYPES: dict[str, tuple[Any, str]] = {
    "str": (str, "a string"),
    "int64": (int, "an integer"),
    "Int64": (int, "an integer"),
    "float64": ((int, float), "a number"),
}


def read_records(root: Path, cells: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each cell's path relative to `root` with its record. Raises as `read_record`."""
    for cell in cells:
        yield cell, read_record(root / cell, cell)


def tidy(
    records: Iterable[tuple[str | PurePath, Mapping[str, Any]]], predictions: Predictions | None = None
) -> pd.DataFrame:
    """Build the tidy table, sorted by coordinates whatever the order of the records.

    Args:
        records: pairs of a cell's path and its record.
        predictions: source of `row_scores`; without it the arrays are empty.

    Returns:
        One row per replicate, with the columns and dtypes of `TIDY_SCHEMA`.

    Raises:
        DataError: missing key, wrong type, score outside [0, 1], duplicate replicate, or no replicate; and as
            `Predictions.row_scores`.
    """
    rows = []
    for cell, record in records:
        path = PurePath(cell).as_posix()
        cell_rows = list(_rows(path, record))
        scores = predictions.row_scores(path, record, cell_rows) if predictions else None
        for index, row in enumerate(cell_rows):
            rows.append(row | {"row_scores": np.empty(0, np.float32) if scores is None else scores[index]})
    if not rows:
        raise DataError("no replicates: the study has no finished cell. Train its cells first.")
    frame = pd.DataFrame(rows, columns=list(TIDY_SCHEMA)).astype(TIDY_SCHEMA)
    duplicates = frame[frame.duplicated(REPLICATE, keep=False)].sort_values(REPLICATE)
    if len(duplicates):
        coordinates = duplicates.iloc[0][REPLICATE].to_dict()
        cells = ", ".join(sorted(duplicates.cell_path.unique())[:2])
        raise DataError(f"{cells}: duplicate replicate {coordinates}. Delete one of the cells.")
    return frame.sort_values(ROW_ORDER, ignore_index=True)


def _rows(cell: str, record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    file = f"{cell}/metrics.json"
    replicates = record.get("replicates")
    if not isinstance(replicates, list) or not replicates:
        raise DataError(f"{file}: replicates: expected a list of at least one replicate. Train the cell again.")
    for index, replicate in enumerate(replicates):
        location = f"{file}: replicate {index}"
        values = {**record, "replicate": replicate}
        row = {column.name: _value(values, column, location) for column in TIDY_COLUMNS if column.key}
        if row["num_params"] <= 0:
            raise DataError(f"{file}: plm.num_params: expected a positive number, got {row['num_params']}.")
        metrics = _metrics(replicate, location)
        if row["outcome"] == "diverged":  # The recorded scores are of an earlier θ, possibly an untrained one.
            row, metrics = row | dict.fromkeys(("test_score", "test_loss")), dict.fromkeys(metrics)
        fraction = row["trainable_params"] / row["num_params"]
        yield {**row, **metrics, "trainable_fraction": fraction, "cell_path": cell}


def _metrics(replicate: Mapping[str, Any], location: str) -> dict[str, float | None]:
    """Return every metric of the test split by name, None if the task does not use it."""
    metrics = replicate["test"].get("metrics", {})
    for name, value in metrics.items():
        if name not in ALL_METRICS or not isinstance(value, float | int) or not LOWEST.get(name, 0) <= value <= 1:
            raise DataError(
                f"{location}: test.metrics: expected fractions of {', '.join(ALL_METRICS)}, got {name!r}: {value!r}."
            )
    return {name: metrics.get(name) for name in ALL_METRICS}


def _value(record: Mapping[str, Any], column: Column, location: str) -> Any:
    """Return the value of a column's dotted key, checked against its dtype and range."""
    value: Any = record
    for part in column.key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise DataError(f"{location}: {column.key}: missing key.")
        value = value[part]
    if value is None and (column.empty == "always" or column.empty == _outcome(record)):
        return None
    python_type, type_name = PYTHON_TYPES[column.dtype]
    lowest = LOWEST.get(record["task"]["metric"], 0) if column.name in FRACTIONS else 0
    expected = ""
    if (
        not isinstance(value, python_type)
        or isinstance(value, bool)
        or (isinstance(value, float) and math.isnan(value))
    ):
        expected = type_name
    elif column.name in FRACTIONS and not lowest <= value <= 1:
        expected = f"a fraction from {lowest:g} to 1"
    elif column.name == "outcome" and value not in OUTCOMES:
        expected = " or ".join(OUTCOMES)
    if expected:
        raise DataError(f"{location}: {column.key}: expected {expected}, got {value!r}.")
    return value


def _outcome(record: Mapping[str, Any]) -> Any:
    replicate = record["replicate"]
    return replicate.get("outcome") if isinstance(replicate, Mapping) else None


TIDY_FORMAT = 1
"""Format of tidy.parquet. Tables of another format are refused."""

METADATA_KEY = b"apet"
"""Key of the Parquet file's metadata: a record with format, study, its name, margins, missing cells and a checksum."""

TIDY_HINT = "Run `apet aggregate` to make it from the cells."


class MissingCells(list):
    """Missing cells in a frame's attrs. pandas deep-copies attrs at every step; this list is shared instead."""

    def __deepcopy__(self, memo: dict) -> MissingCells:
        return self


def write_tidy(
    frame: pd.DataFrame,
    folder: Path,
    study: str,
    margins: AnalysisConfig | None = None,
    missing: Sequence[Mapping[str, str]] = (),
    name: str = "",
) -> None:
    """Write `tidy.parquet`, `tidy.csv` (without `row_scores`) and `tidy_columns.csv` (the meaning of each column).

    Equal tables give equal bytes.

    Args:
        frame: the tidy table.
        folder: destination.
        study: id of the study, kept in the Parquet file's metadata.
        margins: margins of the analysis, kept there too.
        missing: model, task, placement, budget and reason of the study's cells that the table lacks, kept there too.
        name: name of the study, kept there too. Default: the start of its id.
    """
    record = {
        "study": study,
        "name": name or study[:12],
        "margins": asdict(margins or AnalysisConfig()),
        "missing": list(missing),
    }
    metadata = {METADATA_KEY: json.dumps(with_checksum({"format": TIDY_FORMAT, **record}))}
    buffer = io.BytesIO()
    pq.write_table(_table(frame, metadata), buffer, compression="zstd", write_page_checksum=True)
    write_bytes(folder / "tidy.parquet", buffer.getvalue())
    write_text(folder / "tidy.csv", frame[CSV_COLUMNS].to_csv(index=False, lineterminator="\n"))
    columns = [(c.name, TYPE_NAMES[c.dtype], EMPTY_NOTES[c.empty], c.meaning) for c in TIDY_COLUMNS]
    described = pd.DataFrame(columns, columns=["column", "type", "empty", "meaning"])
    write_text(folder / "tidy_columns.csv", described.to_csv(index=False, lineterminator="\n"))


def _table(frame: pd.DataFrame, about: Mapping[bytes, str]) -> pa.Table:
    """Return the Arrow table, with the meaning of each column and the record in its metadata."""
    flat = pa.Table.from_pandas(frame[CSV_COLUMNS], preserve_index=False)
    ends = np.cumsum([0, *frame.row_scores.map(len)])
    values = np.concatenate([*frame.row_scores]).astype(np.float32, copy=False)
    lists = pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), pa.array(values))
    table = flat.append_column("row_scores", lists).select(list(TIDY_SCHEMA))
    fields = [table.field(c.name).with_metadata({"meaning": c.meaning}) for c in TIDY_COLUMNS]
    return table.cast(pa.schema(fields, {**flat.schema.metadata, **about}))


def read_tidy(path: Path) -> pd.DataFrame:
    """Read a tidy table from its Parquet file.

    Args:
        path: tidy.parquet.

    Returns:
        The table. Its `attrs` hold "study" (id), "name", "margins" (dict), "missing" (list of dicts with model, task,
        placement, budget and reason of the cells that the table lacks) and "digest" (SHA-256 of the file).

    Raises:
        DataError: unreadable file, or not a tidy table of this format.
        CorruptError: the file does not match its own checksum.
    """
    table, record, digest = _verified(path)
    columns = sorted({*table.column_names} ^ {*TIDY_SCHEMA})
    if record.get("format") != TIDY_FORMAT or columns:
        raise DataError(
            f"{path}: expected a tidy table of format {TIDY_FORMAT}, got format {record.get('format')!r} with missing "
            f"or unknown columns {', '.join(columns) or 'none'}. {TIDY_HINT}"
        )
    frame = table.replace_schema_metadata(None).to_pandas().astype(TIDY_SCHEMA)
    frame.attrs = {key: record[key] for key in ("study", "name", "margins")}
    frame.attrs |= {"missing": MissingCells(record["missing"]), "digest": digest}
    return frame


def _verified(path: Path) -> tuple[pa.Table, dict[str, Any], str]:
    """Return the table, record and SHA-256 of a Parquet file whose pages and record match their checksums."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). {TIDY_HINT}") from None
    try:
        table = pq.read_table(pa.BufferReader(content), page_checksum_verification=True)
        record = json.loads((table.schema.metadata or {}).get(METADATA_KEY, "{}"))
        valid = len(table.column_names) > 0 and (not record or has_valid_checksum(record))
    except (pa.ArrowException, OSError, ValueError):
        valid = False
    if not valid:
        raise CorruptError(f"{path}: corrupt: wrong checksum, or not a Parquet file. {TIDY_HINT}")
    return table, record, bytes_digest(content)
