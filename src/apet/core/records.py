"""JSON records with a checksum, and checks of the files that a record names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apet.core.atomic import write_json
from apet.core.hashing import file_digest, has_valid_checksum, with_checksum
from apet.errors import CorruptError, DataError


def write_json_record(path: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Write a record with its checksum to a JSON file.

    Args:
        path: The file to create or replace.
        record: Any mapping that JSON can hold.

    Returns:
        The record with its checksum.
    """
    written = with_checksum(record)
    write_json(path, written)
    return written


def read_json_record(path: Path, hint: str) -> dict[str, Any]:
    """Read a record and verify its checksum.

    Args:
        path: A file of `write_json_record`.
        hint: A sentence that tells the user what to do if the file is missing or corrupt.

    Returns:
        The record with its checksum.

    Raises:
        DataError: The file is missing or cannot be read.
        CorruptError: The file does not match its checksum.
    """
    record = read_object(path, hint)
    if not has_valid_checksum(record):
        raise CorruptError(f"{path}: corrupt: wrong checksum. {hint}")
    return record


def read_object(path: Path, hint: str) -> dict[str, Any]:
    """Read a JSON object without verifying a checksum. Raises as `read_json_record`."""
    try:
        record = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: no such file. {hint}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). {hint}") from None
    except (ValueError, RecursionError) as error:
        reason = str(error).partition("\n")[0]
        raise CorruptError(f"{path}: corrupt: not a JSON document ({reason}). {hint}") from None
    if not isinstance(record, dict):
        raise CorruptError(f"{path}: corrupt: expected an object, got {type(record).__name__}. {hint}")
    return record


def check_files(folder: Path, files: Mapping[str, str], record_name: str, hint: str) -> None:
    """Compare the files of a folder with their digests.

    Args:
        folder: The folder.
        files: SHA-256 by file name, as the folder's record has them.
        record_name: Name of the record, for messages.
        hint: A sentence that tells the user what to do about a missing or corrupt file.

    Raises:
        DataError: A file is missing.
        CorruptError: A file does not match its digest.
    """
    for name, digest in files.items():
        path = folder / name
        if not path.is_file():
            raise DataError(f"{path}: no such file, but {record_name} lists it. {hint}")
        if file_digest(path) != digest:
            raise CorruptError(f"{path}: corrupt: not the checksum in {record_name}. {hint}")
