"""A finished cell's folder: where it is, and what it says of itself. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from apet.data.tables import read_record
from apet.errors import CorruptError, DataError, unknown
from apet.provenance import file_digest
from apet.store import Results

RECORD, PLANS = "metrics.json", "plans.json"


def find_cell(cell: str, results: Results) -> Path:
    """The folder of a finished cell, which is named as model/task/name or by its folder's own path.

    Raises DataError, with the nearest names, where there is none.
    """
    for folder in (results.cells / cell, Path(cell)):
        if (folder / RECORD).is_file():
            return folder
    known = [path.parent.relative_to(results.cells).as_posix() for path in results.cells.glob(f"*/*/[!.]*/{RECORD}")]
    if not known:
        raise DataError(f"{cell}: no cell is finished below {results.cells}, nor does a folder of this path hold one.")
    raise DataError(unknown("cell", cell, known, str(results.cells)))


@contextmanager
def reading(folder: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """A cell's record and its plans' (replicate -> record), to be read in here.

    Raises DataError for a file that is no record or a key that is missing in it, CorruptError for other plans than the
    record names.
    """
    record, plans = read_record(folder / RECORD), read_record(folder / PLANS)
    try:
        if record["files"][PLANS] != file_digest(folder / PLANS):
            raise CorruptError(f"{folder / PLANS}: not the bytes that {RECORD} names. Delete {folder} to train again.")
        yield record, plans
    except (KeyError, TypeError, AttributeError) as error:
        said = f"key {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{folder / RECORD}: not the record of a finished cell ({said}).") from None


def path_of(folder: Path) -> str:
    """A cell's path, model/task/name, from its folder."""
    return "/".join(folder.resolve().parts[-3:])
