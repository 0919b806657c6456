"""The archive: finished entries of other studies, moved out of the folders under DVC.

DVC hashes whole folders, so each must hold exactly what the study names. Nothing finished is deleted.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from apet.core.atomic import STATE, is_temporary, sweep, write_json
from apet.core.hashing import file_digest
from apet.errors import storage_errors
from apet.study.cell_record import METRICS, read_record
from apet.study.measurements import measurements

if TYPE_CHECKING:  # importing it takes a second, too long for `apet status`
    from apet.study.grid import Grid

ARCHIVE = Path(".archive")

TRACKED = ("data/corpus", "data/tasks", "models", "results/cells", "results/measurements")
"""Folders under DVC. The names of their entries contain a hash of all that decides their bytes."""

CHECKPOINTS = "results/checkpoints"
"""Checkpoints of unfinished cells. Not under DVC."""

BY_CELL = ("results/cells", CHECKPOINTS)
"""Folders with one entry per cell, at the cell's path."""


def wanted_entries(grid: Grid) -> set[str]:
    """Return all entries that a study names in the folders under DVC and among the checkpoints."""
    cells = {f"{root}/{cell.path}" for cell in grid.cells for root in BY_CELL}
    tasks = {grid.task_folder(task) for task in grid.tasks}
    ladder = {grid.corpus, grid.tokenizer} if grid.pretrained_models else set()
    measured = {f"results/measurements/{measurement.name}" for measurement in measurements(grid.cells)}
    return cells | tasks | {grid.plm_folder(model) for model in grid.models} | ladder | measured


def restore(grid: Grid, root: Path = Path()) -> list[str]:
    """Move entries that the study names and the working copy lacks back from the archive.

    Args:
        grid: The study.
        root: The working copy.

    Returns:
        The entries that were moved.

    Raises:
        StorageError: The disk is full, read-only or fails.
        PathError: A path cannot be used.
    """
    moved = []
    for entry in sorted(wanted_entries(grid)) if (root / ARCHIVE).is_dir() else ():
        archived, target = root / ARCHIVE / entry, root / entry
        if archived.is_dir() and not (target.is_dir() and any(target.iterdir())):
            _move(archived, target)
            moved.append(entry)
    return moved


def prune(grid: Grid, root: Path = Path()) -> list[str]:
    """Move entries that the study does not name to the archive, and delete failure records of their cells.

    Args:
        grid: The study.
        root: The working copy.

    Returns:
        The entries that were moved.

    Raises:
        StorageError: The disk is full, read-only or fails.
        PathError: A path cannot be used.
    """
    wanted = wanted_entries(grid)
    for folder in (*root.glob("results/failed/*/*"), *root.glob("results/runs/*/*")):
        sweep(folder)
    for record in (root / "results/failed").glob("*/*/*.json"):
        if f"{CHECKPOINTS}/{record.relative_to(root / 'results/failed').with_suffix('')}" not in wanted:
            record.unlink()
    moved = [e for tracked in (*TRACKED, CHECKPOINTS) for e in _entries(root, tracked) if e not in wanted]
    for entry in moved:
        _move(root / entry, root / ARCHIVE / entry)
    return moved


def write_index(grid: Grid, out: Path, root: Path = Path()) -> None:
    """Write one JSON file that changes if any cell changes.

    It maps each cell's path to the SHA-256 of its record, which names the digests of the cell's other files.

    Args:
        grid: The study.
        out: The file to write.
        root: The working copy.

    Raises:
        DataError: A cell is not finished.
        CorruptError: A cell's record is corrupt.
    """
    index = {}
    for path in sorted(cell.path for cell in grid.cells):
        folder = root / BY_CELL[0] / path
        read_record(folder, path)
        index[path] = file_digest(folder / METRICS)
    write_json(out, index)


def _entries(root: Path, tracked: str) -> Iterator[str]:
    """Sweep a tracked folder and yield its entries, without temporaries and the checkpoints of pretraining."""
    for parent in sorted((root / tracked).glob("*/*")) if tracked in BY_CELL else [root / tracked]:
        sweep(parent)
        for path in sorted(parent.iterdir()) if parent.is_dir() else ():
            if not is_temporary(path.name) and not path.name.endswith(STATE):
                yield path.relative_to(root).as_posix()


def _move(source: Path, target: Path) -> None:
    """Move an entry, also to another disk; replace the target, and remove parents that become empty."""
    with storage_errors(target):
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # another process has moved it
            shutil.move(source, target)
    for parent in (source.parent, source.parent.parent):
        with suppress(OSError):  # not empty, a mount point, or a link
            parent.rmdir()
