"""The working copy: which study its results belong to, write checks, and a lock for one run at a time."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout

from apet.core.atomic import temporary_file, write_text
from apet.core.hashing import digest
from apet.errors import ApetError, storage_errors
from apet.study.cell_record import METRICS
from apet.study.paths import ResultPaths

_LOCKS: list[BaseFileLock] = []
"""Locks that this process holds until it ends."""


def published_marker(out: Path, study: str, missing: Iterable[str] = ()) -> Path:
    """Return the file whose existence proves that the tables and figures in a folder belong to a study.

    Args:
        out: The folder of tables and figures.
        study: The study's id.
        missing: Paths of the cells that the tables lack.

    Returns:
        A path in `published`, a folder with at most one file, which DVC tracks with the tables.
    """
    missing = sorted(missing)
    return out / "published" / (study[:12] + (f"-without-{digest(missing)[:10]}" if missing else ""))


def is_published(out: Path, study: str) -> bool:
    """Return whether the tables and figures in a folder belong to a study, given by its id, complete or not."""
    return any((out / "published").glob(f"{study[:12]}*"))


def missing_cells(cells: Iterable[str], results: ResultPaths) -> list[str]:
    """Return the paths of the cells that are not finished."""
    root = results.cells.as_posix()  # texts, because a study has thousands of cells
    return [path for path in cells if not os.path.isfile(f"{root}/{path}/{METRICS}")]


def unpublish(out: Path) -> None:
    """Remove the marker before the tables change."""
    shutil.rmtree(out / "published", ignore_errors=True)


@contextmanager
def publishing(study: Mapping[str, Any], results: ResultPaths, out: Path) -> Iterator[None]:
    """Remove the marker of the previous study, and write this study's after the block.

    Args:
        study: The record of the study.
        results: The results directory with its cells.
        out: The folder of tables and figures, which the block writes.

    Yields:
        Nothing.

    Raises:
        StorageError: As in `write_text`.
        PathError: As in `write_text`.
    """
    marker = published_marker(out, study["study"], missing_cells(study["cells"], results))
    unpublish(out)
    yield
    write_text(marker, "")


def check_writable(*folders: Path) -> None:
    """Create the folders and write a page into each, to find a full or read-only disk before the first job.

    Args:
        *folders: Folders to check.

    Raises:
        StorageError: The disk is full, read-only or fails.
        PathError: A folder cannot be used.
    """
    for folder in folders:
        with storage_errors(folder), temporary_file(folder / "test") as file:
            file.write_bytes(bytes(4096))


def acquire_lock(folder: Path) -> None:
    """Lock a folder until this process ends.

    Args:
        folder: The folder; the lock is its file `.lock`.

    Raises:
        ApetError: Another run holds the lock.
    """
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise ApetError(f"{folder}: another run is in progress. Wait for its end, then run the same command.") from None
    except OSError:  # a disk without locks
        return
    _LOCKS.append(lock)
