"""The layout of the results directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ResultPaths:
    """The folders of a results directory. Those of cells have one entry per cell, at the cell's path."""

    root: Path
    """The results directory."""

    @property
    def cells(self) -> Path:
        """Finished cells."""
        return self.root / "cells"

    @property
    def runs(self) -> Path:
        """Run records: time, memory and host of each training."""
        return self.root / "runs"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints of unfinished cells."""
        return self.root / "checkpoints"

    @property
    def failed(self) -> Path:
        """Failure records of cells, deleted when the cell succeeds."""
        return self.root / "failed"

    @property
    def loggers(self) -> Path:
        """Training curves of the optional loggers."""
        return self.root / "loggers"

    @property
    def measurements(self) -> Path:
        """Records of measured costs, in one folder per measurement. They contain times."""
        return self.root / "measurements"

    @property
    def measured_costs(self) -> Path:
        """Tables and figure of measured costs."""
        return self.root / "measured_costs"
