"""Faults for tests: signals, small and read-only disks, clocks that jump."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from apet.core.atomic import is_temporary

APART = {("results", name) for name in ("logs", "runs", "costs.csv", "report.html")}
"""Files that contain times and therefore differ between runs."""

LOCKED = ("Directory cannot be locked", "Unable to acquire lock", "another run is in progress")
"""Messages of Snakemake, DVC and the workflow if another run is in progress."""

HOUR = 3600


def outcome(folder: Path) -> dict[str, bytes]:
    """Return all files of data, PLMs and results by path, without APART and hidden files."""
    found = {}
    for root in ("data", "models", "results"):
        for path in sorted((folder / root).rglob("*")):
            name = path.relative_to(folder)
            if path.is_file() and name.parts[:2] not in APART and not any(part.startswith(".") for part in name.parts):
                found[name.as_posix()] = path.read_bytes()
    return found


def drop_cut_rwlock(folder: Path) -> bool:
    """Delete DVC's lock file if it is truncated, as docs/faults.md says. Return whether it was."""
    rwlock = folder / ".dvc" / "tmp" / "rwlock"
    try:
        json.loads(rwlock.read_text() if rwlock.exists() else "{}")
    except ValueError:
        rwlock.unlink()
        return True
    return False


def temporaries(folder: Path) -> list[str]:
    """Return all temporaries."""
    roots = (folder / name for name in ("data", "models", "results"))
    return [str(path.relative_to(folder)) for root in roots for path in root.rglob(".*") if is_temporary(path.name)]


def listens(process: subprocess.Popen, sign: signal.Signals) -> bool:
    """Return whether a command is past Python's own start-up, during which SIGINT gives a traceback.

    apet and Snakemake install a handler for SIGTERM. A process that has ended counts too.
    """
    if sign == signal.SIGKILL or process.poll() is not None:
        return True
    try:
        (caught,) = (line for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if "SigCgt" in line)
    except (OSError, ValueError):
        return True
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def hit(process: subprocess.Popen, sign: signal.Signals, draw: random.Random | None = None) -> bool:
    """Signal a command's process group, as a terminal does, or, with `draw`, only one of its workers.

    False if the process has ended or has no worker.
    """
    if process.poll() is not None:
        return False
    if not draw:
        os.killpg(process.pid, sign)
        return True
    workers = [p for p in psutil.Process(process.pid).children(recursive=True) if is_worker(p)]
    if workers:
        draw.choice(workers).send_signal(sign)
    return bool(workers)


def is_worker(process: psutil.Process) -> bool:
    """Return whether a process is an apet command that a rule started."""
    try:
        command = process.cmdline()
    except psutil.Error:
        return False
    return len(command) > 1 and Path(command[1]).name == "apet"


@contextmanager
def small_disk(folder: Path, spare: int) -> Iterator[None]:
    """Move a folder to a new disk with this much free space (in pages of 4 kB)."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder.with_name(f"{folder.name}.kept")
    shutil.copytree(folder, kept, copy_function=shutil.copy2)
    mount("-t", "tmpfs", "-o", "size=1g", "tmpfs", str(folder))
    try:
        shutil.copytree(kept, folder, copy_function=shutil.copy2, dirs_exist_ok=True)
        shutil.rmtree(kept)
        used = sum(-(-path.stat().st_size // 4096) for path in folder.rglob("*") if path.is_file())
        mount("-o", f"remount,size={max(1, used + spare // 4096) * 4096}", str(folder))
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def enlarge(folder: Path) -> None:
    """Enlarge a small disk."""
    mount("-o", "remount,size=1g", str(folder))


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Make a folder read-only, even for root."""
    folder.mkdir(parents=True, exist_ok=True)
    mount("--bind", str(folder), str(folder))
    try:
        mount("-o", "remount,bind,ro", str(folder))
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


class Clock:
    """The clock of a working copy: all files are dated earlier or later, as if the clock had jumped.

    With the library libfaketime, running processes see the jump too.
    """

    def __init__(self, folder: Path, library: Path | None = None):
        self.folder, self.library, self.offset = folder, library, 0
        self.clock_file = folder / ".clock"

    @property
    def environment(self) -> dict[str, str]:
        if not self.library:
            return {}
        self.clock_file.write_text(f"{self.offset:+d}")
        return {
            "LD_PRELOAD": str(self.library),
            "FAKETIME_TIMESTAMP_FILE": str(self.clock_file),
            "FAKETIME_CACHE_DURATION": "1",
            # The monotonic clock does not jump.
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }

    def jump(self, hours: int) -> None:
        seconds = hours * HOUR
        for path in [*self.folder.rglob("*")]:
            try:
                found = path.lstat()
                moment = max(0, found.st_mtime_ns - seconds * 10**9)
                os.utime(path, ns=(moment, moment), follow_symlinks=False)
            except FileNotFoundError:
                continue
        self.offset += seconds
        if self.library:
            self.clock_file.write_text(f"{self.offset:+d}")


def wait_idle(folder: Path, seconds: float = 120) -> None:
    """Wait until no process works in a folder."""
    end = time.monotonic() + seconds
    while busy := [p for p in psutil.process_iter(["cwd", "status", "cmdline"]) if works_in(p, folder)]:
        assert time.monotonic() < end, f"still at work: {[p.info['cmdline'] for p in busy]}"
        time.sleep(0.05)


def works_in(process: psutil.Process, folder: Path) -> bool:
    found = process.info
    return found["status"] != psutil.STATUS_ZOMBIE and Path(found["cwd"] or "/").is_relative_to(folder)
