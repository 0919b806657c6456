"""Which results a working copy holds: exactly the present study's, the others kept aside in an attic.

DVC hashes whole folders, so a folder must hold what the study names and nothing else; yet nothing finished is deleted.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from apet.core.atomic import STATE, atomic_dir, atomic_write, is_temporary, sweep, temporary_folder, write_json
from apet.core.hashing import file_digest
from apet.study.cell_record import FORMAT, METRICS, format_of, read_record

if TYPE_CHECKING:  # it takes a second, which `apet status` should not
    from apet.study.grid import Grid

ATTIC = Path(".attic")
TRACKED = ("data/corpus", "data/tasks", "models", "results/cells")
"""Folders under DVC whose entries carry the hash of all that decides their bytes."""

UNFINISHED = "results/progress"
"""What killed jobs have kept of their cells. Not under DVC."""

BY_CELL = ("results/cells", UNFINISHED)
"""Folders with an entry a cell, at the cell's path."""


def wanted_entries(grid: Grid) -> set[str]:
    """All entries of the tracked folders, and of what is kept of cells under way, that the study names."""
    cells = {f"{root}/{cell.path}" for cell in grid.cells for root in BY_CELL}
    tasks = {grid.task_folder(task) for task in grid.tasks}
    ladder = {grid.corpus, grid.tokenizer} if grid.pretrained_models else set()
    return cells | tasks | {grid.plm_folder(model) for model in grid.models} | ladder


def restore(grid: Grid, root: Path = Path()) -> list[str]:
    """Bring back from the attic what the study names and the working copy lacks. Returns what was moved."""
    moved = []
    for entry in sorted(wanted_entries(grid)) if (root / ATTIC).is_dir() else ():
        stored, place = root / ATTIC / entry, root / entry
        if stored.is_dir() and not (place.is_dir() and any(place.iterdir())):
            _move(stored, place)
            moved.append(entry)
    return moved


def prune(grid: Grid, root: Path = Path()) -> list[str]:
    """Move to the attic what the study does not name, and cells of another format, which this version does not read.

    Returns what was moved. The failures of cells that are not the study's are forgotten.
    """
    wanted = wanted_entries(grid)
    for folder in (*root.glob("results/failed/*/*"), *root.glob("results/runs/*/*")):
        sweep(folder)
    for record in (root / "results/failed").glob("*/*/*.json"):
        if f"{UNFINISHED}/{record.relative_to(root / 'results/failed').with_suffix('')}" not in wanted:
            record.unlink()
    moved = [e for tracked in (*TRACKED, UNFINISHED) for e in _found(root, tracked) if e not in wanted]
    for entry in moved:
        _move(root / entry, root / ATTIC / entry)
    return moved + list(_put_aside(grid, root))


def _put_aside(grid: Grid, root: Path) -> Iterator[str]:
    """Move cells of another format to where no study takes them from again."""
    for cell in grid.cells:
        entry = f"{BY_CELL[0]}/{cell.path}"
        found = format_of(root / entry)
        if found not in (None, FORMAT):
            _move(root / entry, root / ATTIC / f"format-{found}" / entry)
            yield f"{entry} (format {found}; this version of apet reads {FORMAT})"


def write_index(grid: Grid, out: Path, root: Path = Path()) -> None:
    """Write each cell's path with the SHA-256 of its metrics.json, which names those of its other files.

    Whoever depends on all cells may depend on this one file. Raises as `read_record` for a cell that is not there, or
    whose record is not what it was.
    """
    found = {}
    for path in sorted(cell.path for cell in grid.cells):
        folder = root / BY_CELL[0] / path
        read_record(folder, path)
        found[path] = file_digest(folder / METRICS)
    write_json(out, found)


def _found(root: Path, tracked: str) -> Iterator[str]:
    """Entries that are there: folders at the depth at which the tracked folder has them. What a process that has died
    was writing is removed; what one that lives writes is no entry, nor is where the pretraining of a rung stands.
    """
    for parent in sorted((root / tracked).glob("*/*")) if tracked in BY_CELL else [root / tracked]:
        sweep(parent)
        for path in sorted(parent.iterdir()) if parent.is_dir() else ():
            if not is_temporary(path.name) and not path.name.endswith(STATE):
                yield path.relative_to(root).as_posix()


def _move(source: Path, target: Path) -> None:
    """Move a folder over what may be there, and drop the parents that it leaves empty."""
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.replace(source, target)
    except FileNotFoundError:
        return  # another process has moved it already
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _move_to_another_disk(source, target)
    for parent in (source.parent, source.parent.parent):
        with suppress(OSError):  # it holds others, or is the place of another disk, or a link to it
            parent.rmdir()


def _move_to_another_disk(source: Path, target: Path) -> None:
    """As where PLMs or cells lie on a scratch disk, and the attic does not. At each moment one of the two is whole."""
    if not source.is_dir():
        with atomic_write(target) as copied:
            shutil.copy2(source, copied)
        source.unlink()
        return
    with atomic_dir(target) as copied:
        for path in sorted(source.rglob("*")):
            place = copied / path.relative_to(source)
            place.mkdir() if path.is_dir() else shutil.copy2(path, place)
    with temporary_folder(source) as gone:
        os.replace(source, gone)
