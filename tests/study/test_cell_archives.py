"""Archives of cells without θ: equal bytes, and refusal of everything that is no finished cell."""

from __future__ import annotations

import io
import json
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from apet.core.atomic import write_json
from apet.core.hashing import with_checksum
from apet.errors import CorruptError, DataError
from apet.study.cell_archives import pack, unpack
from apet.study.cell_record import (
    FORMAT,
    METRICS,
    PLANS,
    PREDICTIONS,
    THETA,
    WITHOUT_WEIGHTS,
    is_complete,
    read_record,
    write_record,
)
from apet.study.paths import ResultPaths

CELLS = [f"{plm}/task/uniform-{budget}-0123456789" for plm in ("bloom-8x1", "bert-8x1") for budget in ("1", "0.1pct")]


@pytest.fixture
def results(tmp_path: Path) -> ResultPaths:
    """Four finished cells of two PLMs, three of them with a run record."""
    found = ResultPaths(tmp_path / "results")
    for number, cell in enumerate(CELLS):
        folder = found.cells / cell
        folder.mkdir(parents=True)
        for name in (THETA, PLANS, PREDICTIONS):
            (folder / name).write_text(f"{name} of {cell}")
        write_record(folder, cell, {"number": number})
        if number:
            write_json(found.runs / f"{cell}.json", {"seconds": number})
    return found


def archive(folder: Path, members: dict[str, bytes], kind: bytes = tarfile.REGTYPE) -> Path:
    folder.mkdir()
    with tarfile.open(folder / "plm.tar.xz", "w:xz") as opened:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size, member.type, member.linkname = len(content), kind, "/etc/passwd"
            opened.addfile(member, io.BytesIO(content))
    return folder


def test_unpacked_cells_are_finished_and_lack_theta_only(results, tmp_path):
    counts = pack([*CELLS, "bloom-8x1/task/missing-1-0123456789"], results, tmp_path / "packed")
    assert {path.name: count for path, count in counts.items()} == {"bert-8x1.tar.xz": 2, "bloom-8x1.tar.xz": 2}
    other = ResultPaths(tmp_path / "other")
    assert sorted(unpack(tmp_path / "packed", other)) == sorted(CELLS)
    for cell in CELLS:
        assert is_complete(other.cells / cell, cell)
        assert read_record(other.cells / cell, cell) == read_record(results.cells / cell, cell)
        assert {file.name for file in (other.cells / cell).iterdir()} == {METRICS, PLANS, PREDICTIONS, WITHOUT_WEIGHTS}
    runs = {path.relative_to(results.runs): path.read_bytes() for path in results.runs.rglob("*.json")}
    assert len(runs) == 3 and runs == {p.relative_to(other.runs): p.read_bytes() for p in other.runs.rglob("*.json")}


def test_archives_have_the_same_bytes_with_and_without_theta(results, tmp_path):
    first = pack(CELLS, results, tmp_path / "first")
    other = ResultPaths(tmp_path / "other")
    unpack(tmp_path / "first", other)
    second = pack(reversed(CELLS), other, tmp_path / "second")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_unpack_keeps_the_cells_that_are_there(results, tmp_path):
    pack(CELLS, results, tmp_path / "packed")
    assert unpack(tmp_path / "packed", results) == []
    assert all((results.cells / cell / THETA).is_file() for cell in CELLS)


def test_unpack_without_archives_says_what_to_name(results, tmp_path):
    with pytest.raises(DataError, match=r"no file \*.tar.xz"):
        unpack(tmp_path, results)


@pytest.mark.parametrize("harm", [lambda b: b[:-40], lambda b: b[:100] + b"?" + b[101:], lambda b: b"no archive"])
def test_corrupt_archive_is_refused(results, tmp_path, harm: Callable[[bytes], bytes]):
    (path,) = pack(CELLS[:2], results, tmp_path / "packed")
    path.write_bytes(harm(path.read_bytes()))
    with pytest.raises(CorruptError, match=f"{path}: corrupt"):
        unpack(tmp_path / "packed", ResultPaths(tmp_path / "other"))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("../../../escape/metrics.json", tarfile.REGTYPE),
        ("/plm/task/cell/metrics.json", tarfile.REGTYPE),
        ("plm/../cell/metrics.json", tarfile.REGTYPE),
        ("plm/task/cell/theta.safetensors", tarfile.REGTYPE),
        ("plm/task/cell/metrics.json", tarfile.SYMTYPE),
        ("plm/task/cell/metrics.json", tarfile.DIRTYPE),
    ],
)
def test_member_that_is_no_file_of_a_cell_is_refused(tmp_path, name, kind):
    folder = archive(tmp_path / "packed", {name: b"{}" if kind == tarfile.REGTYPE else b""}, kind)
    with pytest.raises(DataError, match="not a file of a cell"):
        unpack(folder, ResultPaths(tmp_path / "results"))
    assert not (tmp_path / "results").exists() and {path.name for path in tmp_path.iterdir()} == {"packed"}


def without_files(files: object) -> bytes:
    return json.dumps(with_checksum({"format": FORMAT, "path": CELLS[0], "files": files})).encode()


@pytest.mark.parametrize(
    "files",
    [
        {METRICS: None, PLANS: b"another", PREDICTIONS: None},
        {METRICS: None, PLANS: None},
        {PLANS: None},
        {METRICS: b"{}", PLANS: None, PREDICTIONS: None},
        {METRICS: without_files({}), PLANS: None, PREDICTIONS: None},
        {METRICS: without_files([])},
    ],
)
def test_cell_with_wrong_or_missing_files_is_refused(results, tmp_path, files):
    folder, other = results.cells / CELLS[0], ResultPaths(tmp_path / "other")
    members = {f"{CELLS[0]}/{name}": content or (folder / name).read_bytes() for name, content in files.items()}
    with pytest.raises(CorruptError, match=f"packed/plm.tar.xz: {CELLS[0]}: corrupt"):
        unpack(archive(tmp_path / "packed", members), other)
    assert not (other.cells / CELLS[0]).exists()


def test_cell_under_another_name_is_refused(results, tmp_path):
    folder = results.cells / CELLS[0]
    members = {f"{CELLS[1]}/{name}": (folder / name).read_bytes() for name in (METRICS, PLANS, PREDICTIONS)}
    with pytest.raises(CorruptError, match=f"{CELLS[1]}: corrupt"):
        unpack(archive(tmp_path / "packed", members), ResultPaths(tmp_path / "other"))


def header(name: str, size: int, kind: bytes) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    "content",
    [
        header("x", 2**28, tarfile.XHDTYPE) + bytes(2**20),  # a header that states 256 MiB
        header("x", 2**28, tarfile.GNUTYPE_LONGNAME) + bytes(2**20),
        3000 * (header("x", 1, tarfile.GNUTYPE_LONGNAME) + bytes(512)),
        header("x", 512, tarfile.XHDTYPE) + b"26 GNU.sparse.map=a,b,cd\n".ljust(512, b"\0"),
    ],
)
def test_malformed_headers_are_refused_in_little_memory(tmp_path, content):
    (tmp_path / "plm.tar.xz").write_bytes(lzma.compress(content))
    with pytest.raises((CorruptError, DataError), match=r"plm\.tar\.xz: "):
        unpack(tmp_path, ResultPaths(tmp_path / "results"))


def test_pack_deletes_archives_of_other_plms(results, tmp_path):
    pack(CELLS, results, tmp_path / "packed")
    pack(CELLS[:2], results, tmp_path / "packed")
    assert [path.name for path in (tmp_path / "packed").iterdir()] == ["bloom-8x1.tar.xz"]
