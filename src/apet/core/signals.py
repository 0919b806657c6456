"""SIGTERM and Ctrl-C as an exception that unfinished work can defer."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from apet.errors import Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class SignalHandler:
    """Raises Interrupted on SIGTERM and SIGINT: immediately, or at the next safe point while `deferred`."""

    signal_name: str | None = None
    """Name of the last signal received, or None."""

    def __init__(self) -> None:
        self._deferred = False

    @contextmanager
    def install(self) -> Iterator[None]:
        """Handle the signals here inside the `with` block. Main thread only."""
        before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Defer signals until `raise_if_requested` is called, at the latest until the `with` block ends."""
        self.raise_if_requested()
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        self.raise_if_requested()

    def raise_if_requested(self) -> None:
        """Raise Interrupted if a signal was received."""
        if self.signal_name:
            raise Interrupted(f"{self.signal_name}: finished work is saved. Rerun the same command to resume.")

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # A second signal changes nothing: a terminal and Snakemake both send theirs.
        self.signal_name = signal.Signals(number).name
        if not self._deferred:
            self.raise_if_requested()
