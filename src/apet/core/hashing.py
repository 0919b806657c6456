"""Digests, record checksums, seeds and library versions."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from apet.core.atomic import NON_UTF8, write_json
from apet.errors import PathError, StorageError

DIGEST = "digest"
"""Key of a record's checksum."""

DIGEST_CACHE = Path(".apet/digests.json")
"""Digests of large files outside the working copy."""

RECENT = 2
"""Seconds after which the times of a file are trusted: the coarsest resolution of a disk's clock (FAT, some NFS)."""

LIBRARIES = ("apet", "torch", "transformers", "tokenizers", "safetensors", "numpy", "pandas", "pyarrow")


def canonical(value: Any) -> str:
    """Return the JSON text that equal values share: keys sorted, no spaces, dataclasses as objects, NaN refused."""
    return json.dumps(
        value,
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=False,
        allow_nan=False,
        default=lambda v: asdict(v) if is_dataclass(v) and not isinstance(v, type) else str(v),
    )


def digest(value: Any) -> str:
    """Return the SHA-256 (64 hex digits) of a value's canonical JSON."""
    return bytes_digest(canonical(value).encode(errors=NON_UTF8))


def bytes_digest(content: bytes) -> str:
    """Return the SHA-256 (64 hex digits) of bytes."""
    return hashlib.sha256(content).hexdigest()


def with_checksum(record: Mapping[str, Any]) -> dict[str, Any]:
    """Add a checksum to a record.

    Args:
        record: Any mapping that JSON can hold; an older checksum in it is replaced.

    Returns:
        The record after a round trip through JSON, with the SHA-256 of all other keys under DIGEST.
    """
    bare = json.loads(json.dumps({key: value for key, value in record.items() if key != DIGEST}))
    return {**bare, DIGEST: digest(bare)}


def has_valid_checksum(record: Mapping[str, Any]) -> bool:
    """Return whether a record that was read from JSON matches its checksum."""
    try:
        return record[DIGEST] == digest({key: value for key, value in record.items() if key != DIGEST})
    except (KeyError, ValueError, RecursionError):  # ValueError: NaN, which `with_checksum` never writes
        return False


def file_digest(path: Path) -> str:
    """Return the SHA-256 (64 hex digits) of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_stamp(path: Path) -> tuple[int, ...]:
    """Return numbers of which at least one changes with a file's content: inode, size and two times.

    Only the kernel sets the time of the last change (ctime), so a copy that keeps the modification time is noticed. The
    assumption: two writes are further apart than the resolution of the disk's clock, and this clock is never set back.

    Args:
        path: A file.

    Returns:
        Inode, bytes, and the times of the last modification and change in nanoseconds.
    """
    state = path.stat()
    return state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


def remembered_digest(path: Path) -> str:
    """Return `file_digest`, cached in DIGEST_CACHE by path and `file_stamp`.

    A file that changed in the last RECENT seconds is not remembered, because the next write might get the same stamp.

    Args:
        path: A file.

    Returns:
        SHA-256, 64 hex digits.
    """
    key, stamp = str(path.resolve()), list(file_stamp(path))
    try:
        record = json.loads(DIGEST_CACHE.read_bytes())
        known = record["files"] if has_valid_checksum(record) else {}
    except (OSError, ValueError, KeyError, TypeError):
        known = {}
    if known.get(key, [None])[0] != stamp:
        settled = abs(time.time_ns() - stamp[-1]) > RECENT * 10**9
        known[key] = [stamp if settled else None, file_digest(path)]
        with suppress(StorageError, PathError):  # another user's folder, or a read-only disk
            write_json(DIGEST_CACHE, with_checksum({"files": known}))
    return known[key][1]


def folder_digest(folder: Path) -> str:
    """Return the SHA-256 over the names and bytes of a folder's files, independent of their order on disk."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return digest({p.relative_to(folder).as_posix(): file_digest(p) for p in files})


def seed_for(*coordinates: Any) -> int:
    """Return a seed that is a hash of its coordinates, so that no two random streams of a study coincide.

    A product such as budget × seed would collide: (4096, 2) and (8192, 1) give the same number.

    Args:
        *coordinates: The name of the stream, then all that it depends on. Each must have a canonical JSON text.

    Returns:
        An integer in [0, 2**63).
    """
    return int(digest(list(coordinates))[:16], 16) >> 1


def versions() -> dict[str, str]:
    """Return the version of Python and of each library that can change a number."""
    installed = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            installed[name] = "absent"
    return installed
