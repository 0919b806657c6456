"""How far a block of cells is: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from apet.status import rate, span

EVERY = 30.0
"""Seconds between two lines in a log, and after which a cell's steps are worth telling."""


class Report:
    """`total` cells of a block titled so. A context manager; it writes to stderr."""

    def __init__(self, title: str, total: int, every: float = EVERY) -> None:
        self.title, self.total, self.every = title, total, every
        self.done, self.part, self.before, self.now, self.steps = 0, 0.0, 0.0, "", ""
        self.start = self.last = self.began = time.monotonic()
        self.bar = tqdm(desc=title, total=total, unit="cell") if sys.stderr.isatty() else None

    def __enter__(self) -> Report:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        if self.bar is not None:
            self.bar.close()
        elif kind is None:
            self._say()

    def begin(self, cell: str) -> None:
        """A cell, by its path, is next."""
        self.now, self.part, self.steps, self.began = cell.rpartition("/")[2], 0.0, "", time.monotonic()
        if self.bar is not None:
            self.bar.set_postfix_str(self.now)

    def begin_run(self, part: float) -> None:
        """One of the cell's runs begins, or goes on, where so much of the cell is done: what was kept took no time."""
        self.before += part - self.part
        self.part = part

    def step(self, run: str, step: int, steps: int, loss: float, part: float) -> None:
        """A step of one of the cell's runs, whose part of the cell is done."""
        now = time.monotonic()
        self.part = part
        if now - self.last < (1.0 if self.bar is not None else self.every) or now - self.began < self.every:
            return
        self.last = now
        self.steps = f"{self.now} {run}: step {step:,} of {steps:,}, loss {loss:.3f}"
        if self.bar is not None:
            self.bar.set_postfix_str(self.steps)
        else:
            self._say()

    def end(self) -> None:
        """The cell is done, or has failed."""
        self.done, self.part, self.steps = self.done + 1, 0.0, ""
        if self.bar is not None:
            self.bar.update()
        elif time.monotonic() - self.last >= self.every:
            self.last = time.monotonic()
            self._say()

    def line(self) -> str:
        """Cells done, rate, time left, and the steps of a long cell."""
        seconds = time.monotonic() - self.start
        speed = max(0.0, self.done + self.part - self.before) / max(seconds, 1e-9)
        said = f"{self.title}: {self.done} of {self.total} cells"
        if speed and self.done < self.total:
            left = (self.total - self.done - self.part) / speed
            said += f", {rate(speed)}, about {span(left)} left"
        elif speed:
            said += f" in {span(seconds)}"
        return f"{said}; {self.steps}" if self.steps else said

    def _say(self) -> None:
        print(self.line(), file=sys.stderr, flush=True)
