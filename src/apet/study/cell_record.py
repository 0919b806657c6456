"""A finished cell's folder: its files, and the record that names their digests and its own. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from apet.core.hashing import DIGEST, file_digest, has_valid_checksum
from apet.core.records import CHANGED, check_files, read_object, write_json_record
from apet.errors import CorruptError, DataError, unknown_name
from apet.study.paths import ResultPaths

FORMAT = 2
"""Of the files in a cell's folder; another number is not read. 1: records without a digest of their own."""

THETA, PLANS, PREDICTIONS, METRICS = "theta.safetensors", "plans.json", "predictions.parquet", "metrics.json"
HEADS = "head.safetensors"
"""Trained heads, apart from θ; only in cells of a PLM that has one."""

NEEDED = {DIGEST, "path", "files"}
"""Keys without which a record is not one."""

HASHED = re.compile(r".+-[0-9a-f]{10}")
"""Name of a cell's folder, which only a folder of that cell has."""

BEGINNING = re.compile(rb'\{\s*"format": ?(\d+)\b')
"""Of a record, as far as its format."""


def write_record(folder: Path, cell: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """Write METRICS of a cell, given by its path, with the digests of the files that are there already."""
    files = {
        name: file_digest(folder / name) for name in (THETA, HEADS, PLANS, PREDICTIONS) if (folder / name).is_file()
    }
    return write_json_record(folder / METRICS, {"format": FORMAT, "path": cell, **record, "files": files})


def read_record(folder: Path, cell: str | None = None) -> dict[str, Any]:
    """The record of a finished cell, which is what its own digest says; its other files are not looked at.

    cell: the path that the record must be of; None where the folder's own name says enough. Raises DataError for a
    record that is not there or of another format, CorruptError for one that is damaged or another cell's.
    """
    place, remedy = folder / METRICS, f"Delete {folder} to train again."
    if not place.is_file():
        raise DataError(f"{place}: no such file; the cell has not finished. `snakemake cells` trains what is missing.")
    record = read_object(place, remedy)
    if DIGEST in record and not has_valid_checksum(record):
        raise CorruptError(f"{place}: {CHANGED} {remedy}")
    if record.get("format") != FORMAT:
        raise DataError(f"{place}: {other_format(record.get('format'))}")
    if lacking := NEEDED - record.keys():
        raise CorruptError(f"{place}: damaged: key {min(lacking)!r} is missing. {remedy}")
    wanted = cell or (folder.name if HASHED.fullmatch(folder.name) else "")
    if not f"/{record['path']}".endswith(f"/{wanted}" if wanted else ""):
        raise CorruptError(f"{place}: the record of another cell, {record['path']}. {remedy}")
    return record


def is_complete(folder: Path, cell: str | None = None) -> bool:
    """Whether a cell's folder is whole and its files are what its record says. cell: its path, as in `read_record`.

    Raises as `read_record` where there is a record, and CorruptError where a file differs from its digest: such a cell
    must be deleted by hand, not overwritten in silence.
    """
    if not (folder / METRICS).is_file():
        return False
    for name, digest in read_record(folder, cell)["files"].items():
        if not (folder / name).is_file():
            return False
        if file_digest(folder / name) != digest:
            raise CorruptError(
                f"{folder / name}: damaged: not the bytes that {METRICS} names. Delete {folder} to train again."
            )
    return True


def format_of(folder: Path) -> int | None:
    """The format of a finished cell from the first bytes of its record alone; None where these are of no record."""
    try:
        with open(folder / METRICS, "rb") as file:
            found = BEGINNING.match(file.read(64))
    except OSError:
        return None
    return int(found[1]) if found else None


def other_format(found: object) -> str:
    """What to say of a record whose format is not FORMAT."""
    if type(found) is not int:
        return f"not the record of a cell: its format is {found!r}, and this version of apet reads {FORMAT}."
    if found > FORMAT:
        writer, remedy = "a newer", "Install that version, or put the cell aside to train it again."
    else:
        writer, remedy = "an older", "`apet archive` puts such cells into .attic; then they are trained again."
    return f"of format {found}, which {writer} version of apet wrote; this one reads {FORMAT}. {remedy}"


def find_cell(cell: str, results: ResultPaths) -> Path:
    """The folder of a finished cell, which is named as model/task/name or by its folder's own path.

    Raises DataError, with the nearest names, where there is none.
    """
    for folder in (results.cells / cell, Path(cell)):
        if (folder / METRICS).is_file():
            return folder
    known = [path.parent.relative_to(results.cells).as_posix() for path in results.cells.glob(f"*/*/[!.]*/{METRICS}")]
    if not known:
        raise DataError(f"{cell}: no cell is finished below {results.cells}, nor does a folder of this path hold one.")
    raise DataError(unknown_name("cell", cell, known, str(results.cells)))


@contextmanager
def reading(folder: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """A cell's record and its plans' (replicate -> record), to be read in here.

    Raises as `read_record`, DataError for a key that is missing in the record, CorruptError for other plans than it
    names.
    """
    record, remedy = read_record(folder), f"Delete {folder} to train again."
    try:
        check_files(folder, {PLANS: record["files"][PLANS]}, METRICS, remedy)
        yield record, read_object(folder / PLANS, remedy)
    except (KeyError, TypeError, AttributeError) as error:
        said = f"key {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{folder / METRICS}: not the record of a finished cell ({said}).") from None
