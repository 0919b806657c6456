"""Each kind of fault once, for real: signals amid writing, full and read-only disks, clocks, several runs at once.

`tests/soak.py` has the long version.
"""

from __future__ import annotations

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from snakemake.persistence.file import FilePersistence

from apet.core.atomic import STATE, temporary_folder
from apet.core.hashing import atomic_dir, atomic_write, digest, write_json
from apet.errors import ApetError, DataError, PathError, StorageError, storage_error
from apet.study.archive import prune, restore
from apet.study.workdir import acquire_lock, date_results, settle_times
from faults import LOCKED, Clock, enlarge, hit, read_only, small_disk, temporaries
from lab import Lab
from toy import ENTRIES, PARAMS, ROOT, Checkout

mounts = pytest.mark.mounts

WRITING = """
import sys, time
from pathlib import Path
from apet.cli.app import app
from apet.cli.app import commands
from apet.core.hashing import whole_file, whole_folder

def check(args):
    with whole_folder(args.out) as folder, whole_file(folder / "file") as file:
        file.write_text("half")
        print("writing", flush=True)
        time.sleep(60)

commands.check = check
sys.exit(app.main(["check", "--out", "results/made"]))
"""
"""A command of apet's that is amid its writing for a minute."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab"), steps=4, evaluations=1)


@pytest.fixture(scope="module")
def whole(lab: Lab) -> dict[str, bytes]:
    """Files of all cells, as a training leaves them that nothing befalls."""
    lab.train("whole", *lab.cells.values())
    return cells_below(lab.folder / "whole")


@dataclass(frozen=True)
class AtOnce:
    """A working copy in which several runs began at once. said: exit status and output of each."""

    checkout: Checkout
    said: list[tuple[int, str]]


@pytest.fixture(scope="module")
def at_once(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> AtOnce:
    checkout = lab.checkout(tmp_path_factory.mktemp("at-once") / "study")
    checkout.git("init", "--quiet")
    options = {"cwd": checkout.folder, "env": checkout.environment, "text": True}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    entries = (("snakemake", "cells"), ("snakemake", "cells"), ("dvc repro", "data"))
    runs = [subprocess.Popen([*ENTRIES[entry], target], **options, **pipes) for entry, target in entries]
    said = [run.communicate()[0] for run in runs]
    return AtOnce(checkout, [(run.returncode, text) for run, text in zip(runs, said, strict=True)])


def cells_below(results: Path) -> dict[str, bytes]:
    """Files of all cells, by path."""
    return {str(p.relative_to(results)): p.read_bytes() for p in sorted(results.glob("cells/*/*/*/*"))}


def writing(folder: Path) -> subprocess.Popen[str]:
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    process = subprocess.Popen([sys.executable, "-c", WRITING], cwd=folder, **options)
    assert process.stdout.readline() == "writing\n"
    return process


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT], ids=lambda sign: sign.name)
def test_a_signal_amid_writing_leaves_nothing_and_says_what_to_do(tmp_path, sign):
    process = writing(tmp_path)
    assert len(temporaries(tmp_path)) == 2
    assert hit(process, sign)
    said = process.communicate()[1]
    assert process.returncode == 75
    assert said == f"apet: {sign.name}: finished work is saved. Rerun the same command to resume.\n"
    assert list((tmp_path / "results").iterdir()) == []


def test_what_a_killed_process_was_writing_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    dead, alive = writing(tmp_path), writing(tmp_path)
    assert len(temporaries(tmp_path)) == 4
    hit(dead, signal.SIGKILL)
    dead.communicate()
    try:
        with atomic_dir(tmp_path / "results" / "other"):
            assert len(temporaries(tmp_path)) == 5, "it is not the same thing that is made"
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
def test_a_full_disk_is_named_whoever_writes(tmp_path, library):
    with small_disk(tmp_path / "disk", 8192):
        full = pytest.raises(StorageError, match=r"disk/made: cannot be used: the disk is full\. Free some space")
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


def test_other_errors_stay_what_they_are(tmp_path):
    assert storage_error(FileNotFoundError(2, "no such file", "name")) is None
    assert storage_error(ValueError("28")) is None
    with pytest.raises(ValueError, match="mine"), atomic_write(tmp_path / "name"):
        raise ValueError("mine")


@mounts
def test_training_on_a_full_disk_stops_at_once_and_ends_with_the_same_bytes(lab, whole):
    cells = [*lab.cells.values()]
    small = lab.folder / "small"
    with small_disk(small, 60_000):
        done = lab.apet(*lab._train("small", tuple(cells), ()))
        assert done.returncode == 2
        said = [line for line in done.stderr.splitlines() if line.startswith("apet: ")]
        assert len(said) == 1 and said[0].startswith("apet: small/"), done.stderr
        assert "the disk is full. Free some space, and say the same command again" in said[0]
        assert "Traceback" not in done.stderr
        kept = cells_below(small)
        assert 0 < len(kept) < len(whole) and kept == {path: whole[path] for path in kept}
        assert not list(small.rglob("*.part"))
        enlarge(small)
        lab.train("small", *cells)
        assert cells_below(small) == whole


def test_two_snakemake_and_a_dvc_repro_at_once(at_once, whole):
    """Whoever comes too late names the lock; said once more, the study ends with the bytes of a run alone."""
    for status, text in at_once.said:
        assert status == 0 or any(lock in text for lock in LOCKED), text[-3000:]
        assert "Traceback" not in text
    assert any(status == 0 for status, _ in at_once.said)
    at_once.checkout.snakemake("cells")
    assert cells_below(at_once.checkout.folder / "results") == whole
    assert temporaries(at_once.checkout.folder) == []


def test_locks_that_another_run_removes_are_made_again(tmp_path, monkeypatch):
    """As between the making of their folder and the first lock, which lie seconds apart; and amid the reading."""
    for name in ("_read_locks", "_write_locks", "_delete_locks"):
        monkeypatch.setattr(FilePersistence, name, getattr(FilePersistence, name))  # as it was, after this test
    mended = runpy.run_path(str(ROOT / "workflow/rules/locks.smk"))
    run = FilePersistence.__new__(FilePersistence)
    run._lockdir, run._lockfile = str(tmp_path / "locks"), {}
    run._write_locks("output", iter(["one", "two"]))
    assert [*run._read_locks()] == [("output", "one"), ("output", "two")]
    (tmp_path / "locks/0.input.lock").symlink_to("gone")  # it is listed, and cannot be opened
    threading.Timer(0.05, shutil.rmtree, [tmp_path / "locks"]).start()
    monkeypatch.setitem(mended["patient"].__globals__, "PATIENCE", 10**6)
    assert [*run._read_locks()] == []
    run._delete_locks()
    run._delete_locks()
    assert not (tmp_path / "locks").exists()


def test_a_folder_is_kept_for_one_run_until_that_ends(tmp_path):
    keeping = "from apet.study.workdir import claim, Path; claim(Path()); print('kept', flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    other = subprocess.Popen([sys.executable, "-c", keeping], cwd=tmp_path, **pipes)
    assert other.stdout.readline() == b"kept\n"
    with pytest.raises(ApetError, match="another run is at work here"):
        acquire_lock(tmp_path)
    other.kill()
    other.communicate()
    acquire_lock(tmp_path)


@mounts
def test_read_only_results(at_once):
    checkout = at_once.checkout
    said = "results{}: cannot be used: the file system is read-only. Make it writable, and say the same command again"
    with read_only(checkout.folder / "results"):
        assert "Nothing to be done" in checkout.snakemake("cells")
        done = checkout.run("apet", "prune", "--index", "results/cells.json", check=False)
        output = checkout.snakemake("results", check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"apet: {said.format('/cells.json')}") and len(done.stderr.splitlines()) == 1
    assert said.format("") in output and "Traceback" not in output


@mounts
@pytest.mark.parametrize("apart", ["models", ".attic"])
def test_what_lies_on_another_disk_than_the_attic_goes_there_and_comes_back(tmp_path, apart):
    entry, grid = "models/own", SimpleNamespace(cells=[], tasks={}, models={"own": None}, rungs={})
    grid.plm_folder = lambda model: entry
    other = SimpleNamespace(cells=[], tasks={}, models={}, rungs={})
    write_tree(tmp_path / entry)
    with small_disk(tmp_path / apart, 100_000):
        held = dated(tmp_path / entry)
        assert prune(other, tmp_path) == [entry]
        assert dated(tmp_path / ".attic" / entry) == held and [*tmp_path.glob("models/*")] == []
        assert restore(grid, tmp_path) == [entry]
        assert dated(tmp_path / entry) == held and not (tmp_path / ".attic" / entry).exists()


@mounts
def test_where_the_attics_disk_is_full_nothing_is_moved(tmp_path):
    other = SimpleNamespace(cells=[], tasks={}, models={}, rungs={})
    write_tree(tmp_path / "models/own")
    held = dated(tmp_path / "models/own")
    with small_disk(tmp_path / ".attic", 8192):
        with pytest.raises(StorageError, match=r"\.attic/models/own: cannot be used: the disk is full"):
            prune(other, tmp_path)
        assert dated(tmp_path / "models/own") == held and temporaries(tmp_path) == []
        assert [path for path in (tmp_path / ".attic").rglob("*") if path.is_file()] == []


@mounts
def test_a_file_among_folders_goes_to_another_disk_too(tmp_path):
    nothing = SimpleNamespace(cells=[], tasks={}, models={}, rungs={})
    (tmp_path / "models").mkdir()
    (tmp_path / "models/notes.txt").write_text("mine")
    with small_disk(tmp_path / ".attic", 100_000):
        assert prune(nothing, tmp_path) == ["models/notes.txt"]
        assert (tmp_path / ".attic/models/notes.txt").read_text() == "mine" and not (tmp_path / "models").exists()


def test_where_a_pretraining_stands_is_left_where_it_is(tmp_path):
    nothing = SimpleNamespace(cells=[], tasks={}, models={}, rungs={})
    (tmp_path / "models").mkdir()
    state = tmp_path / "models" / f".bloom-16x1-0123456789{STATE}"
    state.write_text("hours of work")
    assert prune(nothing, tmp_path) == [] and state.read_text() == "hours of work"


@pytest.mark.parametrize("place", [".", "mine/..", "/"])
def test_no_folder_that_holds_others_is_replaced(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="is not a folder of its own"), atomic_dir(Path(place)):
        pass
    refused = pytest.raises(DataError, match=r"mine: holds what is not made here, such as thesis\.tex")
    with refused, atomic_dir(Path("mine")) as folder:
        (folder / "made").write_text("")
    assert dated(tmp_path).keys() == {"mine/thesis.tex"} and temporaries(tmp_path) == []


def test_a_link_to_a_folder_stays_and_what_it_leads_to_is_replaced(tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch/made").write_text("half")
    (tmp_path / "link").symlink_to("scratch")
    with atomic_dir(tmp_path / "link") as folder:
        (folder / "made").write_text("whole")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "scratch/made").read_text() == "whole"


def in_the_way(folder: Path) -> None:
    """What stands in the way of something that is to be made."""
    (folder / "file").write_text("")
    (folder / "folder").mkdir()
    (folder / "nowhere").symlink_to("unmounted")
    (folder / "round").symlink_to("round")


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("file/made.json", "file: cannot be used: something else stands there"),
        ("nowhere/made.json", "nowhere: cannot be used: something else stands there"),
        ("folder", "folder: cannot be used: a folder stands where a file must be"),
        ("round/made.json", "round: cannot be used: something else stands there"),
        ("n" * 300, "n: cannot be used: the name is too long"),
    ],
)
def test_what_stands_in_the_way_is_named(tmp_path, target, message):
    in_the_way(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "apet.cli.app", "check", "--params", write_study(tmp_path), "--out", tmp_path / target],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


def write_study(folder: Path) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(PARAMS))
    return path


def test_a_file_where_a_folder_must_be_is_named(tmp_path):
    in_the_way(tmp_path)
    refused = pytest.raises(PathError, match="file: cannot be used: a file stands where a folder must be")
    with refused, atomic_dir(tmp_path / "file"):
        pass


def test_a_path_that_is_no_text_can_be_written_down(tmp_path):
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
    """Each file's time and bytes: a run that finds them newer makes again what comes of them."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def test_a_clock_that_jumps_back_is_in_the_way_of_no_job(at_once, whole):
    checkout = at_once.checkout
    Clock(checkout.folder).jump(-5)
    victim = next(checkout.folder.glob("results/cells/*/*/*/metrics.json"))
    victim.unlink()
    checkout.snakemake("cells")
    assert cells_below(checkout.folder / "results") == whole


def test_whose_the_results_are_is_told_by_no_clock(tmp_path):
    study, record = tmp_path / "results" / "studies" / "one.json", tmp_path / "results" / "metrics.json"
    study.parent.mkdir(parents=True)
    for hours in (0, 5, -5):
        study.write_text("")
        record.write_text('{"study": "another"}')
        Clock(tmp_path).jump(hours)
        date_results(SimpleNamespace(id="this"), study, tmp_path)
        assert record.stat().st_mtime_ns < study.stat().st_mtime_ns


def test_times_of_the_future_are_set_to_now_and_others_stay(tmp_path):
    names = ("data/tasks/one/task.json", "models/one/config.json", "results/cells/a/b/c/metrics.json", "data/wheels/x")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("")
    Clock(tmp_path).jump(3)
    past = {name: (tmp_path / name).stat().st_mtime_ns for name in names}
    settle_times(tmp_path)
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in names} == past
    Clock(tmp_path).jump(-9)
    settle_times(tmp_path)
    assert all((tmp_path / name).stat().st_mtime <= time.time() for name in names)


def test_a_temporary_folder_is_gone_after_its_block(tmp_path):
    with temporary_folder(tmp_path / "name") as folder:
        (folder / "file").write_text("")
    assert list(tmp_path.iterdir()) == []
