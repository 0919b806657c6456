"""Where a result comes from: digests, seeds, versions, and writes that are whole or not there."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from apet.core.atomic import is_temporary, temporary_file, temporary_folder
from apet.errors import DataError, storage_errors

DIGEST = "digest"
"""Key of a record's own digest."""

DIGESTS = Path(".apet/digests.json")
"""Digests of large files that stand outside the working copy."""

LIBRARIES = ("apet", "torch", "transformers", "tokenizers", "safetensors", "numpy", "pandas", "pyarrow")

ODD = "backslashreplace"
"""How what is no text is written, such as a path that is not UTF-8: as JSON's own escapes."""


def canonical(value: Any) -> str:
    """JSON text that equal values share: keys sorted, no spaces, dataclasses as objects, NaN refused."""
    return json.dumps(
        value,
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=False,
        allow_nan=False,
        default=lambda v: asdict(v) if is_dataclass(v) and not isinstance(v, type) else str(v),
    )


def digest(value: Any) -> str:
    """SHA-256 (64 hex digits) of a value's canonical JSON."""
    return bytes_digest(canonical(value).encode(errors=ODD))


def bytes_digest(content: bytes) -> str:
    """SHA-256 (64 hex digits) of bytes."""
    return hashlib.sha256(content).hexdigest()


def with_checksum(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record, as JSON gives it back, with its own digest under DIGEST: SHA-256 over all its other keys."""
    bare = json.loads(json.dumps({key: value for key, value in record.items() if key != DIGEST}))
    return {**bare, DIGEST: digest(bare)}


def has_valid_checksum(record: Mapping[str, Any]) -> bool:
    """Whether a record that was read from JSON is what its own digest says."""
    try:
        return record[DIGEST] == digest({key: value for key, value in record.items() if key != DIGEST})
    except (KeyError, ValueError, RecursionError):  # what has no canonical JSON, such as NaN, was never sealed
        return False


def file_digest(path: Path) -> str:
    """SHA-256 (64 hex digits) of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remembered_digest(path: Path) -> str:
    """`file_digest`, remembered with the file's size and time of change, so that large files are read once."""
    state = path.stat()
    key, stamp = str(path.resolve()), [state.st_size, state.st_mtime_ns]
    try:
        record = json.loads(DIGESTS.read_text())
        known = record["files"] if has_valid_checksum(record) else {}
    except (OSError, ValueError, KeyError, TypeError):
        known = {}
    if known.get(key, [None])[0] != stamp:
        known[key] = [stamp, file_digest(path)]
        write_json(DIGESTS, with_checksum({"files": known}))
    return known[key][1]


def folder_digest(folder: Path) -> str:
    """SHA-256 over the names and bytes of a folder's files, independent of their order on disk."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return digest({p.relative_to(folder).as_posix(): file_digest(p) for p in files})


def seed_for(*coordinates: Any) -> int:
    """A seed in [0, 2**63) that is a hash of its coordinates, so that no two streams of a study coincide.

    Products such as budget × seed collide ((4096, 2) and (8192, 1)); a hash of the tuple does not.
    """
    return int(digest(list(coordinates))[:16], 16) >> 1


def versions() -> dict[str, str]:
    """Version of Python and of each library whose change may change a number."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place when the block ends well, and vanishes when it does not.

    Raises as `storage_errors`.
    """
    with storage_errors(path), temporary_file(path) as temporary:
        yield temporary
        _flush(temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file under a temporary name beside its own, flush it to disk, and rename it."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` for text, UTF-8."""
    write_bytes(path, text.encode(errors=ODD))


def write_json(path: Path, value: Any) -> None:
    """`write_bytes` for a JSON document: readable, keys in their given order, one trailing newline."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def atomic_dir(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes `folder` when the block ends well, and vanishes when it does not.

    A `folder` that holds no other names is replaced: it was incomplete, or the caller would have kept it. DataError
    where it holds others, which are not ours to delete, or is no folder of its own (`.`). A link to a folder stays, and
    what it leads to is replaced. Raises as `storage_errors`.
    """
    if folder.name in ("", ".."):
        raise DataError(f"{folder}: is not a folder of its own. Name one, which need not be there yet.")
    target = Path(os.path.realpath(folder)) if folder.is_symlink() else folder
    with storage_errors(folder), temporary_folder(target) as temporary, storage_errors(temporary, shown_as=folder):
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _flush(file)
        os.chmod(temporary, 0o755)
        others = _names(target) - _names(temporary)
        if others:
            raise DataError(
                f"{folder}: holds what is not made here, such as {min(others)}, and would be replaced. Empty it, or "
                "name another folder."
            )
        if _names(target):
            shutil.rmtree(target)
        os.replace(temporary, target)


def _names(folder: Path) -> set[str]:
    """What is in a folder, but for temporaries; nothing where there is none."""
    return {name for name in os.listdir(folder) if not is_temporary(name)} if folder.exists() else set()


def _flush(file: Path) -> None:
    with open(file, "rb") as handle:
        os.fsync(handle.fileno())
