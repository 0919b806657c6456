"""A working copy at the start of a run: whose results stand in it, told by times; room to write; one run at a time."""

from __future__ import annotations

import fcntl
import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from apet.core.atomic import temporary_file
from apet.errors import ApetError, storage_errors
from apet.study.cell_record import METRICS

if TYPE_CHECKING:
    from apet.study.grid import Grid


def published_study(root: Path = Path()) -> str | None:
    """The id of the study that results/metrics.json was made from; None where there is none that can be read, and where
    cells were missing, for what came since is not in it."""
    try:
        record = json.loads((root / "results/metrics.json").read_text())
        return None if record.get("missing") else record["study"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def date_results(grid: Grid, study: Path, root: Path = Path()) -> None:
    """Tell by times whose the results are, for their names are fixed: a resolved study is older than all that is made
    of it, and results/metrics.json of another study is older than that. No clock has a say in this.
    """
    record = root / "results/metrics.json"
    _date(study, 10**9)
    if record.exists() and published_study(root) != grid.id:
        _date(record, record.stat().st_mtime_ns % 10**9)  # its nanoseconds stay: DVC knows its content by them


def settle_times(root: Path = Path()) -> None:
    """Date what a clock has left in the future to the present. The bytes are told by the name, so this changes nothing
    but that what is made from it now does not look older.
    """
    now = time.time_ns()
    for pattern in ("data/*/*", "data/*/*/*", "models/*/*", f"results/cells/*/*/*/{METRICS}"):
        for path in root.glob(pattern):
            with suppress(FileNotFoundError):  # a temporary, renamed
                _date(path, min(now, path.stat().st_mtime_ns))


def check_writable(*folders: Path) -> None:
    """Make the folders, and write a page into each and remove it. Raises as `storage_errors`."""
    for folder in folders:
        with storage_errors(folder), temporary_file(folder / "room") as room:
            room.write_bytes(bytes(4096))


def acquire_lock(folder: Path) -> None:
    """Keep a folder for this process until it ends, in whatever way. Raises ApetError where another has it."""
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ApetError(
            f"{folder}: another run is at work here. Wait until it has ended, and say the same command again."
        ) from None
    except OSError:  # a disk without locks
        os.close(held)


def _date(path: Path, moment: int) -> None:
    """Set the time of a file's last change, in nanoseconds since 1970, where it is another."""
    with storage_errors(path):
        if path.stat().st_mtime_ns != moment:
            os.utime(path, ns=(moment, moment))
