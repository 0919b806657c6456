"""What went wrong with a cell, written down until it succeeds."""

from __future__ import annotations

import os
import platform
import time
import traceback
from pathlib import Path

from apet.errors import without_secrets
from apet.provenance import write_json
from apet.store import Results

LAST_LINES = 20
"""Lines of a traceback that are written down."""


def record_failure(results: Results, cell: str, error: Exception) -> None:
    """Write the failure record of a cell, given by its path."""
    trace = without_secrets("".join(traceback.format_exception(error))).splitlines()
    record = {
        "cell": cell,
        "error": without_secrets(f"{type(error).__name__}: {error}"),
        "traceback": trace[-LAST_LINES:],
        "log": _log(),
        "host": platform.node(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    write_json(_path(results, cell), record)


def forget_failure(results: Results, cell: str) -> None:
    """The cell has succeeded."""
    _path(results, cell).unlink(missing_ok=True)


def _path(results: Results, cell: str) -> Path:
    return results.failed / f"{cell}.json"


def _log() -> str | None:
    """The file that this process writes its messages to; None for a terminal, or where the system does not tell."""
    path = os.path.realpath("/dev/fd/2")
    return os.path.relpath(path) if os.path.isfile(path) else None
