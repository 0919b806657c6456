"""Parquet and JSON files of a prepared folder: the same bytes on every run, checked when read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from apet.core.records import check_files, read_json_record
from apet.data.splits import normalise
from apet.errors import DataError, first_line

if TYPE_CHECKING:  # importing it takes a second
    import pandas as pd


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


RECORD = "task.json"


ANSWERS = {
    "classification": pa.field("label", pa.int64()),
    "generation": pa.field("targets", pa.list_(pa.field("element", pa.string()))),  # as parquet names it
}


def read_split(folder: Path, split: str) -> pd.DataFrame:
    """Read a prepared split.

    Args:
        folder: A prepared folder.
        split: train, validation or test.

    Returns:
        Columns id (str), the text columns (str), and label (int64) or targets (arrays of str).

    Raises:
        DataError: If the split is missing, or has other columns than task.json says.
        CorruptError: If the file has another checksum than in task.json.
    """
    record = read_task(folder)
    try:
        schema, files = (
            split_schema(record["type"], record["text_columns"]),
            {split_file(split): record["files"][split_file(split)]},
        )
    except (KeyError, TypeError):
        raise DataError(f"{folder / RECORD}: expected the record of a prepared task. {_fix(folder)}") from None
    check_files(folder, files, RECORD, _fix(folder))
    return read_table(folder / split_file(split), schema)


def read_task(folder: Path, digest: str | None = None) -> dict[str, Any]:
    """Read the record of a prepared folder.

    Args:
        folder: A prepared folder.
        digest: The `task_digest` that it must have. None: any.

    Returns:
        The values of task.json.

    Raises:
        DataError: If it is missing, or has another digest.
        CorruptError: If its checksum is wrong.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder. Prepare the task first (`apet prepare-task`, or Snakemake).")
    record = read_json_record(folder / RECORD, _fix(folder))
    if digest not in (None, record.get("task_digest")):
        raise DataError(
            f"{folder / RECORD}: expected the task, source, rows and seed of the study, got those of another one "
            f"(task {record.get('task')!r}). {_fix(folder)}"
        )
    return record


def held_out_texts(folder: Path) -> Iterator[str]:
    """Yield the normalised texts and references of a prepared folder's validation and test rows."""
    for split in ("validation", "test"):
        table = read_split(folder, split)
        for column in [*read_task(folder)["text_columns"], *(["targets"] if "targets" in table else [])]:
            for cell in table[column]:
                yield from (normalise(text) for text in ([cell] if isinstance(cell, str) else cell))


def _fix(folder: Path) -> str:
    return f"Delete {folder} and prepare the task again (`apet prepare-task`, or Snakemake): its rows are the same."


def split_file(split: str) -> str:
    """Return the file name of a split."""
    return f"{split}.parquet"


def split_schema(kind: str, text_columns: Sequence[str]) -> pa.Schema:
    """Return the columns of a split of a task type, `classification` or `generation`."""
    return pa.schema([("id", pa.string()), *((name, pa.string()) for name in text_columns), ANSWERS[kind]])
