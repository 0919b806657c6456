"""Corruption of every file that apet reads: each command stops with a message or gives the same results."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml

from apet.cli.app import main
from apet.core import hashing
from apet.core.hashing import has_valid_checksum, with_checksum
from apet.data import wheels
from apet.data.sources import LocalSource
from apet.errors import ApetError
from apet.models.loading import load_plm
from apet.study.cell_record import FORMAT, METRICS, PLANS, PREDICTIONS, THETA
from apet.study.cells import TRAINER_VERSION, Cell
from apet.study.resolve import read_cells
from apet.study.resolved import read_resolved
from lab import TRAINING, write_words
from saved import save_plm
from tiny import tiny_plm
from toy import PARAMS
from toy_corpus import write_corpus
from toy_wheels import pin_toy

pytestmark = pytest.mark.slow

DAMAGES = {"cut": 1, "flipped": 2, "empty": 1, "swapped": 1}
"""Kind of damage -> number of random positions."""

COUNTS: Counter[tuple[str, str, str]] = Counter()
"""(kind of file, damage, outcome) -> count."""


@dataclass(frozen=True)
class Ran:
    """Result of a command: exit status, standard error and output, and the files it wrote, without times."""

    status: int
    stderr: str
    stdout: str
    files: dict[str, bytes]


class Place:
    """A small working copy in the current folder with two of each file that apet reads, so that they can be swapped."""

    def __init__(self) -> None:
        with pytest.MonkeyPatch.context() as pin:
            self.wheels = [pin_toy(pin, Path(name), {"toy/rows.tab": name}) for name in ("other_wheels", "wheels")]
            self.pinned = wheels.known_wheels()
        self._studies()
        cells = read_cells(Path("study.json"))
        self.cells = [cell for cell in cells if cell.model == "plm"]
        self.second = next(cell for cell in cells if cell.model == "second")
        for params, task in (("study", "words"), ("other", "others")):
            self.must("prepare-task", "--params", f"{params}.yaml", "--task", task)
        for model in ("plm", "second"):
            self.must("download-model", "--params", "study.yaml", "--model", model)
        self.plm, self.data = Path(self.cells[0].plm_folder), Path(self.cells[0].data_folder)
        for study, results in ((self.study, "results"), (self.other_study, "other")):
            cells = [cell for cell in read_cells(study) if cell.model == "plm"]
            self.must(*self._train(study, results, cells))
            self.must(
                "aggregate", "--resolved", str(study), "--results-dir", results, "--allow-missing", "--out-dir", results
            )
            self.must("findings", "--tidy", f"{results}/tidy.parquet", "--out-dir", results)
        for number, name in enumerate(("ladder", "other_ladder")):
            write_corpus(Path(name), 60 + number, 20 + number)
            self.must(
                "train-tokenizer", "--params", "study.yaml", "--corpus-dir", name, "--out-dir", f"{name}/tokenizer"
            )
            self.must(*self._pretrain(f"{name}/plm", name))

    def _studies(self) -> None:
        """Write resolved studies: one, one with another task, one with another seed."""
        for name, first in (("plm", 0.0), ("second", 1.0)):
            plm = tiny_plm("bloom", fused=False)
            with torch.no_grad():
                plm.model.get_input_embeddings().weight[0, 0] += first
            save_plm(plm.model, Path(name))
        for name in ("words", "others"):
            write_words(Path(), name, 120)
        study = copy.deepcopy(PARAMS) | {"models": ["./plm", "./second"], "tasks": ["words.yaml"]}
        study["training"] |= TRAINING | {"max_steps": 2, "num_evals": 1, "lr_multipliers": [1.0]}
        study |= {"grid": [{"placements": ["none", "lora"], "budgets": ["@own"]}]}
        for name, changes in (("study", {}), ("other", {"tasks": ["others.yaml"]}), ("seed", {"seed": 2})):
            Path(f"{name}.yaml").write_text(yaml.safe_dump(study | changes))
            self.must("resolve", "--params", f"{name}.yaml", "--out-file", f"{name}.json")
        # The names that Snakemake gives them.
        ids = {name: read_resolved(Path(f"{name}.json"))["study"] for name in ("study", "seed")}
        self.study, self.other_study = (Path(f"{found[:12]}.json") for found in ids.values())
        for name, found in ids.items():
            shutil.copy(f"{name}.json", f"{found[:12]}.json")
        self.must("prepare-task", "--params", "seed.yaml", "--task", "words")

    def must(self, *words: str) -> None:
        ran = self.run(*words)
        assert ran.status == 0, ran.stderr

    def run(self, *words: str) -> Ran:
        """Run a command in this process, with a new folder as {out}. The pseudo-command `load` loads a PLM."""
        out, stderr, stdout = Path("out"), io.StringIO(), io.StringIO()
        with (
            contextlib.redirect_stderr(stderr),
            contextlib.redirect_stdout(stdout),
            pytest.MonkeyPatch.context() as patch,
        ):
            if words[0] == "download-wheels":
                patch.setattr(wheels, "known_wheels", lambda: self.pinned)
            status = load(words[1]) if words[0] == "load" else main([word.format(out=out) for word in words])
        found = [path for path in out.rglob("*") if path.is_file() and "runs" not in path.parts]
        files = {path.as_posix(): path.read_bytes() for path in found if path.name != "costs.csv"}
        shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree("results/failed", ignore_errors=True)
        return Ran(status, stderr.getvalue(), stdout.getvalue(), files)

    def _train(self, study: Path, results: str, cells: list[Cell]) -> list[str]:
        paths = ["--model-dir", cells[0].plm_folder, "--data-dir", cells[0].data_folder, "--results-dir", results]
        return ["train", "--resolved", str(study), *paths, *(cell.path for cell in cells)]

    def _pretrain(self, out: str, ladder: str = "ladder") -> list[str]:
        inputs = ["--corpus-dir", ladder, "--tokenizer-dir", f"{ladder}/tokenizer", "--out-dir", out]
        return ["pretrain", "--params", "study.yaml", "--model", "bloom-16x1", *inputs]

    @property
    def commands(self) -> dict[str, list[str]]:
        """By name, the words of each command that reads something."""
        one, results = self.cells[1].path, ["--results-dir", "results"]
        tidy = ["--tidy", "results/tidy.parquet"]
        return {
            "download-wheels": ["download-wheels", "--out-dir", "wheels", "toy"],
            "train-tokenizer": [
                "train-tokenizer",
                "--params",
                "study.yaml",
                "--corpus-dir",
                "ladder",
                "--out-dir",
                "{out}/tokenizer",
            ],
            "pretrain": self._pretrain("{out}/plm"),
            "load": ["load", "ladder/plm"],
            "estimate": ["estimate", "--params", "study.yaml", "--json"],
            "resolve": ["resolve", "--params", "study.yaml", "--out-file", "{out}/study.json"],
            "train": self._train(self.study, "{out}", self.cells),
            "train again": self._train(self.study, "results", self.cells),
            "verify": ["verify", "--resolved", str(self.study), *results, one],
            "status": ["status", "--resolved", str(self.study), *results],
            "aggregate": [
                "aggregate",
                "--resolved",
                str(self.study),
                *results,
                "--allow-missing",
                "--out-dir",
                "{out}",
            ],
            "show": ["show", one, *results],
            "export": ["export", one, *results, "--format", "delta", "--out-dir", "{out}/delta"],
            "findings": ["findings", *tidy, "--out-dir", "{out}"],
            "figures": ["figures", *tidy, "--out-dir", "{out}"],
            "report": ["report", *results, "--out-file", "{out}/report.html"],
        }

    def file(self, kind: str) -> tuple[Path, Path]:
        """Return a file of a kind, and another one of the same kind."""
        part = kind.partition(": ")[2]
        cell, other = (Path("results/cells") / cell.path for cell in (self.cells[1], self.cells[0]))
        plm, data = (Path(cell.plm_folder) for cell in (self.cells[0], self.second)), Path("data/tasks")
        return {
            "wheel": lambda: tuple(reversed(self.wheels)),
            "corpus": lambda: (Path("ladder") / part, Path("other_ladder") / part),
            "tokenizer": lambda: (Path("ladder/tokenizer") / part, Path("other_ladder/tokenizer") / part),
            "ladder model": lambda: (Path("ladder/plm") / part, Path("other_ladder/plm") / part),
            "PLM": lambda: tuple(folder / part for folder in plm),
            "task": lambda: (self.data / part, next(data.glob("others-*")) / part),
            "study": lambda: (self.study, self.other_study),
            "cell": lambda: (cell / part, other / part),
            "tidy table": lambda: (Path("results/tidy.parquet"), Path("other/tidy.parquet")),
            "findings": lambda: (Path("results/findings.json"), Path("other/findings.json")),
            "remembered digests": lambda: (Path(".apet/digests.json"), self.study),
        }[kind.partition(":")[0]]()


def load(folder: str) -> int:
    """Load a PLM as a cell does."""
    try:
        print(load_plm(Path(folder), "plm").record())
    except ApetError as error:
        print(f"apet: {error}", file=sys.stderr)
        return error.status
    return 0


PLM_FILES = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json")
TABLE: dict[str, tuple[str, ...]] = {
    "wheel": ("download-wheels",),
    "corpus: corpus.json": ("train-tokenizer", "pretrain"),
    "corpus: train.parquet": ("train-tokenizer", "pretrain"),
    "corpus: heldout.parquet": ("pretrain",),
    **{f"tokenizer: {name}": ("pretrain",) for name in ("training.json", "tokenizer.json", "tokenizer_config.json")},
    **{f"ladder model: {name}": ("load",) for name in ("pretraining.json", *PLM_FILES)},
    **{f"PLM: {name}": ("train", "export") for name in ("snapshot.json", *PLM_FILES)},
    "task: task.json": ("train", "estimate", "export"),
    **{f"task: {split}.parquet": ("train",) for split in ("train", "validation", "test")},
    "study": ("train", "verify", "status", "aggregate"),
    f"cell: {METRICS}": ("train again", "verify", "aggregate", "show", "export"),
    f"cell: {THETA}": ("train again", "verify", "export"),
    f"cell: {PLANS}": ("train again", "show", "export"),
    f"cell: {PREDICTIONS}": ("train again", "aggregate"),
    "tidy table": ("findings", "figures", "report"),
    "findings": ("report",),
    "remembered digests": ("resolve",),
}
"""Kind of file -> the commands that read it."""

UNDETECTABLE = {("tidy table", "swapped", "findings"), ("tidy table", "swapped", "figures")}
"""Undetectable: the file is valid, and the command has no other information."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("place"))
        yield Place()


def damaged(content: bytes, damage: str, other: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(content))
    if damage == "flipped":
        return content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]
    return {"cut": content[:at], "empty": b"", "swapped": other}[damage]


@contextlib.contextmanager
def holding(path: Path, content: bytes) -> Iterator[None]:
    """Replace a file's content for a block, and keep its modification time, as a failing disk does."""
    before, state = path.read_bytes(), path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    try:
        yield
    finally:
        path.write_bytes(before)
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def came_of(place: Place, kind: str, damage: str, command: str, draw: random.Random, whole: Callable[[], Ran]) -> str:
    """Return the outcome of a command on a damaged file: `stopped` or `the same`. AssertionError for all others."""
    path, other = place.file(kind)
    content = damaged(path.read_bytes(), damage, other.read_bytes(), draw)
    if content == path.read_bytes():
        return "no damage"
    with holding(path, content):
        ran = place.run(*place.commands[command])
    assert "Traceback" not in ran.stderr, ran.stderr
    if ran.status == 0:
        expected = whole()
        assert ran.stdout == expected.stdout, ran.stderr
        assert without_table(ran.files) == without_table(expected.files), f"other results, no message\n{ran.stderr}"
        return "the same"
    *_, last = ran.stderr.splitlines()
    assert ran.status == 2 and last.startswith("apet: "), ran.stderr
    assert str(path) in last or (path.name in last and str(path.parent) in last), last
    assert any(word in last for word in ("Delete", "delete", "make", "Make", "Give", "train")), last
    return "stopped"


def without_table(files: dict[str, bytes]) -> dict[str, object]:
    """Remove the digest of the table from findings.json: unused bytes of a Parquet file may change it."""
    name = "out/findings.json"
    if name not in files:
        return files
    findings = {key: value for key, value in json.loads(files[name]).items() if key not in ("table", "digest")}
    return files | {name: findings}


@pytest.mark.parametrize(("kind", "command"), [(kind, command) for kind, names in TABLE.items() for command in names])
def test_command_on_a_corrupt_file_stops_or_gives_the_same_results(place: Place, kind: str, command: str) -> None:
    draw, known = random.Random(f"{kind} {command}"), []

    def whole() -> Ran:
        known[:] = known or [place.run(*place.commands[command])]
        return known[0]

    outcomes = set()
    for damage, times in DAMAGES.items():
        if (kind, damage, command) not in UNDETECTABLE:
            for _ in range(times):
                outcome = came_of(place, kind, damage, command, draw, whole)
                COUNTS[kind, damage, outcome] += 1
                outcomes.add(outcome)
    assert outcomes - {"no damage"}, "nothing was damaged"


@pytest.mark.parametrize(
    ("kind", "command"),
    [
        *((f"cell: {METRICS}", command) for command in ("train again", "verify", "aggregate", "show", "export")),
        *(("task: task.json", command) for command in ("train", "estimate", "export")),
        *(("PLM: snapshot.json", command) for command in ("train", "export")),
    ],
)
def test_command_on_a_swapped_folder_stops(place: Place, kind: str, command: str) -> None:
    path, other = (file.parent for file in place.file(kind))
    aside = shutil.move(path, "aside")
    shutil.copytree(other, path)
    try:
        ran = place.run(*place.commands[command])
    finally:
        shutil.rmtree(path)
        shutil.move(aside, path)
    assert ran.status == 2 and "Traceback" not in ran.stderr, ran.stderr
    assert str(path) in ran.stderr.splitlines()[-1], ran.stderr


@pytest.mark.parametrize("command", ["train again", "verify", "aggregate", "show", "export"])
def test_cell_of_another_format_is_refused_in_one_line(place: Place, command: str) -> None:
    path, _ = place.file(f"cell: {METRICS}")
    other = with_checksum(json.loads(path.read_text()) | {"format": FORMAT + 1})
    with holding(path, json.dumps(other).encode()):
        ran = place.run(*place.commands[command])
    assert ran.status == 2 and "Traceback" not in ran.stderr
    assert f"{path}: format: expected {FORMAT}, got {FORMAT + 1}. Delete {path.parent}" in ran.stderr.splitlines()[-1]


@pytest.mark.parametrize("command", ["findings", "figures", "report"])
def test_tidy_table_of_another_format_is_refused_in_one_line(place: Place, command: str) -> None:
    path, _ = place.file("tidy table")
    table = pq.read_table(path)
    record = with_checksum(json.loads(table.schema.metadata[b"apet"]) | {"format": 7})
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({b"apet": json.dumps(record)}), buffer)
    with holding(path, buffer.getvalue()):
        ran = place.run(*place.commands[command])
    assert ran.status == 2 and f"{path}: expected a tidy table of format 1, got format 7" in ran.stderr


def test_cell_of_an_older_trainer_is_refused(place: Place) -> None:
    path, _ = place.file(f"cell: {METRICS}")
    record = json.loads(path.read_text())
    older = with_checksum(record | {"cell": record["cell"] | {"trainer_version": TRAINER_VERSION - 1}})
    with holding(path, json.dumps(older).encode()):
        ran = place.run(*place.commands["export"])
    assert ran.status == 2 and f"got {TRAINER_VERSION - 1}" in ran.stderr.splitlines()[-1]
    study = json.loads(place.study.read_text())
    study["shared"]["trainer_version"] = TRAINER_VERSION - 1
    with holding(place.study, json.dumps(with_checksum(study)).encode()):
        ran = place.run(*place.commands["train"])
    assert ran.status == 2 and str(place.study) in ran.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("kind", "command"), [("study", "train"), ("findings", "report"), ("task: task.json", "train")]
)
def test_record_without_a_checksum_is_corrupt(place: Place, kind: str, command: str) -> None:
    path, _ = place.file(kind)
    bare = {key: value for key, value in json.loads(path.read_text()).items() if key != "digest"}
    with holding(path, json.dumps(bare).encode()):
        ran = place.run(*place.commands[command])
    assert ran.status == 2 and "corrupt: wrong checksum" in ran.stderr.splitlines()[-1]


def test_digests_that_cannot_be_remembered_are_computed(tmp_path, monkeypatch) -> None:
    """As in a folder of another user: the file `.apet` stands for a folder that cannot be written."""
    monkeypatch.chdir(tmp_path)
    Path("weights").write_bytes(b"weights")
    Path(".apet").touch()
    assert hashing.remembered_digest(Path("weights")) == hashing.file_digest(Path("weights"))


def test_remembered_digests_without_a_checksum_are_computed_again(place: Place) -> None:
    expected = place.run(*place.commands["resolve"]).files
    path, _ = place.file("remembered digests")
    wrong = {str(file.resolve()): [[0, 0], "0" * 64] for file in Path("plm").iterdir()}
    with holding(path, json.dumps(wrong).encode()):
        assert place.run(*place.commands["resolve"]).files == expected
        assert has_valid_checksum(json.loads(path.read_text()))


def same_size_and_time(path: Path, content: bytes, how: str) -> None:
    """Replace a file's content as `cp --preserve` or `rsync --times --inplace` can."""
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    written = path if how == "in place" else path.with_name("new")
    written.write_bytes(content)
    os.utime(written, ns=times)
    written.replace(path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (len(content), times[1])


@pytest.mark.parametrize("how", ["in place", "renamed"])
@pytest.mark.parametrize("recent", [0, 2], ids=["settled", "just written"])
def test_digests_follow_a_change_that_keeps_size_and_time(tmp_path, monkeypatch, how, recent):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hashing, "RECENT", recent)
    path, source = tmp_path / "rows.csv", LocalSource(file=str(tmp_path / "rows.csv"))
    path.write_bytes(b"old")
    before = hashing.remembered_digest(path), source.identity({})["files"]["all"]
    time.sleep(0 if recent and how == "renamed" else 0.05)  # longer than a tick of the disk's clock
    same_size_and_time(path, b"new", how)
    after = hashing.remembered_digest(path), source.identity({})["files"]["all"]
    assert before == (hashing.bytes_digest(b"old"),) * 2 and after == (hashing.bytes_digest(b"new"),) * 2


def test_digest_of_an_unchanged_file_is_remembered_once_it_is_settled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    read = []
    monkeypatch.setattr(hashing, "file_digest", lambda path: read.append(path) or "0" * 64)
    Path("weights").write_bytes(b"old")
    for recent in (2, 2, 0, 0, 0):
        monkeypatch.setattr(hashing, "RECENT", recent)
        assert hashing.remembered_digest(Path("weights")) == "0" * 64
    assert len(read) == 3


def test_files_are_intact_after_all_tests(place: Place) -> None:
    """So each test saw only its own damage."""
    for command in ("download-wheels", "load", "train again", "show", "report"):
        assert place.run(*place.commands[command]).status == 0
