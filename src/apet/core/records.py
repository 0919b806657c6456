"""Files that carry their own digest, and those whose digests a record names: read as they were written, or refused."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from apet.core.atomic import write_json
from apet.core.hashing import DIGEST, bytes_digest, file_digest, has_valid_checksum, with_checksum
from apet.errors import CorruptError, DataError

OLDER = "an older version of apet wrote it, without the digests by which this one knows it to be whole."
CHANGED = "damaged: what it says is not what its own digest says."

MARK = b"sha256:"
BLANK = (MARK + b"0" * 64).decode()
"""What stands for the digest of a binary file, somewhere in it, while that is computed."""


def write_json_record(path: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """`write_json` of a record with its own digest behind it. Returns what was written."""
    written = with_checksum(record)
    write_json(path, written)
    return written


def read_json_record(path: Path, remedy: str, since: Collection[str] = ()) -> dict[str, Any]:
    """The record in a file, which is what its own digest says.

    remedy: what to do where it is not, a sentence. since: keys that tell a record of this version from an older one.
    Raises DataError for a file that is not there, or that an older version wrote; CorruptError for a damaged one.
    """
    record = read_object(path, remedy)
    if not {DIGEST, *since} <= record.keys():
        raise DataError(f"{path}: {OLDER} {remedy}")
    if not has_valid_checksum(record):
        raise CorruptError(f"{path}: {CHANGED} {remedy}")
    return record


def read_object(path: Path, remedy: str) -> dict[str, Any]:
    """The JSON object in a file, unverified. Raises as `read_json_record`."""
    try:
        record = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: no such file. {remedy}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). {remedy}") from None
    except (ValueError, RecursionError) as error:
        said = str(error).partition("\n")[0]
        raise CorruptError(f"{path}: damaged: not a JSON document ({said}). {remedy}") from None
    if not isinstance(record, dict):
        raise CorruptError(f"{path}: damaged: holds a {type(record).__name__}, not an object. {remedy}")
    return record


def check_files(folder: Path, files: Mapping[str, str], by: str, remedy: str) -> None:
    """Raises DataError for a file that is not there, CorruptError for one of other bytes.

    files: name in the folder -> SHA-256, as the folder's record of the name `by` has them.
    """
    for name, digest in files.items():
        path = folder / name
        if not path.is_file():
            raise DataError(f"{path}: no such file, which {by} names. {remedy}")
        if file_digest(path) != digest:
            raise CorruptError(f"{path}: damaged: not the bytes that {by} names. {remedy}")


def seal_bytes(content: bytes) -> bytes:
    """Bytes with the SHA-256 of them all in place of the last BLANK among them."""
    start = content.rindex(BLANK.encode()) + len(MARK)
    return content[:start] + bytes_digest(content).encode() + content[start + 64 :]


def is_whole(content: bytes) -> bool | None:
    """Whether bytes are those that `seal_bytes` gave; None where none of them is a digest."""
    found = content.rfind(MARK)
    if found < 0:
        return None
    start, blank = found + len(MARK), b"0" * 64
    said = content[start : start + 64]
    return bytes_digest(content[:start] + blank + content[start + 64 :]).encode() == said
