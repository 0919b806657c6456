"""Folders below the results directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ResultPaths:
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
