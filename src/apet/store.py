"""Which results a working copy holds: exactly the present study's, the others kept aside in an attic.

DVC hashes whole folders, so a folder must hold what the study names and nothing else; yet nothing finished is deleted.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from apet.grid import Grid

ATTIC = Path(".attic")
TRACKED = ("data/corpus", "data/tasks", "models", "results/cells")
"""Folders under DVC whose entries carry the hash of all that decides their bytes."""


def published_study() -> str | None:
    """The id of the study that results/metrics.json was made from; None where there is none that can be read."""
    try:
        return json.loads(Path("results/metrics.json").read_text())["study"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def entries(grid: Grid) -> set[str]:
    """All entries of the tracked folders that the study names."""
    cells = {f"results/cells/{cell.path}" for cell in grid.cells}
    tasks = {grid.task_folder(task) for task in grid.tasks}
    ladder = {grid.corpus, grid.tokenizer} if grid.rungs else set()
    return cells | tasks | {grid.plm_folder(model) for model in grid.models} | ladder


def restore(grid: Grid, root: Path = Path()) -> list[str]:
    """Bring back from the attic what the study names and the working copy lacks. Returns what was moved."""
    moved = []
    for entry in sorted(entries(grid)) if (root / ATTIC).is_dir() else ():
        stored, place = root / ATTIC / entry, root / entry
        if stored.is_dir() and not (place.is_dir() and any(place.iterdir())):
            _move(stored, place)
            moved.append(entry)
    return moved


def prune(grid: Grid, root: Path = Path()) -> list[str]:
    """Move what the study does not name to the attic. Returns what was moved."""
    wanted = entries(grid)
    moved = [e for tracked in TRACKED for e in _found(root, tracked) if e not in wanted]
    for entry in moved:
        _move(root / entry, root / ATTIC / entry)
    return moved


def _found(root: Path, tracked: str) -> Iterator[str]:
    """Entries that are there: folders at the depth at which the tracked folder has them."""
    depth = "*/*/*" if tracked == "results/cells" else "*"
    for path in sorted((root / tracked).glob(depth)):
        yield path.relative_to(root).as_posix()


def _move(source: Path, target: Path) -> None:
    """Rename a folder over what may be there, and drop the parents that it leaves empty."""
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.replace(source, target)
    except FileNotFoundError:
        return  # another process has moved it already
    for parent in (source.parent, source.parent.parent):
        if parent.is_dir() and not any(parent.iterdir()):
            parent.rmdir()
