"""Which results a working copy holds: exactly the present study's, the others kept aside in an attic.

DVC hashes whole folders, so a folder must hold what the study names and nothing else; yet nothing finished is deleted.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from apet.errors import DataError
from apet.provenance import file_digest, write_json

if TYPE_CHECKING:  # it takes a second, which `apet status` should not
    from apet.grid import Grid

ATTIC = Path(".attic")
TRACKED = ("data/corpus", "data/tasks", "models", "results/cells")
"""Folders under DVC whose entries carry the hash of all that decides their bytes."""

UNFINISHED = "results/progress"
"""What killed jobs have kept of their cells. Not under DVC."""

BY_CELL = ("results/cells", UNFINISHED)
"""Folders with an entry a cell, at the cell's path."""


@dataclass(frozen=True)
class Results:
    """The folders below one root in which a cell leaves something, each by the cell's path.

    cells: its results. runs: time, memory and host of its training. progress: what is kept of it while it is under way.
    failed: what went wrong with it. loggers: what optional loggers write.
    """

    root: Path

    @property
    def cells(self) -> Path:
        return self.root / "cells"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def progress(self) -> Path:
        return self.root / "progress"

    @property
    def failed(self) -> Path:
        return self.root / "failed"

    @property
    def loggers(self) -> Path:
        return self.root / "loggers"


def published_study() -> str | None:
    """The id of the study that results/metrics.json was made from; None where there is none that can be read, and where
    cells were missing, for what came since is not in it."""
    try:
        record = json.loads(Path("results/metrics.json").read_text())
        return None if record.get("missing") else record["study"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def entries(grid: Grid) -> set[str]:
    """All entries of the tracked folders, and of what is kept of cells under way, that the study names."""
    cells = {f"{root}/{cell.path}" for cell in grid.cells for root in BY_CELL}
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
    """Move what the study does not name to the attic. Returns what was moved. Its failures are forgotten."""
    wanted = entries(grid)
    for record in (root / "results/failed").glob("*/*/*.json"):
        if f"{UNFINISHED}/{record.relative_to(root / 'results/failed').with_suffix('')}" not in wanted:
            record.unlink()
    moved = [e for tracked in (*TRACKED, UNFINISHED) for e in _found(root, tracked) if e not in wanted]
    for entry in moved:
        _move(root / entry, root / ATTIC / entry)
    return moved


def write_index(grid: Grid, out: Path, root: Path = Path()) -> None:
    """Write each cell's path with the SHA-256 of its metrics.json, which names those of its other files.

    Whoever depends on all cells may depend on this one file. Raises DataError for a cell that is not there.
    """
    found = {}
    for path in sorted(cell.path for cell in grid.cells):
        record = root / "results/cells" / path / "metrics.json"
        if not record.is_file():
            raise DataError(f"{record}: not there; `snakemake cells` trains what is missing.")
        found[path] = file_digest(record)
    write_json(out, found)


def _found(root: Path, tracked: str) -> Iterator[str]:
    """Entries that are there: folders at the depth at which the tracked folder has them."""
    depth = "*/*/*" if tracked in BY_CELL else "*"
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
