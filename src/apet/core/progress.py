"""How far a long run is: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

STEP_LINE_SECONDS = 15.0
"""Seconds between two lines of a pretraining in a log."""


class StepProgress:
    """`total` steps, of which `done` were done before, of `tokens` each. A context manager; it writes to stderr."""

    def __init__(self, name: str, total: int, done: int, tokens: int) -> None:
        self.name, self.total, self.first, self.done, self.tokens = name, total, done, done, tokens
        self.start = self.last = time.monotonic()
        self.bar = tqdm(desc=name, total=total, initial=done, unit="step") if sys.stderr.isatty() else None

    def __enter__(self) -> StepProgress:
        if self.bar is None:
            self._say(f"step {self.done} of {self.total}")
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def step(self, loss: float) -> None:
        """One more step, with its training loss in nats per token."""
        self.done += 1
        now = time.monotonic()
        if self.bar is not None:
            self.bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            self.bar.update()
        elif now - self.last >= STEP_LINE_SECONDS or self.done == self.total:
            self.last = now
            format_rate = (self.done - self.first) / (now - self.start)
            left = (self.total - self.done) / format_rate
            end = time.strftime("%H:%M:%S", time.localtime(time.time() + left))
            speed = f"{format_rate * self.tokens:,.0f} tokens/s"
            self._say(f"step {self.done} of {self.total}, loss {loss:.3f}, {speed}, {left:.0f} s left, ends {end}")

    def _say(self, text: str) -> None:
        print(f"{self.name}: {text}", file=sys.stderr, flush=True)


CELL_LINE_SECONDS = 30.0
"""Seconds between two lines of a job in a log, and after which the steps of a cell are printed."""


class CellProgress:
    """`total` cells of a block titled so. A context manager; it writes to stderr."""

    def __init__(self, title: str, total: int, every: float = CELL_LINE_SECONDS) -> None:
        self.title, self.total, self.every = title, total, every
        self.done, self.part, self.before, self.now, self.steps = 0, 0.0, 0.0, "", ""
        self.start = self.last = self.began = time.monotonic()
        self.bar = tqdm(desc=title, total=total, unit="cell") if sys.stderr.isatty() else None

    def __enter__(self) -> CellProgress:
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
            said += f", {format_rate(speed)}, about {format_duration(left)} left"
        elif speed:
            said += f" in {format_duration(seconds)}"
        return f"{said}; {self.steps}" if self.steps else said

    def _say(self) -> None:
        print(self.line(), file=sys.stderr, flush=True)


def format_duration(seconds: float) -> str:
    """A time that people can read: 40 s, 6 min, 3.4 h, 2.1 days."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.{0 if unit == 'min' else 1}f} {unit}"
    return f"{seconds:.0f} s"


def format_rate(cells: float) -> str:
    """Cells a second in the first unit in which people can read them: 4.0 cells/min, 1.5 cells/h, 0.7 cells/day."""
    unit, count = "day", 86400 * cells
    for name, seconds in (("h", 3600), ("min", 60)):
        if seconds * cells >= 0.1:
            unit, count = name, seconds * cells
    return f"{count:.{int(count < 10)}f} cells/{unit}"
