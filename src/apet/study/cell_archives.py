"""Archives of finished cells without θ, one per PLM: small enough for git, sufficient for all tables and figures."""

from __future__ import annotations

import io
import lzma
import re
import tarfile
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

from apet.core.atomic import atomic_dir, atomic_write, write_bytes
from apet.errors import CorruptError, DataError, storage_errors
from apet.study.cell_record import METRICS, PLANS, PREDICTIONS, WITHOUT_WEIGHTS, is_complete, read_record
from apet.study.paths import ResultPaths

SUFFIX = ".tar.xz"
PACKED = (METRICS, PLANS, PREDICTIONS)
"""Files of a cell in an archive. The others are WEIGHTS."""
RUN = "run.json"
"""Name in an archive of a cell's run record, which is in another folder of the results."""
MEMBER = re.compile(rf"((?:[\w@+=-][\w.@+=-]*/){{3}})({'|'.join(map(re.escape, (*PACKED, RUN)))})", re.ASCII)
"""A cell's path and a file name."""
MEMBER_LIMIT, ARCHIVE_LIMIT = 64 * 2**20, 8 * 2**30
"""Most unpacked bytes of a file of a cell, and of an archive."""


def pack(cells: Iterable[str], results: ResultPaths, out: Path) -> dict[Path, int]:
    """Write the finished cells of each PLM to an archive, whose bytes depend on the cells only.

    Archives of other PLMs in the folder are deleted.

    Args:
        cells: Paths of the cells of a study.
        results: The results folders.
        out: Folder of the archives.

    Returns:
        Number of cells by archive. A PLM without a finished cell has no archive.

    Raises:
        CorruptError: A cell is corrupt.
        StorageError: The disk is full, read-only or fails.
    """
    finished = sorted(path for path in cells if is_complete(results.cells / path, path))
    archives = {}
    for plm, paths in groupby(finished, lambda path: path.partition("/")[0]):
        packed = list(paths)
        with atomic_write(out / f"{plm}{SUFFIX}") as temporary, tarfile.open(temporary, "w:xz", preset=9) as archive:
            for path in packed:
                for name, content in _contents(path, results):
                    member = tarfile.TarInfo(f"{path}/{name}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
        archives[out / f"{plm}{SUFFIX}"] = len(packed)
    for other in set(out.glob(f"*{SUFFIX}")) - archives.keys():
        other.unlink()
    return archives


def unpack(folder: Path, results: ResultPaths) -> list[str]:
    """Write the cells of all archives in a folder that the results lack.

    Args:
        folder: Folder of archives.
        results: The results folders.

    Returns:
        Paths of the cells that were written.

    Raises:
        DataError: There is no archive, or an archive has a member that is no file of a cell.
        CorruptError: An archive or a cell in it is corrupt.
        StorageError: The disk is full, read-only or fails.
    """
    archives = sorted(folder.glob(f"*{SUFFIX}"))
    if not archives:
        raise DataError(f"{folder}: no file *{SUFFIX}. Name a folder that `apet pack` wrote.")
    return [path for archive in archives for path in _unpack(archive, results)]


def _contents(path: str, results: ResultPaths) -> Iterator[tuple[str, bytes]]:
    files = {name: results.cells / path / name for name in PACKED} | {RUN: results.runs / f"{path}.json"}
    yield from ((name, file.read_bytes()) for name, file in files.items() if name != RUN or file.is_file())


def _unpack(archive: Path, results: ResultPaths) -> Iterator[str]:
    for path, files in groupby(_members(archive), lambda member: member[0]):
        contents = {name: content for _, name, content in files}
        if (results.cells / path / METRICS).is_file():
            continue
        run = contents.pop(RUN, None)
        with storage_errors(results.cells), atomic_dir(results.cells / path) as new:
            for name, content in {**contents, WITHOUT_WEIGHTS: b""}.items():
                (new / name).write_bytes(content)
            if not _is_valid(new, path):
                raise CorruptError(f"{archive}: {path}: corrupt, or of another version of apet. Get the archive again.")
            if run:  # before the cell, because a cell that exists is skipped
                write_bytes(results.runs / f"{path}.json", run)
        yield path


def _is_valid(folder: Path, path: str) -> bool:
    try:
        return {PLANS, PREDICTIONS} <= read_record(folder, path)["files"].keys() and is_complete(folder, path)
    except (DataError, CorruptError):
        return False


class _LimitedFile(lzma.LZMAFile):
    """An .xz file that refuses to read much at once or to unpack too much, because headers state any size."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= MEMBER_LIMIT or self.tell() > ARCHIVE_LIMIT:
            raise ValueError("too large")
        return super().read(size)


def _members(archive: Path) -> Iterator[tuple[str, str, bytes]]:
    """Yield cell, file name and content of each member, in memory: nothing is extracted by its name in the archive."""
    try:
        with _LimitedFile(archive) as file, tarfile.open(fileobj=file, mode="r:") as opened:
            for member in opened:
                match = MEMBER.fullmatch(member.name)
                if not match or not member.isfile() or member.size > MEMBER_LIMIT:
                    raise DataError(f"{archive}: {member.name!r}: not a file of a cell. Get the archive again.")
                content = opened.extractfile(member)
                yield match[1].rstrip("/"), match[2], content.read() if content else b""
            while file.read(MEMBER_LIMIT):  # to its end, where the checksum is
                pass
    except (tarfile.TarError, lzma.LZMAError, EOFError, ValueError, RecursionError) as error:
        raise CorruptError(f"{archive}: corrupt ({error}). Get the archive again.") from None
