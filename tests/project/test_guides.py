"""Guides: the commands and code in docs/guides run on a small version of the quick study.

The blocks of a page are executed from top to bottom. In `console` blocks, lines that begin with `$ ` are run. The
`python` blocks of a page are one session. A block whose first line is `# a/path` is written to that file; for
params.yaml it changes keys. `diff` blocks are applied to the sources.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import pytest
import yaml

from apet.cli.app import COMMANDS, main, parser
from apet.config.study_config import PretrainingConfig, load_study
from apet.data import corpus
from apet.data.prepared_files import read_task
from apet.data.splits import Example, normalise
from apet.figures import FIGURES
from apet.models.pretraining import rebuild
from apet.placement import PLACEMENTS
from apet.study.grid import Grid, load_grid
from made_findings import SECTIONS
from toy import ENTRIES, ROOT
from toy_corpus import document, write_corpus

pytestmark = pytest.mark.slow

GUIDES = ROOT / "docs" / "guides"
SMALL = {
    "models": ["bloom-32x2"],
    "tasks": ["bbc_topics"],
    "max_samples": {"train": 60, "validation": 20, "test": 40},
    "pretraining": {"vocab_size": 512, "max_tokens": 8192, "batch_size": 8, "block_size": 32},
    "grid": [
        {"placements": ["none"], "budgets": ["@own"]},
        {"placements": ["full", "lora", "prompt"], "budgets": ["@own"], "num_seeds": 2},
        {"placements": ["uniform"], "budgets": ["@lora", 5], "num_plans": 2, "num_seeds": 2},
    ],
}
"""The quick study, made small."""
EXAMPLES = {name: entry.examples for name, entry in COMMANDS.items()}


@pytest.fixture(autouse=True)
def _placements() -> Iterator[None]:
    """Remove the placements that a guide adds to this process."""
    with mock.patch.dict(PLACEMENTS.random):
        yield


def blocks(page: str) -> list[tuple[str, str]]:
    """Fenced blocks of a page: (language, code)."""
    result = re.findall(r"^```(\w+)\n(.*?)^```$", (GUIDES / f"{page}.md").read_text(), re.DOTALL | re.MULTILINE)
    assert result
    return result


def commands_of(page: str) -> list[str]:
    """Commands of a page, without the prompt."""
    code = "".join(code for language, code in blocks(page) if language == "console")
    return [line[2:] for line in code.replace("\\\n", "").splitlines() if line.startswith("$ ")]


class Reader:
    """Executes the blocks of a page in a folder."""

    def __init__(self, folder: Path):
        self.folder, self.edited = folder, False
        self.names: dict[str, Any] = {}
        """Names that the Python blocks define."""
        self.output = ""
        """Output of the shell commands."""

    def follow(self, page: str) -> Reader:
        for language, code in blocks(page):
            getattr(self, language)(code)
        return self

    def console(self, code: str) -> None:
        for line in code.splitlines():
            self.type(line.removeprefix("$ "))

    def type(self, line: str) -> None:
        """Run a command: apet in this process, unless its sources were edited or the shell redirects its output."""
        if line == "make run":  # without the environment, which exists
            line = " ".join(ENTRIES["snakemake"])
        if line.startswith("apet ") and not self.edited and ">" not in line:
            arguments = self._bash(f"printf '%s\\0' {line.removeprefix('apet ')}").split("\0")[:-1]
            assert main(arguments) == 0, line
        else:
            self.output += self._bash(line)

    def python(self, code: str) -> None:
        if (path := self._target(code)) is not None:
            path.write_text(code.partition("\n")[2])
        else:
            exec(compile(code, "a guide", "exec"), self.names)

    def yaml(self, code: str) -> None:
        path = self._target(code)
        assert path is not None, code
        changed = yaml.safe_load(code)
        known = yaml.safe_load(path.read_text()) if path.name == "params.yaml" else {}
        path.write_text(yaml.safe_dump(known | changed, sort_keys=False))

    def diff(self, code: str) -> None:
        self.edited = True
        options = {"cwd": self.folder, "text": True, "capture_output": True}
        process = subprocess.run(["git", "apply", "-C1"], input=code, check=False, **options)
        assert process.returncode == 0, process.stderr

    def _target(self, code: str) -> Path | None:
        """File that the first line of a block names."""
        match = re.match(r"# ([\w./]+\.\w+)\n", code)
        return self.folder / match[1] if match else None

    def _bash(self, line: str) -> str:
        """Run a line in the folder. `apet` and pytest import the sources in the folder, if there are any."""
        path = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": "src"}
        options = {"cwd": self.folder, "env": {**os.environ, **path}, "text": True, "capture_output": True}
        process = subprocess.run(["bash", "-c", line], check=False, **options)
        assert process.returncode == 0, f"{line}\n{process.stdout[-3000:]}{process.stderr[-3000:]}"
        return process.stdout


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, wheels_folder: Path) -> Path:
    """Folder after `make run`: text, PLM, cells, tables, figures and report of the small study."""
    folder = tmp_path_factory.mktemp("guides") / "study"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "wheels").symlink_to(wheels_folder)
    shutil.copytree(ROOT / "studies", folder / "studies")
    quick = yaml.safe_load((ROOT / "params.yaml").read_text())
    quick["training"]["max_steps"] = 4
    (folder / "params.yaml").write_text(yaml.safe_dump(quick | SMALL, sort_keys=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        grid = Grid(load_study(Path("params.yaml")), Path("params.yaml"))
        Path(grid.corpus).parent.mkdir()
        write_corpus(Path(grid.corpus), 80, 20)
        plm = grid.plm_folder("bloom-32x2")
        steps = [EXAMPLES["prepare-task"][0]]
        steps += [f"apet train-tokenizer --corpus-dir {grid.corpus} --out-dir {grid.tokenizer}"]
        folders = f"--corpus-dir {grid.corpus} --tokenizer-dir {grid.tokenizer} --out-dir {plm}"
        steps += [f"apet pretrain --model bloom-32x2 {folders}"]
        steps += ["apet train '*'", *(EXAMPLES[name][0] for name in ("aggregate", "findings", "figures", "report"))]
        for step in steps:
            Reader(folder).type(step)
    shutil.copytree(folder / plm, folder / "my-plm", ignore=shutil.ignore_patterns("pretraining.json"))
    return folder


@pytest.fixture
def reader(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    """Reader in a copy of that folder."""
    shutil.copytree(study, tmp_path / "study", symlinks=True)
    monkeypatch.chdir(tmp_path / "study")
    return Reader(tmp_path / "study")


@pytest.fixture
def developer(reader: Reader) -> Reader:
    """Reader in a copy that also contains the sources and tests."""
    shutil.copytree(ROOT / "src", reader.folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copytree(ROOT / "tests", reader.folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    return reader


def test_every_command_has_examples_that_parse():
    for name, examples in EXAMPLES.items():
        for line in (line for line in examples if line.startswith("apet ")):
            words = line.partition(" > ")[0].replace("'", "").split()
            assert words[1] == name
            assert parser().parse_args(words[1:]).command == name
    assert all(EXAMPLES.values())


def test_every_example_works_as_printed(reader, monkeypatch, capsys):
    """In the order of the help. Corpus, pretraining and simulations are small; all else is as for a user."""
    texts = [document(number) for number in range(200)]
    examples = [Example.from_texts([text], [normalise(text)], "toy") for text in texts]
    monkeypatch.setattr(corpus, "_documents", lambda *_: iter(examples))
    monkeypatch.setattr(rebuild, "PretrainingConfig", lambda: PretrainingConfig(**SMALL["pretraining"]))
    monkeypatch.setenv("HOME", str(reader.folder))
    Path(".zfunc").mkdir()
    for line in (line for examples in EXAMPLES.values() for line in examples):
        reader.type(f"{line} --studies 1" if line.startswith("apet power") else line)
    printed = capsys.readouterr().out
    assert "1 cell retrained: all bytes are equal" in printed and "6 cells: 6 done, 0 pending" in printed
    assert {path.name for path in Path("my-results").iterdir()} >= {"cells", "runs"}
    assert Path("my-adapter/adapter_config.json").is_file() and Path("my-delta/delta.json").is_file()
    assert Path("my-tables/findings.md").read_bytes() == Path("results/findings.md").read_bytes()
    assert printed.count("bloom-32x2: config.json") == 2 and Path(".zfunc/_apet").stat().st_size > 0


def test_guide_read_report_runs(reader, capsys):
    reader.follow("read_report")
    assert re.findall(r"^\| \*\*(.+?)\*\* \|", (GUIDES / "read_report.md").read_text(), re.MULTILINE) == SECTIONS
    page = Path("results/report.html").read_text()
    assert all(f">{section}<" in page for section in SECTIONS)
    assert reader.names["scores"]["count"].sum() == 7 + 2 * 4
    assert set(reader.names["sources"]) == {"claim", "scope", "cell_path"}
    assert "lora at @own" in capsys.readouterr().out and "model" in reader.output


def test_guide_add_plm_runs(developer):
    developer.follow("add_plm")
    snapshots = [path for path in Path("models").glob("my-plm-*") if (path / "snapshot.json").is_file()]
    assert len(snapshots) == 1
    assert "me/my-plm" in load_grid(Path("params.yaml")).models
    plan = json.loads(developer.output)
    assert plan["budget"] == 4 * 2 * 8 * (64 + 64)


def test_guide_add_task_runs(reader):
    reader.follow("add_task")
    (folder,) = Path("data/tasks").glob("tickets-*")
    record = read_task(folder)
    assert sum(record["rows"].values()) >= 100 and set(record["overlap"].values()) == {0}
    cells = load_grid(Path("params.yaml")).cells
    assert {cell.task for cell in cells if cell.placement == "lora"} == {"bbc_topics", "tickets", "answers"}
    (folder,) = Path("data/tasks").glob("answers-*")
    record = read_task(folder)
    assert (record["metric"], record["chance"]["level"], record["dropped"]["unlabeled"]) == ("mcc", 0.0, 50)
    assert record["origin"] == {"train": "train of the source", "validation": "split off train",
                                "test": "validation of the source"}  # fmt: skip
    assert set(record["overlap"].values()) == {0} and record["verbalizer"] == {"answer": " yes", "other": " no"}


def test_guide_add_placement_runs(developer):
    developer.follow("add_placement")
    assert developer.names["layers"] == {1}
    plan = json.loads(developer.output[: developer.output.index("\n}") + 2])
    assert {name.split(".")[1] for name in plan["units"]} == {"0", "3"}
    assert "1 passed" in developer.output


def test_guide_add_structure_runs(developer):
    developer.follow("add_structure")
    assert re.search(r"\d{2} passed", developer.output)
    plan = json.loads(developer.output[developer.output.index("{") :])
    assert plan["structures"]["gate"] == sum(plan["structures"].values()) == plan["budget"] == 8


def test_guide_add_figure_runs(developer):
    before = Path("results/report.html").read_text()
    developer.follow("add_figure")
    drawn = pd.read_csv("results/figures/score_by_task.csv")
    assert set(drawn.placement) == {"none", "full", "lora", "prompt"}
    assert "On which tasks do the methods differ?" in Path("results/report.html").read_text().replace("\n", " ")
    assert "score_by_task" not in before and len(list(Path("results/figures").glob("*.svg"))) == len(FIGURES) + 1


def test_guide_compare_methods_runs(reader):
    shutil.rmtree("results")
    for name in ("Snakefile", "workflow", "envs"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, reader.folder / name)
    reader.follow("compare_methods")
    rows = [line.split(" | ") for line in reader.output.splitlines() if line.startswith("| my-plm ")]
    methods = ["none", "full", "lora", "adapter", "bitfit", "prompt", "APET @lora"]
    assert [row[1] for row in rows] == methods and all("×" in row[-1] for row in rows)
    costs = pd.read_csv("results/measured_costs/costs.csv").set_index("placement")
    assert costs.loc["full", ["train_ms_ratio", "peak_memory_mb_ratio"]].eq(1).all()
    assert "score_by_cost" in Path("results/report.html").read_text()


def test_guide_slurm_lists_tested_commands():
    """The commands are in docs/executors.md, which tests/workflow/test_slurm.py runs, or in the help of apet."""
    known = (ROOT / "docs" / "executors.md").read_text()
    for line in (line.partition("#")[0].strip() for line in commands_of("slurm")):
        assert line in known or line in EXAMPLES["status"], line
    profile = (ROOT / "slurm" / "config.yaml").read_text()
    named = re.findall(r"`(slurm_\w+|gpu)`", (GUIDES / "slurm.md").read_text())
    assert named == ["slurm_account", "slurm_partition", "gpu"] and all(name in profile for name in named)


def test_guide_export_peft_runs(reader):
    reader.follow("export_peft")
    names = reader.names
    tuned = names["apet"].load_tuned(next(Path("results/cells/bloom-32x2/bbc_topics").glob("lora-own-*")))
    assert names["plan"].digest == tuned.plan.digest and names["theta"].equal(tuned.theta)
    assert names["logits"].shape[-1] == 512
    assert names["score"].loss == pytest.approx(tuned.run["test"]["loss"], abs=1e-6) and names["score"].n == 40


def test_guide_notebook_runs(reader):
    names = reader.follow("notebook").names
    assert sum(names["plan"].structures.values()) == names["plan"].budget
    assert names["score"].n > 5 and set(names["scores"]) == {"lora", "attention", "ffn"}
