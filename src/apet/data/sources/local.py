"""Rows in files of this machine: a folder with a file a split, or one file that is split here."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from apet.core.hashing import file_digest
from apet.core.yaml_loader import check_keys, is_path
from apet.data.readers import read_table
from apet.data.schema import Record, Task, check_once
from apet.errors import ConfigError, DataError, error_context, truncated_repr, unknown_name

FORMS = ("jsonl", "csv", "tsv", "parquet")  # csv with quotation marks, tsv without


def check(spec: Any, where: str, folder: Path) -> dict[str, Any]:
    """The spec of a YAML in `folder`, its path relative to it: `folder: …` (train.csv, …) or `file: rows.csv`."""
    key = "file" if isinstance(spec, dict) and "file" in spec else "folder"
    check_keys(spec, (key,), ("column_map", "label_map"), where)
    if not isinstance(spec[key], str) or not is_path(folder / spec[key]):
        raise ConfigError(f"{where}: {key} is {truncated_repr(spec[key])}; it must be a path.")
    return {**spec, key: str(folder / spec[key])}


def identity(spec: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """Split → SHA-256 of its file: a change of content is another source, a change of place is not."""
    return {"files": {split or "all": _digest(path, path.stat().st_mtime_ns) for split, path in _files(spec, task)}}


def records(spec: Mapping[str, Any], task: Task, wheels_folder: Path) -> Iterator[Record]:
    """The rows of all files. DataError naming file and line for one that is not in its form."""
    for split, path in _files(spec, task):
        read = {"jsonl": _jsonl, "parquet": _parquet}.get(path.suffix[1:], _delimited)
        for where, values in read(path):
            yield Record(values, split, where)


def _files(spec: Mapping[str, Any], task: Task) -> list[tuple[str | None, Path]]:
    """(side, file) of each split that is there. DataError if none is, or two forms of one are."""
    if "file" in spec:
        path = Path(spec["file"])
        if path.suffix[1:] not in FORMS:
            raise DataError(unknown_name("form", path.suffix[1:], FORMS, str(path)))
        if not path.is_file():
            raise DataError(f"task {task.name}: {path}: there is no such file.")
        return [(None, path)]
    found: list[tuple[str | None, Path]] = []
    for side, split in task.splits.items():
        paths = [Path(spec["folder"]) / f"{split}.{form}" for form in FORMS]
        paths = [path for path in paths if is_path(path) and path.is_file()]
        if len(paths) > 1:
            raise DataError(f"task {task.name}: {paths[0]} and {paths[1].name}: which of them is the split?")
        found += [(side, path) for path in paths]
    if "train" not in dict(found):
        forms, train = ", ".join(FORMS), task.splits["train"]
        raise DataError(f"task {task.name}: {spec['folder']}: has no {train}.* in one of the forms {forms}.")
    return found


@cache
def _digest(path: Path, changed: int) -> str:
    return file_digest(path)


def _jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}, line {number}"
            if not line.strip():
                continue
            try:
                with error_context(where):
                    values = json.loads(line, object_pairs_hook=_object)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{where}: is not JSON: {error}.") from error
            if not isinstance(values, dict):
                raise DataError(f"{where}: holds {values!r}, not an object.")
            yield where, values


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    check_once("key", [key for key, _ in pairs])
    return dict(pairs)


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    try:
        table = pq.ParquetFile(path)
        with error_context(path):
            check_once("column", table.schema_arrow.names)
        for batch in table.iter_batches(1000):
            batch.validate(full=True)  # text in a parquet file is not checked to be UTF-8 when it is read
            for values in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", values
    except LookupError as error:
        raise DataError(f"{path}: cannot be read as parquet: it has times of the unknown zone {error}.") from error
    except (OSError, ValueError, OverflowError, pa.ArrowException) as error:  # a date after the year 9999, too
        raise DataError(f"{path}: cannot be read as parquet: {error}") from error


def _delimited(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    tab = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    with open(path, "rb") as file:
        yield from read_table(file, str(path), **(tab if path.suffix == ".tsv" else {"strict": True}))
