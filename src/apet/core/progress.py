"""Progress of long runs: a bar on a terminal, occasional lines in a log. Formats of times, rates and sizes."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

from apet.core.text import plural

STEP_LINE_SECONDS = 15.0
"""Seconds between two lines of a pretraining in a log."""

CELL_LINE_SECONDS = 30.0
"""Seconds between two lines of a job or a simulation in a log, and until the steps of a long cell are shown."""


class ProgressReporter:
    """A context manager that shows progress on standard error: a bar on a terminal, otherwise lines."""

    def __init__(self, title: str, total: int, unit: str, line_seconds: float, done: int = 0) -> None:
        self.title, self.total, self.done, self.line_seconds = title, total, done, line_seconds
        self.start = self.last_line = time.monotonic()
        self.bar = tqdm(desc=title, total=total, initial=done, unit=unit) if sys.stderr.isatty() else None

    def __enter__(self) -> Any:
        """Start."""
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()

    def is_due(self, seconds: float) -> bool:
        """Return whether this many seconds have passed since the last line, and if so, count from now."""
        if time.monotonic() - self.last_line < seconds:
            return False
        self.last_line = time.monotonic()
        return True

    def print_line(self, text: str) -> None:
        """Print a line after the title."""
        print(f"{self.title}: {text}", file=sys.stderr, flush=True)


class StepProgress(ProgressReporter):
    """Progress of a pretraining.

    Args:
        name: The PLM.
        total: Number of steps.
        done: Number of steps that an earlier run has done.
        tokens: Tokens per step.
    """

    def __init__(self, name: str, total: int, done: int, tokens: int) -> None:
        super().__init__(name, total, "step", STEP_LINE_SECONDS, done)
        self.first, self.tokens = done, tokens

    def __enter__(self) -> StepProgress:
        """Print the step to start from."""
        if self.bar is None:
            self.print_line(f"step {self.done} of {self.total}")
        return self

    def step(self, loss: float) -> None:
        """Count a step, with its training loss in nats per token."""
        self.done += 1
        if self.bar is not None:
            self.bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            self.bar.update()
        elif self.is_due(self.line_seconds) or self.done == self.total:
            steps_per_second = (self.done - self.first) / (time.monotonic() - self.start)
            remaining = (self.total - self.done) / steps_per_second
            end = time.strftime("%H:%M:%S", time.localtime(time.time() + remaining))
            speed = f"{steps_per_second * self.tokens:,.0f} tokens/s, {remaining:.0f} s left, ends {end}"
            self.print_line(f"step {self.done} of {self.total}, loss {loss:.3f}, {speed}")


class StudyProgress(ProgressReporter):
    """Progress of a simulation of studies.

    Args:
        title: What is simulated.
        total: Number of studies.
    """

    def __init__(self, title: str, total: int) -> None:
        super().__init__(title, total, "study", CELL_LINE_SECONDS)

    def end(self) -> None:
        """Count a study."""
        self.done += 1
        if self.bar is not None:
            self.bar.update()
        elif self.is_due(self.line_seconds):
            left = (time.monotonic() - self.start) / self.done * (self.total - self.done)
            self.print_line(f"{self.done} of {self.total} studies, about {format_duration(left)} left")


class CellProgress(ProgressReporter):
    """Progress of a training job.

    Args:
        title: Model and task.
        total: Number of cells.
        line_seconds: Seconds between two lines.
    """

    def __init__(self, title: str, total: int, line_seconds: float = CELL_LINE_SECONDS) -> None:
        super().__init__(title, total, "cell", line_seconds)
        self.fraction, self.skipped, self.cell, self.steps = 0.0, 0.0, "", ""
        self.cell_start = self.start

    def __exit__(self, kind: object, *error: object) -> None:
        """Close the bar, or print a last line if the job has not failed."""
        super().__exit__(kind, *error)
        if self.bar is None and kind is None:
            self.print_line(self.line())

    def begin(self, cell: str) -> None:
        """Start a cell, given by its path."""
        self.cell, self.fraction, self.steps, self.cell_start = cell.rpartition("/")[2], 0.0, "", time.monotonic()
        if self.bar is not None:
            self.bar.set_postfix_str(self.cell)

    def begin_run(self, fraction: float) -> None:
        """Start or resume a training of the cell.

        Args:
            fraction: Finished fraction of the cell. What a checkpoint contributed is not counted as speed.
        """
        self.skipped += fraction - self.fraction
        self.fraction = fraction

    def step(self, run: str, step: int, steps: int, loss: float, fraction: float) -> None:
        """Count a step of a training of the cell.

        Args:
            run: Name of the training.
            step: Number of the step, from 1.
            steps: Number of steps of the training.
            loss: Training loss.
            fraction: Finished fraction of the cell.
        """
        self.fraction = fraction
        if time.monotonic() - self.cell_start < self.line_seconds:
            return
        if self.is_due(1.0 if self.bar is not None else self.line_seconds):
            self.steps = f"{self.cell} {run}: step {step:,} of {steps:,}, loss {loss:.3f}"
            if self.bar is not None:
                self.bar.set_postfix_str(self.steps)
            else:
                self.print_line(self.line())

    def end(self) -> None:
        """Count the cell, finished or failed."""
        self.done, self.fraction, self.steps = self.done + 1, 0.0, ""
        if self.bar is not None:
            self.bar.update()
        elif self.is_due(self.line_seconds):
            self.print_line(self.line())

    def line(self) -> str:
        """Return the number of finished cells, the rate, the remaining time, and the step of a long cell."""
        seconds = time.monotonic() - self.start
        cells_per_second = max(0.0, self.done + self.fraction - self.skipped) / max(seconds, 1e-9)
        text = f"{self.done} of {plural(self.total, 'cell')}"
        if cells_per_second and self.done < self.total:
            remaining = (self.total - self.done - self.fraction) / cells_per_second
            text += f", {format_rate(cells_per_second)}, about {format_duration(remaining)} left"
        elif cells_per_second:
            text += f" in {format_duration(seconds)}"
        return f"{text}; {self.steps}" if self.steps else text


def format_duration(seconds: float) -> str:
    """Format a time: 40 s, 6 min, 3.4 h, 2.1 days."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.{0 if unit == 'min' else 1}f} {unit}"
    return f"{seconds:.0f} s"


def format_rate(cells: float) -> str:
    """Format cells per second in a readable unit: 4.0 cells/min, 1.5 cells/h, 0.7 cells/day."""
    unit, count = "day", 86400 * cells
    for name, seconds in (("h", 3600), ("min", 60)):
        if seconds * cells >= 0.1:
            unit, count = name, seconds * cells
    return f"{count:.{int(count < 10)}f} cells/{unit}"
