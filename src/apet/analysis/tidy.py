"""The tidy table: one typed row a replicate, the only input of statistics, tables and figures."""

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

from apet.analysis.columns import COLUMNS, EMPTY, FLAT, METRICS, SCHEMA, TYPES, Column
from apet.analysis.predictions import Predictions
from apet.config.study_config import AnalysisConfig
from apet.core.atomic import write_bytes, write_text
from apet.core.hashing import bytes_digest, has_valid_checksum, with_checksum
from apet.errors import CorruptError, DataError
from apet.study.cell_record import read_record

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


FORMAT = 1
"""Format of tidy.parquet. Tables of another format are refused."""

RECORD = b"apet"
"""Key of the Parquet file's metadata: a record with format, study, margins, missing cells and a checksum."""

REMEDY = "`apet aggregate` makes it from the cells."


class Missing(list):
    """Missing cells in a frame's attrs, which pandas copies deeply at every step: thousands are not copied."""

    def __deepcopy__(self, memo: dict) -> Missing:
        return self


def write_tidy(
    frame: pd.DataFrame,
    folder: Path,
    study: str,
    margins: AnalysisConfig | None = None,
    missing: Sequence[Mapping[str, str]] = (),
) -> None:
    """Write `tidy.parquet`, `tidy.csv` without the column `rows`, and `tidy_columns.csv`, what each column means.

    study: its id; missing: model, task, placement, budget and reason of the study's cells that are not in the table.
    With the margins they stand in the Parquet file's metadata. Equal tables give equal bytes.
    """
    record = {"study": study, "margins": asdict(margins or AnalysisConfig()), "missing": list(missing)}
    metadata = {RECORD: json.dumps(with_checksum({"format": FORMAT, **record}))}
    buffer = io.BytesIO()
    pq.write_table(_table(frame, metadata), buffer, compression="zstd", write_page_checksum=True)
    write_bytes(folder / "tidy.parquet", buffer.getvalue())
    write_text(folder / "tidy.csv", frame[FLAT].to_csv(index=False, lineterminator="\n"))
    columns = [(c.name, TYPES[c.dtype], EMPTY[c.empty], c.meaning) for c in COLUMNS]
    described = pd.DataFrame(columns, columns=["column", "type", "empty", "meaning"])
    write_text(folder / "tidy_columns.csv", described.to_csv(index=False, lineterminator="\n"))


def _table(frame: pd.DataFrame, about: Mapping[bytes, str]) -> pa.Table:
    """The frame for Parquet: each column with its meaning, and what the whole is about."""
    flat = pa.Table.from_pandas(frame[FLAT], preserve_index=False)
    ends = np.cumsum([0, *frame.rows.map(len)])
    values = np.concatenate([*frame.rows]).astype(np.float32, copy=False)
    lists = pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), pa.array(values))
    table = flat.append_column("rows", lists).select(list(SCHEMA))
    fields = [table.field(c.name).with_metadata({"meaning": c.meaning}) for c in COLUMNS]
    return table.cast(pa.schema(fields, {**flat.schema.metadata, **about}))


def read_tidy(path: Path) -> pd.DataFrame:
    """A tidy table from its parquet file. `attrs`: "study", its id; "margins", dict; "missing", a list of the cells
    that are not in it, dicts of model, task, placement, budget and reason; "digest", the SHA-256 of the file. DataError
    if it is not a tidy table, or one of another version; CorruptError if it is damaged.
    """
    table, record, digest = _verified(path)
    columns = sorted({*table.column_names} ^ {*SCHEMA})
    if record.get("format") != FORMAT or columns:
        raise DataError(
            f"{path}: expected a tidy table of format {FORMAT}, got format {record.get('format')!r} with missing or "
            f"unknown columns {', '.join(columns) or 'none'}. {REMEDY}"
        )
    frame = table.replace_schema_metadata(None).to_pandas().astype(SCHEMA)
    frame.attrs = {key: record[key] for key in ("study", "margins")}
    frame.attrs |= {"missing": Missing(record["missing"]), "digest": digest}
    return frame


def _verified(path: Path) -> tuple[pa.Table, dict[str, Any], str]:
    """Return the table, record and SHA-256 of a Parquet file whose pages and record match their checksums."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). {REMEDY}") from None
    try:
        table = pq.read_table(pa.BufferReader(content), page_checksum_verification=True)
        record = json.loads((table.schema.metadata or {}).get(RECORD, "{}"))
        valid = len(table.column_names) > 0 and (not record or has_valid_checksum(record))
    except (pa.ArrowException, OSError, ValueError):
        valid = False
    if not valid:
        raise CorruptError(f"{path}: corrupt: wrong checksum, or not a Parquet file. {REMEDY}")
    return table, record, bytes_digest(content)
