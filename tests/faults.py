"""Faults as they happen to real runs: signals, small and read-only disks, clocks that jump, several runs at once."""

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
"""What holds times, and so differs between runs."""

LOCKED = ("Directory cannot be locked", "Unable to acquire lock", "another run is at work here")
"""How Snakemake, DVC and the workflow say that another run is at work. All go on to say what to do."""

HOUR = 3600


def outcome(folder: Path) -> dict[str, bytes]:
    """All files of data, PLMs and results, by path, but those of APART and temporaries."""
    found = {}
    for root in ("data", "models", "results"):
        for path in sorted((folder / root).rglob("*")):
            name = path.relative_to(folder)
            if path.is_file() and name.parts[:2] not in APART and not any(part.startswith(".") for part in name.parts):
                found[name.as_posix()] = path.read_bytes()
    return found


def drop_cut_rwlock(folder: Path) -> bool:
    """What docs/faults.md says to do where DVC was killed amid writing its lock. Whether it was."""
    rwlock = folder / ".dvc" / "tmp" / "rwlock"
    try:
        json.loads(rwlock.read_text() if rwlock.exists() else "{}")
    except ValueError:
        rwlock.unlink()
        return True
    return False


def temporaries(folder: Path) -> list[str]:
    """What was being written and was not removed."""
    roots = (folder / name for name in ("data", "models", "results"))
    return [str(path.relative_to(folder)) for root in roots for path in root.rglob(".*") if is_temporary(path.name)]


def listens(process: subprocess.Popen, sign: signal.Signals) -> bool:
    """Whether a command is past Python's own start-up, where SIGINT gives a traceback whatever the command does.

    apet and Snakemake begin to catch SIGTERM in a way of their own. A process that has ended listens too.
    """
    if sign == signal.SIGKILL or process.poll() is not None:
        return True
    try:
        (caught,) = (line for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if "SigCgt" in line)
    except (OSError, ValueError):
        return True
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def hit(process: subprocess.Popen, sign: signal.Signals, draw: random.Random | None = None) -> bool:
    """Signal a command's whole process group, as a terminal does, or, with `draw`, one of its workers alone.

    False if there is nothing to be hit any more.
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
    """Whether it is a command of apet's that a rule has started."""
    try:
        command = process.cmdline()
    except psutil.Error:
        return False
    return len(command) > 1 and Path(command[1]).name == "apet"


@contextmanager
def small_disk(folder: Path, spare: int) -> Iterator[None]:
    """A disk of its own for a folder and what is in it, with so many bytes left (in pages of 4 kB)."""
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
    """Give a small disk all the room it may want."""
    mount("-o", "remount,size=1g", str(folder))


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """A folder that nobody can write to, not even root."""
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
    """The time that the commands of a working copy see, and the times of its files.

    A clock that jumps forwards leaves files behind in the past, one that jumps backwards leaves them in the future: so
    here all files are dated as much earlier or later. library: libfaketime's, by which running processes, too, see the
    time jump; without it only files tell.
    """

    def __init__(self, folder: Path, library: Path | None = None):
        self.folder, self.library, self.offset = folder, library, 0
        self.said = folder / ".clock"

    @property
    def environment(self) -> dict[str, str]:
        if not self.library:
            return {}
        self.said.write_text(f"{self.offset:+d}")
        return {
            "LD_PRELOAD": str(self.library),
            "FAKETIME_TIMESTAMP_FILE": str(self.said),
            "FAKETIME_CACHE_DURATION": "1",
            # No jump moves the clock that only counts.
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }

    def jump(self, hours: int) -> None:
        seconds = hours * HOUR
        for path in [*self.folder.rglob("*")]:
            try:
                found = path.lstat()
                moment = max(0, found.st_mtime_ns - seconds * 10**9)
                if found.st_mtime_ns > 10**9 * 86400:  # a date that no clock gave stays
                    os.utime(path, ns=(moment, moment), follow_symlinks=False)
            except FileNotFoundError:
                continue
        self.offset += seconds
        if self.library:
            self.said.write_text(f"{self.offset:+d}")


def wait_idle(folder: Path, seconds: float = 120) -> None:
    """Until no process works in a folder. Fails where one is left."""
    end = time.monotonic() + seconds
    while busy := [p for p in psutil.process_iter(["cwd", "status", "cmdline"]) if works_in(p, folder)]:
        assert time.monotonic() < end, f"still at work: {[p.info['cmdline'] for p in busy]}"
        time.sleep(0.05)


def works_in(process: psutil.Process, folder: Path) -> bool:
    found = process.info
    return found["status"] != psutil.STATUS_ZOMBIE and Path(found["cwd"] or "/").is_relative_to(folder)
