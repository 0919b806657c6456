"""The folder of a finished cell: its files, and the record with their digests. No torch."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from apet.core.hashing import DIGEST, file_digest
from apet.core.records import check_files, read_json_record, read_object, write_json_record
from apet.errors import CorruptError, DataError, unknown_name
from apet.study.paths import ResultPaths

FORMAT = 1
"""Format of the files in a cell's folder. Cells of another format are refused."""

THETA, PLANS, PREDICTIONS, METRICS = "theta.safetensors", "plans.json", "predictions.parquet", "metrics.json"
HEADS = "head.safetensors"
"""Classification heads, apart from θ. Missing if the PLM uses its LM head."""
INDICES = "indices.safetensors"
"""Chosen scalars of informed plans, which follow from weights and rows. Missing for other plans, which a seed makes
again."""

WEIGHTS = (THETA, HEADS, INDICES)
"""Files that published cells come without."""
WITHOUT_WEIGHTS = "without_weights"
"""Empty file in a cell's folder that may lack WEIGHTS. In any other folder a missing file means an unfinished cell."""

REQUIRED = {DIGEST, "path", "files"}
"""Keys that every record has."""

RUN_HINT = "Run `snakemake --profile workflow/profiles/local cells`."
"""How to train the cells of the study in params.yaml."""

HASHED = re.compile(r".+-[0-9a-f]{10}")
"""Pattern of a cell folder's name, which ends with a hash of the cell."""


def write_record(folder: Path, cell: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """Write a cell's METRICS, which marks the cell as finished.

    Args:
        folder: The cell's folder. It has all its other files already.
        cell: The cell's path.
        record: The record's other keys.

    Returns:
        The record as it was written, with format, path, the files' digests and a checksum.
    """
    files = {
        name: file_digest(folder / name)
        for name in (THETA, HEADS, INDICES, PLANS, PREDICTIONS)
        if (folder / name).is_file()
    }
    return write_json_record(folder / METRICS, {"format": FORMAT, "path": cell, **record, "files": files})


def read_record(folder: Path, cell: str | None = None) -> dict[str, Any]:
    """Read the record of a finished cell and verify its checksum. The cell's other files are not read.

    Args:
        folder: The cell's folder.
        cell: The path that the record must have. None: the folder's name decides.

    Returns:
        The record.

    Raises:
        DataError: The record is missing or of another format.
        CorruptError: The record is corrupt, or of another cell.
    """
    path, hint = folder / METRICS, _hint(folder)
    if not path.is_file():
        raise DataError(f"{path}: no such file: the cell is not finished. {RUN_HINT}")
    record = read_json_record(path, hint)
    if record.get("format") != FORMAT:
        raise DataError(f"{path}: format: expected {FORMAT}, got {record.get('format')!r}. {hint}")
    if missing := REQUIRED - record.keys():
        raise CorruptError(f"{path}: corrupt: missing key {min(missing)!r}. {hint}")
    if not isinstance(record["files"], dict):
        raise CorruptError(f"{path}: corrupt: files: expected a mapping. {hint}")
    expected = cell or (folder.name if HASHED.fullmatch(folder.name) else "")
    if not f"/{record['path']}".endswith(f"/{expected}" if expected else ""):
        raise CorruptError(f"{path}: expected the record of {expected}, got {record['path']}. {hint}")
    return record


def is_complete(folder: Path, cell: str | None = None) -> bool:
    """Return whether a cell is finished, after comparing its files with their digests.

    A cell with the file WITHOUT_WEIGHTS may lack WEIGHTS.

    Args:
        folder: The cell's folder.
        cell: The cell's path, as in `read_record`.

    Returns:
        False if the record or another required file is missing.

    Raises:
        DataError: The record is of another format.
        CorruptError: The record or a file is corrupt. Such a cell is never overwritten: the user must delete it.
    """
    if not (folder / METRICS).is_file():
        return False
    files = read_record(folder, cell)["files"]
    present = {name: digest for name, digest in files.items() if (folder / name).is_file()}
    if not files.keys() - present.keys() <= set(WEIGHTS if (folder / WITHOUT_WEIGHTS).is_file() else ()):
        return False
    check_files(folder, present, METRICS, _hint(folder))
    return True


def find_cell(cell: str, results: ResultPaths) -> Path:
    """Find the folder of a finished cell.

    Args:
        cell: The cell's path (model/task/name), or the path of its folder.
        results: The results directory.

    Returns:
        The cell's folder.

    Raises:
        DataError: There is no such cell. The message suggests similar names.
    """
    for folder in (results.cells / cell, Path(cell)):
        if (folder / METRICS).is_file():
            return folder
    known = [path.parent.relative_to(results.cells).as_posix() for path in results.cells.glob(f"*/*/[!.]*/{METRICS}")]
    if not known:
        raise DataError(f"{cell}: no such cell, and {results.cells} has no finished cell. {RUN_HINT}")
    if "*" in cell and not fnmatch.filter(known, cell.removeprefix(f"{results.cells}/")):
        raise DataError(f"{cell}: no finished cell matches. {RUN_HINT}")
    raise DataError(unknown_name("cell", cell, known, str(results.cells)))


@contextmanager
def reading(folder: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Read a cell's record and plans, and convert errors of the block about missing keys.

    Args:
        folder: The cell's folder.

    Yields:
        The record, and the plans' records by replicate.

    Raises:
        DataError: The record is missing, of another format, or lacks a key that the block reads.
        CorruptError: The record or the plans are corrupt.
    """
    record, hint = read_record(folder), _hint(folder)
    try:
        check_files(folder, {PLANS: record["files"][PLANS]}, METRICS, hint)
        yield record, read_object(folder / PLANS, hint)
    except (KeyError, TypeError, AttributeError) as error:
        reason = f"missing key {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{folder / METRICS}: {reason}. {hint}") from None


def _hint(folder: Path) -> str:
    return f"Delete {folder} to train the cell again."
