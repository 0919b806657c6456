"""SIGTERM and Ctrl-C as an exception that unfinished work can defer."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from apet.errors import Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class SignalHandler:
    """Raises Interrupted on SIGTERM and SIGINT: immediately, or at the next safe point while `deferred`.

    Attributes:
        asked: Name of the first signal received, or None.
    """

    def __init__(self) -> None:
        self.asked: str | None = None
        self._held = False

    @contextmanager
    def install(self) -> Iterator[None]:
        """Handle the signals here inside the `with` block. Main thread only."""
        before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Defer signals until `raise_if_requested` is called, at the latest until the `with` block ends."""
        self.raise_if_requested()
        self._held = True
        try:
            yield
        finally:
            self._held = False
        self.raise_if_requested()

    def raise_if_requested(self) -> None:
        """Raise Interrupted if a signal was received."""
        if self.asked:
            raise Interrupted(f"{self.asked}: stopped. Run the same command again to resume.")

    def _ask(self, number: int, frame: FrameType | None) -> None:
        # A second signal changes nothing: a terminal and Snakemake both send theirs.
        self.asked = signal.Signals(number).name
        if not self._held:
            self.raise_if_requested()
