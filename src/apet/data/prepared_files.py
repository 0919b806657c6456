"""Parquet and JSON files of a prepared folder: written with the same bytes on every run, checked when read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from apet.errors import DataError


def write_table(path: Path, columns: Mapping[str, Any], schema: pa.Schema) -> None:
    """Parquet without timestamps or pandas metadata, so that equal columns are equal files under one pyarrow."""
    pq.write_table(pa.table(columns, schema), path, compression="zstd", version="2.6")


def write_batches(path: Path, batches: Iterable[dict[str, list]], schema: pa.Schema) -> None:
    """`write_table` for columns that come some rows at a time, each time a row group, so that few are in memory."""
    with pq.ParquetWriter(path, schema, compression="zstd", version="2.6") as writer:
        for columns in batches:
            writer.write_table(pa.table(columns, schema))


def read_table(path: Path, schema: pa.Schema) -> pd.DataFrame:
    """The table in a parquet file. DataError if it is absent, damaged, or has other columns than `schema`."""
    try:
        table = pq.read_table(path)
        table.validate(full=True)  # text in a parquet file is not checked to be UTF-8 when it is read
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as parquet: {error}") from error
    found, expected = ({field.name: str(field.type) for field in fields} for fields in (table.schema, schema))
    if found != expected:
        raise DataError(f"{path}: has the columns {found}, expected {expected}.")
    return table.to_pandas()


def read_record(path: Path) -> dict[str, Any]:
    """The object in a JSON file. DataError if it is absent or no JSON object."""
    try:
        record = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(record, dict):
        raise DataError(f"{path}: holds {type(record).__name__}, not an object.")
    return record
