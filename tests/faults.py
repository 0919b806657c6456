"""Faults of real runs: signals, small and read-only disks, clocks that jump."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from apet.core.atomic import is_temporary

LOCKED = ("Directory cannot be locked", "Unable to acquire lock", "another run is in progress")
"""Messages of Snakemake, DVC and the workflow if another run is active. All of them continue with a fix."""

HOUR = 3600


def drop_cut_rwlock(folder: Path) -> bool:
    """Delete DVC's lock if DVC was killed while writing it, as docs/faults.md advises. Returns whether it was."""
    rwlock = folder / ".dvc" / "tmp" / "rwlock"
    try:
        json.loads(rwlock.read_text() if rwlock.exists() else "{}")
    except ValueError:
        rwlock.unlink()
        return True
    return False


def temporaries(folder: Path) -> list[str]:
    """List temporary files and folders that were not removed."""
    roots = (folder / name for name in ("data", "models", "results"))
    return [str(path.relative_to(folder)) for root in roots for path in root.rglob(".*") if is_temporary(path.name)]


def hit(process: subprocess.Popen, sign: signal.Signals) -> bool:
    """Send a signal to the process group of a command, as a terminal does. Returns False if the command has ended."""
    if process.poll() is not None:
        return False
    os.killpg(process.pid, sign)
    return True


@contextmanager
def small_disk(folder: Path, spare: int) -> Iterator[None]:
    """Mount a disk at a folder, with its content and `spare` bytes of free space (in pages of 4 kB)."""
    folder.mkdir(parents=True, exist_ok=True)
    backup = folder.with_name(f"{folder.name}.kept")
    shutil.copytree(folder, backup, copy_function=shutil.copy2)
    mount("-t", "tmpfs", "-o", "size=1g", "tmpfs", str(folder))
    try:
        shutil.copytree(backup, folder, copy_function=shutil.copy2, dirs_exist_ok=True)
        shutil.rmtree(backup)
        used = sum(-(-path.stat().st_size // 4096) for path in folder.rglob("*") if path.is_file())
        mount("-o", f"remount,size={max(1, used + spare // 4096) * 4096}", str(folder))
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def enlarge(folder: Path) -> None:
    """Enlarge a small disk to 1 GB."""
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
    """Clock of a project folder.

    After a jump forwards, existing files are older than before; after a jump backwards, they are in the future.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def jump(self, hours: int) -> None:
        """Date all files earlier by a number of hours."""
        for path in [*self.folder.rglob("*")]:
            try:
                moment = max(0, path.lstat().st_mtime_ns - hours * HOUR * 10**9)
                os.utime(path, ns=(moment, moment), follow_symlinks=False)
            except FileNotFoundError:
                continue
