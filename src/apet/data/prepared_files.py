"""Parquet and JSON files of a prepared folder: the same bytes on every run, checked when read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from apet.errors import DataError, first_line


def write_table(path: Path, columns: Mapping[str, Any], schema: pa.Schema) -> None:
    """Write parquet without timestamps or pandas metadata: equal columns give equal files with one pyarrow version."""
    pq.write_table(pa.table(columns, schema), path, compression="zstd", version="2.6")


def write_batches(path: Path, batches: Iterable[dict[str, list]], schema: pa.Schema) -> None:
    """Write parquet as `write_table`, one row group for each batch of columns, to save memory."""
    with pq.ParquetWriter(path, schema, compression="zstd", version="2.6") as writer:
        for columns in batches:
            writer.write_table(pa.table(columns, schema))


def read_table(path: Path, schema: pa.Schema) -> pd.DataFrame:
    """Read a parquet file. Raises DataError if it is missing, corrupt, or has other columns than `schema`."""
    try:
        table = pq.read_table(path)
        table.validate(full=True)  # text in a parquet file is not checked to be UTF-8 when it is read
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as parquet: {error}") from error
    columns, expected = ({field.name: str(field.type) for field in fields} for fields in (table.schema, schema))
    if columns != expected:
        raise DataError(f"{path}: expected the columns {expected}, got {columns}.")
    return table.to_pandas()


def read_record(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file. Raises DataError if it is missing or no JSON object."""
    try:
        record = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {first_line(error)}") from error
    if not isinstance(record, dict):
        raise DataError(f"{path}: expected an object, got {type(record).__name__}.")
    return record
