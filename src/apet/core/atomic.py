"""Temporary names beside what is being written: claimed by a living process, and swept away when it has died."""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ENDING = ".part"
"""Of every temporary name. `.dvcignore` leaves out what has it."""

STATE = ".state"
"""Of the hidden file that says where a rung's pretraining stands until it has ended. `.dvcignore` knows it too."""


@contextmanager
def temporary_file(path: Path) -> Iterator[Path]:
    """An empty hidden file beside `path`, gone after the block unless it was renamed."""
    with _claimed(path, tempfile.mkstemp) as temporary:
        yield temporary


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """An empty hidden folder beside `path`, gone after the block with all in it unless it was renamed."""

    def make(**where: Any) -> tuple[int, str]:
        made = tempfile.mkdtemp(**where)
        return os.open(made, os.O_RDONLY), made

    with _claimed(path, make) as temporary:
        yield temporary


def is_temporary(name: str) -> bool:
    """Whether a file or folder of this name is one of these."""
    return name.startswith(".") and name.endswith(ENDING)


def sweep(folder: Path, target: str = "") -> None:
    """Remove the temporaries in a folder (of one target by its name, or of all) whose processes have died.

    Only those of this machine: a lock says that a process lives, and not every shared disk shares locks.
    """
    with suppress(FileNotFoundError, NotADirectoryError):
        for name in os.listdir(folder):
            if is_temporary(name) and name.startswith(f".{target}") and name.endswith(_ending()):
                _remove_dead(folder / name)


@contextmanager
def _claimed(path: Path, make: Callable[..., tuple[int, str]]) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent, f"{path.name}.")
    temporary, claim = _new(path, make)
    try:
        yield temporary
    finally:
        _remove(temporary)
        os.close(claim)


def _new(path: Path, make: Callable[..., tuple[int, str]]) -> tuple[Path, int]:
    """A temporary and the open file that holds its lock. One that was swept before it was locked is made again."""
    while True:
        claim, name = make(dir=path.parent, prefix=f".{path.name}.", suffix=_ending())
        with suppress(OSError):  # a disk without locks, where nothing is swept either
            fcntl.flock(claim, fcntl.LOCK_EX)
        if os.path.exists(name):
            return Path(name), claim
        os.close(claim)


def _ending() -> str:
    return f".{platform.node()}{ENDING}"


def _remove_dead(temporary: Path) -> None:
    with suppress(OSError):  # it lives, has gone, or cannot be removed
        claim = os.open(temporary, os.O_RDONLY)
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(temporary)
        finally:
            os.close(claim)


def _remove(temporary: Path) -> None:
    if temporary.is_dir():
        shutil.rmtree(temporary, ignore_errors=True)
    else:
        temporary.unlink(missing_ok=True)
