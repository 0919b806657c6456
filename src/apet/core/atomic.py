"""Atomic writes: a file or folder appears complete under its name, or not at all.

Its mode is that of a plain `open` or `mkdir`: the kernel applies the process's umask, and the access control list and
group of the parent folder.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from apet.errors import DataError, storage_errors

TEMP_SUFFIX = ".part"
"""Suffix of every temporary name. `.dvcignore` excludes it."""

STATE = ".state"
"""Suffix of the hidden checkpoint of an unfinished pretraining. `.dvcignore` excludes it too."""

NON_UTF8 = "backslashreplace"
"""Error handler for text that is not valid UTF-8, such as a path: written as the escapes that JSON uses."""


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Write a file atomically.

    Args:
        path: The file to create or replace.

    Yields:
        An empty temporary file beside `path`. It replaces `path` at the end of the block, and is removed if the
        block raises.

    Raises:
        StorageError: The disk is full, read-only or fails.
        PathError: `path` cannot be used.
    """
    with storage_errors(path), temporary_file(path) as temporary:
        mode = _mode(temporary)
        yield temporary
        _flush(temporary)
        _set_mode(temporary, mode)
        os.replace(temporary, path)


@contextmanager
def atomic_dir(folder: Path) -> Iterator[Path]:
    """Write a folder atomically.

    Args:
        folder: The folder to create, or to replace if it has only files that the new folder has too. If it is a
            symbolic link, its target is replaced.

    Yields:
        An empty temporary folder beside `folder`. It replaces `folder` at the end of the block, and is removed if that
        raises.

    Raises:
        DataError: `folder` contains other files, or is `.` or `..`.
        StorageError: The disk is full, read-only or fails.
        PathError: `folder` cannot be used.
    """
    if folder.name in ("", ".."):
        raise DataError(f"{folder}: expected a folder with a name of its own. Name another folder.")
    target = Path(os.path.realpath(folder)) if folder.is_symlink() else folder
    with storage_errors(folder), temporary_folder(target) as temporary:
        yield temporary
        mode = _mode(temporary) & 0o666
        for file in temporary.rglob("*"):
            if file.is_file():
                _flush(file)
                _set_mode(file, mode)
        if others := _names(target) - _names(temporary):
            raise DataError(f"{folder}: contains other files, such as {min(others)}. Empty it, or name another folder.")
        if _names(target):
            shutil.rmtree(target)
        os.replace(temporary, target)


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes to a file atomically. Raises as `atomic_write`."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write text to a file atomically, as UTF-8. Raises as `atomic_write`."""
    write_bytes(path, text.encode(errors=NON_UTF8))


def write_json(path: Path, value: Any) -> None:
    """Write an indented JSON document atomically, with keys in their given order. Raises as `atomic_write`."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def temporary_file(path: Path) -> Iterator[Path]:
    """Create an empty hidden file beside `path`, which is removed after the block unless it was renamed."""
    with _locked_temporary(path, _new_file) as temporary:
        yield temporary


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Create an empty hidden folder beside `path`, which is removed after the block unless it was renamed."""
    with _locked_temporary(path, _new_folder) as temporary:
        yield temporary


def is_temporary(name: str) -> bool:
    """Return whether a file or folder name is a temporary one."""
    return name.startswith(".") and name.endswith(TEMP_SUFFIX)


def sweep(folder: Path, target: str = "") -> None:
    """Remove temporaries whose process has died.

    Only those of this host are removed: a lock proves that a process lives, and some shared disks do not share locks.

    Args:
        folder: The folder to search; subfolders are not searched.
        target: Prefix of the final name; all by default.
    """
    with suppress(FileNotFoundError, NotADirectoryError):
        for name in os.listdir(folder):
            if is_temporary(name) and name.startswith(f".{target}") and name.endswith(_host_suffix()):
                _remove_if_dead(folder / name)


@contextmanager
def _locked_temporary(path: Path, make: Callable[[Path], int]) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent, f"{path.name}.")
    temporary, descriptor = _create_locked(path, make)
    try:
        yield temporary
    finally:
        _remove(temporary)
        os.close(descriptor)


def _create_locked(path: Path, make: Callable[[Path], int]) -> tuple[Path, int]:
    """Create and lock a temporary. Another process may sweep it before it is locked; then create it again."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_host_suffix()}")
        descriptor = make(temporary)
        with suppress(OSError):  # a disk without locks, on which nothing is swept either
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.path.exists(temporary):
            return temporary, descriptor
        os.close(descriptor)


def _new_file(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)


def _new_folder(path: Path) -> int:
    os.mkdir(path)
    return os.open(path, os.O_RDONLY)


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _set_mode(file: Path, mode: int) -> None:
    """Correct the mode of a file that a library made readable only for its owner. A linked file is someone else's."""
    if _mode(file) != mode and file.stat().st_nlink == 1:
        file.chmod(mode)


def _host_suffix() -> str:
    return f".{platform.node()}{TEMP_SUFFIX}"


def _remove_if_dead(temporary: Path) -> None:
    with suppress(OSError):  # its process lives, or it cannot be opened or removed
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(temporary)
        finally:
            os.close(descriptor)


def _remove(temporary: Path) -> None:
    if temporary.is_dir():
        shutil.rmtree(temporary, ignore_errors=True)
    else:
        temporary.unlink(missing_ok=True)


def _names(folder: Path) -> set[str]:
    """Return the names in a folder without temporaries; empty if the folder is missing."""
    return {name for name in os.listdir(folder) if not is_temporary(name)} if folder.exists() else set()


def _flush(file: Path) -> None:
    with open(file, "rb") as handle:
        os.fsync(handle.fileno())
