"""Digests of everything outside the working copy's results that a study reads: tasks, their rows, and PLMs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from apet.core.atomic import write_json
from apet.core.hashing import digest

if TYPE_CHECKING:  # importing it takes a second
    from apet.study.grid import Grid


def write_inputs(grid: Grid, out: Path) -> None:
    """Write one JSON file whose bytes change if and only if a task file, a row, a file of a PLM, or a cell changes.

    DVC cannot know which files a study names, so its stages depend on this file instead. It contains no paths and no
    times, and is therefore the same on every machine.

    Args:
        grid: The study.
        out: The file to write.
    """
    cells = digest([cell.path for cell in grid.cells])
    write_json(out, {"tasks": grid.task_digests, "models": grid.plm_digests, "cells": cells})
