"""Rows in files of this machine: a folder with a file for each split, or one file that is split here."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import AfterValidator, ValidationInfo, model_validator
from pydantic.dataclasses import dataclass

from apet.core.hashing import file_digest, file_stamp
from apet.core.validation import CLOSED, DISTINCT, LIST, Line
from apet.core.yaml_loader import is_path
from apet.data.readers import NOT_UTF8, encoding_of, read_table
from apet.data.schema import Record, SourceConfig, check_unique
from apet.errors import DataError, error_context, truncated_repr, unknown_name

ONE_A_LINE = "Write each row as an object in a line of its own."
CONVERT = (
    "Convert other formats: `pandas.read_json(…).to_parquet('train.parquet')`, or "
    "`datasets.load_from_disk(…)['train'].to_parquet('train.parquet')`."
)
FORMATS = ("jsonl", "csv", "tsv", "parquet")  # csv with quotation marks, tsv without


def _path(value: str, info: ValidationInfo) -> str:
    """Resolve a path against the folder of the task file, which is the validation's context."""
    path = (info.context or Path()) / value
    if not is_path(path):
        raise ValueError(f"expected a path, got {truncated_repr(value)}.")
    return str(path)


@dataclass(frozen=True, kw_only=True, config=CLOSED)
class LocalSource(SourceConfig):
    """Files of this machine: either a folder or one file."""

    kind: ClassVar[str] = "local"

    file: Annotated[Line, AfterValidator(_path)] | None = None
    """A jsonl, csv, tsv or parquet file with all rows, which are split by a hash of their texts."""
    folder: Annotated[Line, AfterValidator(_path)] | None = None
    """A folder with a file for each split: train.csv, …"""
    column_names: Annotated[tuple[Line, ...], LIST, DISTINCT] = ()
    """Names of all columns, for csv and tsv files without a header row."""

    @model_validator(mode="after")
    def _check(self) -> LocalSource:
        if (self.file is None) == (self.folder is None):
            raise ValueError("expected either file or folder.")
        return self

    def identity(self, splits: Mapping[str, str]) -> dict[str, Any]:
        """Return the SHA-256 of each split's file: another content is another source, another path is not."""
        digests = {split or "all": _digest(path, file_stamp(path)) for split, path in self._files(splits)}
        names = {"column_names": list(self.column_names)} if self.column_names else {}
        return {"kind": self.kind, "files": digests, **names, **self.mapping()}

    def records(self, task: str, splits: Mapping[str, str], wheels_folder: Path) -> Iterator[Record]:
        """Yield the rows of all files. Raises DataError, with file and line, for a file that is not in its format."""
        for split, path in self._files(splits):
            read = {"jsonl": _jsonl, "parquet": _parquet}.get(path.suffix[1:])
            header = "" if read or self.column_names else f"{path}, line 1"
            for location, values in read(path) if read else _delimited(path, self.column_names):
                yield Record(values, split, location, header=header)

    def notes(self, splits: Mapping[str, str]) -> list[str]:
        """Describe the files beside the splits that are not read."""
        known = {path.name for _, path in self._files(splits)}
        paths = sorted(Path(self.folder).iterdir()) if self.folder else []
        unused = [path.name for path in paths if path.suffix[1:] in FORMATS and path.name not in known]
        listed = ", ".join(unused[:10]) + (", …" if len(unused) > 10 else "")
        example = f"`splits: {{validation: {Path(unused[0]).stem}}}`" if unused else ""
        return [f"{self.folder}: unused: {listed}. Name the file of a split by {example}"] if unused else []

    def _files(self, splits: Mapping[str, str]) -> list[tuple[str | None, Path]]:
        """(split, file) for each file. Raises DataError for a missing or an ambiguous one."""
        if self.file:
            path = Path(self.file)
            if path.suffix[1:] not in FORMATS:
                raise DataError(f"{unknown_name('format', path.suffix[1:], FORMATS, str(path))} {CONVERT}")
            if not path.is_file():
                raise DataError(f"local.file: {path}: no such file. A relative path starts at the task file's folder.")
            return [(None, path)]
        files: list[tuple[str | None, Path]] = []
        folder = Path(self.folder or "")
        for split, theirs in splits.items():
            paths = [path for form in FORMATS if is_path(path := folder / f"{theirs}.{form}") and path.is_file()]
            if len(paths) > 1:
                raise DataError(f"{paths[0]}: duplicate split, also in {paths[1].name}. Remove one of them.")
            files += [(split, path) for path in paths]
        if "train" not in dict(files):
            formats = f"{', '.join(FORMATS)}. {CONVERT}"
            raise DataError(f"{folder}: no such file: {splits['train']}.* in one of the formats {formats}")
        return files


@cache
def _digest(path: Path, stamp: tuple[int, ...]) -> str:
    return file_digest(path)


def _jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            location = f"{path}, line {number}"
            try:
                with error_context(location):
                    values = json.loads(line, object_pairs_hook=_object)
            except UnicodeError:
                raise DataError(f"{location}: {NOT_UTF8}") from None
            except (ValueError, RecursionError) as error:
                starts = line.lstrip()[:1] in ("[", "{", b"[", b"{")
                hint = f" {ONE_A_LINE}" if number == 1 and starts else ""
                raise DataError(f"{location}: expected JSON: {error}.{hint}") from error
            if not isinstance(values, dict):
                raise DataError(f"{location}: expected an object, got {truncated_repr(values)}. {ONE_A_LINE}")
            yield location, values


def _lines(path: Path) -> Iterator[bytes | str]:
    """Yield the lines of a file: bytes, or the texts of a file in UTF-16."""
    with open(path, "rb") as content:
        encoding = encoding_of(content)
        try:
            yield from content if encoding != "utf-16" else io.TextIOWrapper(content, encoding, newline="\n")
        except UnicodeError:
            raise DataError(f"{path}: {NOT_UTF8}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    check_unique("key", [key for key, _ in pairs])
    return dict(pairs)


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    try:
        table = pq.ParquetFile(path)
        with error_context(path):
            check_unique("column", table.schema_arrow.names)
        for batch in table.iter_batches(1000):
            batch.validate(full=True)  # text in a parquet file is not checked to be UTF-8 when it is read
            for values in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", values
    except LookupError as error:
        raise DataError(f"{path}: cannot be read as parquet: unknown time zone {error}.") from error
    except (OSError, ValueError, OverflowError, pa.ArrowException) as error:  # a date after the year 9999, too
        raise DataError(f"{path}: cannot be read as parquet: {error}") from error


def _delimited(path: Path, column_names: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    tab = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    with open(path, "rb") as file:
        dialect = tab if path.suffix == ".tsv" else {"strict": True}
        yield from read_table(file, str(path), column_names=column_names, **dialect)
