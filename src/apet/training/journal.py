"""What goes along with a cell and never into its bytes: kept progress, the report, an optional logger."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apet.training.kept import Kept
from apet.training.loggers import Logger
from apet.training.loop import Run, Watch
from apet.training.report import Report


class Journal:
    """Of a cell that nobody looks after: nothing is kept, said or logged."""

    def find(self, name: str) -> Any | None:
        """The value that was kept under a name."""
        return None

    def finished(self, name: str, value: Callable[[], Any]) -> None:
        """Keep a value under a name."""

    def watch(self, name: str, part: float, share: float) -> Watch:
        """For a run of this name: the part of the cell that was done before, and the run's share of it."""
        return Watch()


UNWATCHED = Journal()


@dataclass
class BlockJournal(Journal):
    """Of a cell in a block. logger: opens one in a folder below `logs`."""

    kept: Kept
    report: Report
    logger: Callable[[Path, int], Logger] | None
    logs: Path

    def find(self, name: str) -> Any | None:
        return self.kept.find(name)

    def finished(self, name: str, value: Callable[[], Any]) -> None:
        self.kept.finished(name, value)

    def watch(self, name: str, part: float, share: float) -> Watch:
        return RunWatch(self, name, part, share)


@dataclass
class RunWatch(Watch):
    """One run: set further to where it was kept, and followed step by step."""

    journal: BlockJournal
    name: str
    part: float
    share: float
    log: Logger | None = None

    @property
    def _kept(self) -> str:
        return f"{self.name}.running"

    def begin(self, run: Run) -> None:
        if state := self.journal.kept.find(self._kept):
            run.restore(state)
        self.journal.report.begin_run(self._part(run))
        if self.journal.logger:
            self.log = self.journal.logger(self.journal.logs / self.name, run.step)

    def __exit__(self, *error: object) -> None:
        if self.log:
            self.log.close()

    def step(self, run: Run) -> None:
        self.journal.report.step(self.name, run.step, run.recipe.steps, run.losses[-1], self._part(run))
        if self.log:
            values = {"train/loss": run.losses[-1]}
            if run.looks and run.looks[-1][0] == run.step:
                seen = run.looks[-1][1]
                values |= {"validation/score": seen.score, "validation/loss": seen.loss}
            self.log.log(run.step, values)
        self.journal.kept.under_way(self._kept, run.state)

    def _part(self, run: Run) -> float:
        return self.part + self.share * run.step / run.recipe.steps
