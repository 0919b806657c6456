"""A finished cell's folder: where it is, and what it says of itself. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from apet.errors import DataError, unknown
from apet.record import METRICS, PLANS, read_record
from apet.sealed import check_files, read_object
from apet.store import Results


def find_cell(cell: str, results: Results) -> Path:
    """The folder of a finished cell, which is named as model/task/name or by its folder's own path.

    Raises DataError, with the nearest names, where there is none.
    """
    for folder in (results.cells / cell, Path(cell)):
        if (folder / METRICS).is_file():
            return folder
    known = [path.parent.relative_to(results.cells).as_posix() for path in results.cells.glob(f"*/*/[!.]*/{METRICS}")]
    if not known:
        raise DataError(f"{cell}: no cell is finished below {results.cells}, nor does a folder of this path hold one.")
    raise DataError(unknown("cell", cell, known, str(results.cells)))


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
