"""How far a long run is: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

EVERY = 15.0
"""Seconds between two lines in a log."""


class Progress:
    """`total` steps, of which `done` were done before, of `tokens` each. A context manager; it writes to stderr."""

    def __init__(self, name: str, total: int, done: int, tokens: int) -> None:
        self.name, self.total, self.first, self.done, self.tokens = name, total, done, done, tokens
        self.start = self.last = time.monotonic()
        self.bar = tqdm(desc=name, total=total, initial=done, unit="step") if sys.stderr.isatty() else None

    def __enter__(self) -> Progress:
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
        elif now - self.last >= EVERY or self.done == self.total:
            self.last = now
            rate = (self.done - self.first) / (now - self.start)
            left = (self.total - self.done) / rate
            end = time.strftime("%H:%M:%S", time.localtime(time.time() + left))
            speed = f"{rate * self.tokens:,.0f} tokens/s"
            self._say(f"step {self.done} of {self.total}, loss {loss:.3f}, {speed}, {left:.0f} s left, ends {end}")

    def _say(self, text: str) -> None:
        print(f"{self.name}: {text}", file=sys.stderr, flush=True)
