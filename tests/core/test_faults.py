"""Fault tolerance: signals during writes, full and read-only disks, clocks, concurrent runs."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from apet.core.atomic import STATE, atomic_dir, atomic_write, temporary_folder, write_json
from apet.core.hashing import digest
from apet.errors import ApetError, DataError, PathError, StorageError, storage_error
from apet.study.archive import prune, restore
from apet.study.cell_record import METRICS
from apet.study.paths import ResultPaths
from apet.study.workdir import acquire_lock, missing_cells, published_marker, publishing
from faults import LOCKED, Clock, enlarge, hit, read_only, small_disk, temporaries
from lab import Lab
from toy import ENTRIES, PARAMS, ROOT, Checkout

mounts = pytest.mark.mounts

WRITING = """
import sys, time
import apet.study.resolve
from apet.cli import app
from apet.core.atomic import atomic_dir, atomic_write

def resolve_study(params, out):
    with atomic_dir(out) as folder, atomic_write(folder / "file") as file:
        file.write_text("half")
        print("writing", flush=True)
        time.sleep(60)

apet.study.resolve.resolve_study = resolve_study
sys.exit(app.main(["resolve", "--out-file", "results/made"]))
"""
"""A command of apet that takes a minute to write a file."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"), max_steps=4, num_evals=1)


@pytest.fixture(scope="module")
def whole(lab: Lab) -> dict[str, bytes]:
    """Files of all cells after an undisturbed training."""
    lab.train("whole", *lab.cells.values())
    return cells_below(lab.folder / "whole")


@dataclass(frozen=True)
class AtOnce:
    """A working copy in which several runs started at the same time, with exit status and output of each."""

    checkout: Checkout
    printed: list[tuple[int, str]]


@pytest.fixture(scope="module")
def at_once(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> AtOnce:
    checkout = lab.checkout(tmp_path_factory.mktemp("at-once") / "study")
    checkout.git("init", "--quiet")
    options = {"cwd": checkout.folder, "env": checkout.environment, "text": True}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    entries = (("snakemake", "cells"), ("snakemake", "cells"), ("dvc repro", "data"))
    runs = [subprocess.Popen([*ENTRIES[entry], target], **options, **pipes) for entry, target in entries]
    printed = [run.communicate()[0] for run in runs]
    return AtOnce(checkout, [(run.returncode, text) for run, text in zip(runs, printed, strict=True)])


def cells_below(results: Path) -> dict[str, bytes]:
    """Return the files of all cells by path."""
    return {str(p.relative_to(results)): p.read_bytes() for p in sorted(results.glob("cells/*/*/*/*"))}


def writing(folder: Path) -> subprocess.Popen[str]:
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    process = subprocess.Popen([sys.executable, "-c", WRITING], cwd=folder, **options)
    assert process.stdout.readline() == "writing\n"
    return process


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT], ids=lambda sign: sign.name)
def test_write_interrupted_by_a_signal_leaves_no_file_and_prints_one_line(tmp_path, sign):
    process = writing(tmp_path)
    assert len(temporaries(tmp_path)) == 2
    assert hit(process, sign)
    printed = process.communicate()[1]
    assert process.returncode == 75
    assert printed == f"apet: {sign.name}: finished work is saved. Rerun the same command to resume.\n"
    assert list((tmp_path / "results").iterdir()) == []


@pytest.mark.slow
def test_sweep_removes_temporaries_of_killed_processes_only(tmp_path):
    dead, alive = writing(tmp_path), writing(tmp_path)
    assert len(temporaries(tmp_path)) == 4
    hit(dead, signal.SIGKILL)
    dead.communicate()
    try:
        with atomic_dir(tmp_path / "results" / "other"):
            assert len(temporaries(tmp_path)) == 5, "another target"
        with atomic_dir(tmp_path / "results" / "made") as folder:
            assert len(temporaries(tmp_path)) == 3
            (folder / "file").write_text("whole")
        assert len(temporaries(tmp_path)) == 2
        assert (tmp_path / "results" / "made" / "file").read_text() == "whole"
    finally:
        hit(alive, signal.SIGKILL)
        alive.communicate()


@mounts
@pytest.mark.parametrize("library", ["python", "parquet", "safetensors", "tokenizers"])
def test_full_disk_is_a_storage_error_in_every_library(tmp_path, library):
    with small_disk(tmp_path / "disk", 8192):
        full = pytest.raises(
            StorageError, match=r"disk/made: no space left on device\. Fix it and run the same command again"
        )
        with full, atomic_dir(tmp_path / "disk" / "made") as folder:
            WRITERS[library](folder / "file")
        assert list((tmp_path / "disk").iterdir()) == []


def write_parquet(path: Path) -> None:
    import pyarrow as pa

    from apet.data.prepared_files import write_table

    write_table(path, {"a": [*range(100_000)]}, pa.schema([("a", pa.int64())]))


def write_safetensors(path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(100_000)}, path)


def write_tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({f"w{n}": n for n in range(10_000)}, unk_token="w0")).save(str(path))


WRITERS = {
    "python": lambda path: path.write_bytes(bytes(100_000)),
    "parquet": write_parquet,
    "safetensors": write_safetensors,
    "tokenizers": write_tokenizer,
}


def test_storage_error_ignores_other_errors(tmp_path):
    assert storage_error(FileNotFoundError(2, "no such file", "name")) is None
    assert storage_error(ValueError("28")) is None
    with pytest.raises(ValueError, match="mine"), atomic_write(tmp_path / "name"):
        raise ValueError("mine")


@mounts
def test_training_on_a_full_disk_stops_and_resumes_to_the_same_bytes(lab, whole):
    cells = [*lab.cells.values()]
    small = lab.folder / "small"
    with small_disk(small, 60_000):
        done = lab.apet(*lab._train("small", tuple(cells), ()))
        assert done.returncode == 2
        printed = [line for line in done.stderr.splitlines() if line.startswith("apet: ")]
        assert len(printed) == 1 and printed[0].startswith("apet: small/"), done.stderr
        assert "no space left on device. Fix it and run the same command again" in printed[0]
        assert "Traceback" not in done.stderr
        kept = cells_below(small)
        assert 0 < len(kept) < len(whole) and kept == {path: whole[path] for path in kept}
        assert not list(small.rglob("*.part"))
        enlarge(small)
        lab.train("small", *cells)
        assert cells_below(small) == whole


@pytest.mark.slow
def test_concurrent_runs_end_with_the_bytes_of_one_run(at_once, whole):
    """All but one run stop at a lock. (Rarely, Snakemake's own lock raises FileNotFoundError.)"""
    for status, text in at_once.printed:
        assert status == 0 or any(lock in text for lock in LOCKED), text[-3000:]
        assert "Traceback" not in text or ".snakemake/locks" in text
    assert any(status == 0 for status, _ in at_once.printed)
    at_once.checkout.snakemake("cells")
    assert cells_below(at_once.checkout.folder / "results") == whole
    assert temporaries(at_once.checkout.folder) == []


def test_acquire_lock_excludes_other_processes_until_the_owner_ends(tmp_path):
    code = (
        "from apet.study.workdir import acquire_lock, Path; acquire_lock(Path()); print('locked', flush=True); input()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    other = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, **pipes)
    assert other.stdout.readline() == b"locked\n"
    with pytest.raises(ApetError, match="another run is in progress"):
        acquire_lock(tmp_path)
    other.kill()
    other.communicate()
    acquire_lock(tmp_path)


@mounts
def test_read_only_results_need_no_write_if_nothing_is_missing(at_once):
    checkout = at_once.checkout
    message = "results{}: read-only file system. Fix it and run the same command again"
    with read_only(checkout.folder / "results"):
        assert "Nothing to be done" in checkout.snakemake("cells")
        done = checkout.run("apet", "archive", "--digest-index", "results/cells.json", check=False)
        output = checkout.snakemake("results", check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"apet: {message.format('/cells.json')}") and len(done.stderr.splitlines()) == 1
    assert message.format("") in output and "Traceback" not in output


@mounts
@pytest.mark.parametrize("apart", ["models", ".archive"])
def test_archive_moves_entries_between_disks(tmp_path, apart):
    entry, grid = "models/own", SimpleNamespace(cells=[], tasks={}, models={"own": None}, pretrained_models={})
    grid.plm_folder = lambda model: entry
    other = SimpleNamespace(cells=[], tasks={}, models={}, pretrained_models={})
    write_tree(tmp_path / entry)
    with small_disk(tmp_path / apart, 100_000):
        held = dated(tmp_path / entry)
        assert prune(other, tmp_path) == [entry]
        assert dated(tmp_path / ".archive" / entry) == held and [*tmp_path.glob("models/*")] == []
        assert restore(grid, tmp_path) == [entry]
        assert dated(tmp_path / entry) == held and not (tmp_path / ".archive" / entry).exists()


@mounts
def test_archive_on_a_full_disk_keeps_the_source(tmp_path):
    other = SimpleNamespace(cells=[], tasks={}, models={}, pretrained_models={})
    write_tree(tmp_path / "models/own")
    before = dated(tmp_path / "models/own")
    with small_disk(tmp_path / ".archive", 8192):
        with pytest.raises(StorageError, match=r"\.archive/models/own: no space left on device"):
            prune(other, tmp_path)
        assert dated(tmp_path / "models/own") == before


def test_archive_moves_files_too(tmp_path):
    nothing = SimpleNamespace(cells=[], tasks={}, models={}, pretrained_models={})
    (tmp_path / "models").mkdir()
    (tmp_path / "models/notes.txt").write_text("mine")
    assert prune(nothing, tmp_path) == ["models/notes.txt"]
    assert (tmp_path / ".archive/models/notes.txt").read_text() == "mine" and not (tmp_path / "models").exists()


def test_prune_keeps_checkpoints_of_pretraining(tmp_path):
    nothing = SimpleNamespace(cells=[], tasks={}, models={}, pretrained_models={})
    (tmp_path / "models").mkdir()
    state = tmp_path / "models" / f".bloom-16x1-0123456789{STATE}"
    state.write_text("hours of work")
    assert prune(nothing, tmp_path) == [] and state.read_text() == "hours of work"


@pytest.mark.parametrize("folder", [".", "mine/..", "/"])
def test_atomic_dir_never_replaces_a_folder_with_other_files(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="expected a folder with a name"), atomic_dir(Path(folder)):
        pass
    refused = pytest.raises(DataError, match=r"mine: contains other files, such as thesis\.tex")
    with refused, atomic_dir(Path("mine")) as temporary:
        (temporary / "made").write_text("")
    assert dated(tmp_path).keys() == {"mine/thesis.tex"} and temporaries(tmp_path) == []


def test_atomic_dir_replaces_the_target_of_a_link(tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch/made").write_text("half")
    (tmp_path / "link").symlink_to("scratch")
    with atomic_dir(tmp_path / "link") as folder:
        (folder / "made").write_text("whole")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "scratch/made").read_text() == "whole"


def test_documented_command_replaces_files_of_other_users_by_own_copies(tmp_path):
    (command,) = re.findall(r"^\$ (find data models results ! .*)$", (ROOT / "docs/faults.md").read_text(), re.M)
    for folder in ("data", "models/a b", "results"):
        (tmp_path / folder).mkdir(parents=True)
    files = {tmp_path / "models/a b/it's": b"weights", tmp_path / "results/metrics.json": b"{}"}
    for path, content in files.items():
        path.write_bytes(content)
        os.utime(path, (1, 1))
        if os.geteuid() == 0:  # only root can make files of another user
            os.chown(path, 12345, -1)
    subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True)
    found = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == files
    assert {(path.stat().st_uid, path.stat().st_mtime) for path in files} == {(os.geteuid(), 1)}


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o027, 0o077], ids=oct)
def test_modes_are_those_of_open_and_mkdir(tmp_path, umask):
    """In a group folder a colleague can write (002); private results stay private (077)."""
    before = os.umask(umask)
    try:
        (tmp_path / "plain").mkdir()
        (tmp_path / "plain/file").write_text("")
        write_json(tmp_path / "a/record.json", {})
        with atomic_write(tmp_path / "weights.safetensors") as file:
            save_file({"w": torch.zeros(1)}, file)  # the library makes a file of its own, readable only for its owner
        with atomic_dir(tmp_path / "made") as folder:
            save_file({"w": torch.zeros(1)}, folder / "weights.safetensors")
            (folder / "deep").mkdir()
            write_json(folder / "deep/record.json", {})
        acquire_lock(tmp_path)
    finally:
        os.umask(before)
    plain = {False: mode_of(tmp_path / "plain/file"), True: mode_of(tmp_path / "plain")}
    assert plain == {False: 0o666 & ~umask, True: 0o777 & ~umask}
    paths = {path.relative_to(tmp_path).as_posix(): path for path in tmp_path.rglob("*")}
    assert len(paths) == 10 and {n: mode_of(p) for n, p in paths.items() if mode_of(p) != plain[p.is_dir()]} == {}


def test_mode_of_a_linked_file_is_not_changed(tmp_path):
    (tmp_path / "mine").write_text("")
    (tmp_path / "mine").chmod(0o400)
    with atomic_dir(tmp_path / "made") as folder:
        os.link(tmp_path / "mine", folder / "linked")
    assert mode_of(tmp_path / "mine") == 0o400


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def in_the_way(folder: Path) -> None:
    """Create paths that cannot be used as a folder or file."""
    (folder / "file").write_text("")
    (folder / "folder").mkdir()
    (folder / "nowhere").symlink_to("unmounted")
    (folder / "round").symlink_to("round")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("file/made.json", "file: file exists"),
        ("nowhere/made.json", "nowhere: file exists"),
        ("folder", "folder: is a directory"),
        ("round/made.json", "round: file exists"),
        ("n" * 300, "n: file name too long"),
    ],
)
def test_unusable_path_is_one_line_with_the_path(tmp_path, target, message):
    in_the_way(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "apet.cli.app", "resolve", "--params", write_study(tmp_path),
         "--out-file", tmp_path / target],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


def write_study(folder: Path) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(PARAMS))
    return path


def test_atomic_dir_over_a_file_is_a_path_error(tmp_path):
    in_the_way(tmp_path)
    refused = pytest.raises(PathError, match="file: not a directory")
    with refused, atomic_dir(tmp_path / "file"):
        pass


def test_write_json_escapes_paths_that_are_not_utf8(tmp_path):
    odd = os.fsdecode(b"plm\xff")
    write_json(tmp_path / "record.json", {"folder": odd})
    assert json.loads((tmp_path / "record.json").read_text()) == {"folder": odd}
    assert digest(odd) != digest("plm")


def write_tree(folder: Path) -> None:
    (folder / "deep").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "deep" / "weights").write_bytes(bytes(20_000))
    for path in (folder / "config.json", folder / "deep" / "weights"):
        os.utime(path, ns=(10**18, 10**18))


def dated(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return each file's time and bytes."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.mark.slow
def test_clock_that_jumps_back_between_runs_needs_a_touch_at_most(at_once, whole):
    """Existence decides what to run. Only Snakemake's own check compares the times of a job's inputs and outputs."""
    checkout = at_once.checkout
    Clock(checkout.folder).jump(-5)
    assert "Nothing to be done" in checkout.snakemake("-n", "cells")
    victim = next(checkout.folder.glob("results/cells/*/*/*/metrics.json"))
    victim.unlink()
    assert "older modification time" in checkout.snakemake("cells", check=False)
    checkout.run("bash", "-c", touch_command())
    checkout.snakemake("cells")
    assert cells_below(checkout.folder / "results") == whole


def touch_command() -> str:
    """Return the command in docs/faults.md."""
    return re.search(r"`(find .* touch [^`]*)`", (ROOT / "docs/faults.md").read_text())[1]


def study_of(name: str, cells: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the part of a study's record that names its cells."""
    return {"study": name, "cells": {path: {} for path in cells}}


def test_publishing_leaves_the_marker_of_the_last_study_only(tmp_path):
    results = ResultPaths(tmp_path / "results")
    for study in ("one", "two", "one"):
        with publishing(study_of(study), results, results.root):
            assert not published_marker(results.root, "one").exists()
            assert not published_marker(results.root, "two").exists()
        assert [path.name for path in (results.root / "published").iterdir()] == [study]


def test_publishing_leaves_no_marker_if_the_results_are_incomplete(tmp_path):
    results = ResultPaths(tmp_path / "results")
    with publishing(study_of("one"), results, results.root):
        pass
    with pytest.raises(ValueError, match="mine"), publishing(study_of("one"), results, results.root):
        raise ValueError("mine")
    assert not published_marker(results.root, "one").exists()


def test_published_marker_names_missing_cells(tmp_path):
    results = ResultPaths(tmp_path / "results")
    cells = ("plm/task/a", "plm/task/b")
    (results.cells / cells[0]).mkdir(parents=True)
    (results.cells / cells[0] / METRICS).write_text("{}")
    assert missing_cells(cells, results) == [cells[1]]
    with publishing(study_of("one", cells), results, results.root):
        pass
    partial = published_marker(results.root, "one", cells[1:])
    assert partial.exists() and len({partial, *(published_marker(results.root, "one", c) for c in ((), cells))}) == 3


def test_temporary_folder_is_removed_after_the_block(tmp_path):
    with temporary_folder(tmp_path / "name") as folder:
        (folder / "file").write_text("")
    assert list(tmp_path.iterdir()) == []
