"""A study of a tiny PLM and a toy task, whose cells `apet train` trains in seconds."""

from __future__ import annotations

import copy
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import chdir
from pathlib import Path

import yaml

from apet.cli.app import main
from apet.study.cells import Cell
from apet.study.paths import ResultPaths
from apet.study.resolve import read_cells
from forkserver import programs
from saved import save_plm
from tiny import WORDS, tiny_plm
from toy import PARAMS, Checkout

TASK = {
    "name": "words", "version": 1, "description": "Classify by the word w8 or w9.", "type": "classification",
    "local": {"file": "words.csv"}, "text_columns": ["text"], "prompt": "{text} w10",
    "verbalizer": {"eight": " w20", "nine": " w30"}, "metrics": ["accuracy"], "max_length": 16,
}  # fmt: skip
TRAINING = {"max_steps": 60, "batch_size": 8, "max_length": 16, "num_evals": 4, "lr_multipliers": [0.3, 1.0]}
APET = (sys.executable, "-m", "apet.cli.app")
GRID = [
    {"placements": ["none", "lora", "full"], "budgets": ["@own"]},
    {"placements": ["uniform"], "budgets": [700], "num_plans": 2, "num_seeds": 2},
]


def write_words(folder: Path, name: str = "words", count: int = 400, length: int = 8, **changes: object) -> None:
    """Write the rows NAME.csv and the task NAME.yaml: texts of random words, one of which tells the class."""
    draw, lines = random.Random(name), ["text,label"]
    for _ in range(count):
        words, label = [f"w{draw.randrange(11, WORDS)}" for _ in range(length)], draw.randrange(2)
        words[draw.randrange(length)] = f"w{8 + label}"
        lines.append(f"{' '.join(words)},{('eight', 'nine')[label]}")
    (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    task = TASK | {"name": name, "local": {"file": f"{name}.csv"}} | changes
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task, sort_keys=False))


class Lab:
    """The study in a folder, with prepared task and PLM. Each training names its results directory."""

    def __init__(self, folder: Path, family: str = "bloom", **training) -> None:
        self.folder = folder
        save_plm(tiny_plm(family, fused=False).model, folder / "plm")
        write_words(folder)
        study = copy.deepcopy(PARAMS) | {"models": ["./plm"], "tasks": ["words.yaml"], "grid": GRID}
        study["training"] |= TRAINING | training
        study["max_samples"] = {"train": 64, "validation": 24, "test": 40}
        (folder / "params.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
        with chdir(folder):
            assert main(["resolve", "--out-file", "study.json"]) == 0
            assert main(["prepare-task", "--task", "words"]) == main(["download-model", "--model", "plm"]) == 0
        self.cells = {cell.placement: cell for cell in read_cells(folder / "study.json")}

    def checkout(self, folder: Path) -> Checkout:
        """Make a working copy of the pipeline with the study, its PLM and its data."""
        checkout = Checkout(folder, None)
        for name in ("params.yaml", "words.yaml", "words.csv"):
            shutil.copy(self.folder / name, checkout.folder)
        for name in ("plm", "models", "data"):
            shutil.copytree(self.folder / name, checkout.folder / name)
        return checkout

    def results(self, name: str) -> ResultPaths:
        return ResultPaths(self.folder / name)

    def apet(self, *arguments: str, alone: bool = False, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, in a fork of the forkserver or in a process that is `alone`."""
        command = [*APET, *arguments] if alone else [programs() / "apet", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, **self._options(environment))

    def train(
        self, results: str, *cells: Cell, options: tuple[str, ...] = (), alone: bool = False, **environment: str
    ) -> str:
        """Train cells in a process of their own. Returns its standard error."""
        done = self.apet(*self._train(results, cells, options), alone=alone, **environment)
        assert done.returncode == 0, done.stderr
        return done.stderr

    def start(
        self, results: str, *cells: Cell, options: tuple[str, ...] = (), terminal: int | None = None
    ) -> subprocess.Popen:
        """Start `train` without waiting. The output is appended to the file `output`, or goes to a terminal."""
        with open(self.folder / "output", "a") as file:
            command = [programs() / "apet", *self._train(results, cells, options)]
            out = file if terminal is None else terminal
            return subprocess.Popen(command, stdout=out, stderr=out, **self._options({}))

    def output(self) -> str:
        """Return the output of started processes."""
        return (self.folder / "output").read_text()

    def contents(self, results: str, cell: Cell) -> dict[str, bytes]:
        """Return the files of a finished cell."""
        return {p.name: p.read_bytes() for p in sorted((self.results(results).cells / cell.path).iterdir())}

    def checkpoint_times(self, results: str, cell: Cell) -> dict[str, int]:
        """Return the checkpoint files of an unfinished cell with their modification times."""
        folder = self.results(results).checkpoints / cell.path
        return {p.name: p.stat().st_mtime_ns for p in folder.glob("*.safetensors")} if folder.is_dir() else {}

    def _train(self, results: str, cells: tuple[Cell, ...], options: tuple[str, ...]) -> list[str]:
        paths = ["--model-dir", cells[0].plm_folder, "--data-dir", cells[0].data_folder, "--results-dir", results]
        return ["train", "--resolved", "study.json", *paths, *options, *(cell.path for cell in cells)]

    def _options(self, environment: dict[str, str]) -> dict:
        return {"cwd": self.folder, "env": {**os.environ, **environment}}


def train_and_signal(
    lab: Lab, results: str, cell: Cell, number: signal.Signals, wait: float, *options: str
) -> int | None:
    """Train a cell and send its process a signal `wait` seconds after it has written a checkpoint.

    Returns the exit status. None if the process ended before the signal.
    """
    before = lab.checkpoint_times(results, cell)
    process = lab.start(results, cell, options=options)
    while process.poll() is None and lab.checkpoint_times(results, cell) == before:
        time.sleep(0.005)
    time.sleep(wait)
    if process.poll() is not None:
        assert process.returncode == 0, lab.output()
        return None
    process.send_signal(number)
    return process.wait(timeout=120)
