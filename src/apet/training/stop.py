"""SIGTERM (a cluster's warning) and SIGINT: what is under way is kept first, then the process ends."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from apet.errors import Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """Turns the signals into Interrupted: at once, or, while `held`, when the work asks for it with `obey`."""

    def __init__(self) -> None:
        self.asked: str | None = None
        self._held = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """For this time the signals come here. Only for the main thread."""
        before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """For this time a signal waits for `obey`, at the latest for the end."""
        self.obey()
        self._held = True
        try:
            yield
        finally:
            self._held = False
        self.obey()

    def obey(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self.asked:
            raise Interrupted(f"{self.asked}: what was finished is kept; the same command goes on from here.")

    def _ask(self, number: int, frame: FrameType | None) -> None:
        # A second signal changes nothing: a terminal and Snakemake both send theirs.
        self.asked = signal.Signals(number).name
        if not self._held:
            self.obey()
