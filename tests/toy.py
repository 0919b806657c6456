"""A toy study that real Snakemake and DVC run in a minute: two tiny rungs, real text, few rows and steps."""

from __future__ import annotations

import copy
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml

ROOT = Path(__file__).parent.parent
PIPELINE = (
    "Snakefile", "dvc.yaml", "workflow", "envs", ".gitignore", ".dvcignore",
    ".dvc/config", ".dvc/.gitignore", ".dvc/plots", "ladder/README.md",
)  # fmt: skip
ENTRIES = {"snakemake": ("snakemake", "--profile", "workflow/profiles/local"), "dvc repro": ("dvc", "repro")}
"""The two ways to run a study."""

PARAMS = {
    "study": "toy",
    "seed": 1,
    "models": ["bloom-16x1", "bloom-16x2"],
    "tasks": ["rotten_tomatoes"],
    "exclude": [],
    "sources": {},
    "max_samples": {"train": 40, "validation": 20, "test": 30},
    "methods": {"lora_rank": 1, "adapter_bottleneck_dim": 2, "num_virtual_tokens": 2},
    "pretraining": {"vocab_size": 512, "max_tokens": 8192, "batch_size": 8, "block_size": 32},
    "training": {
        "loss": "label_words", "max_steps": 3, "batch_size": 4, "max_length": 24, "lr_multipliers": [1.0],
        "learning_rates": {"entry": 0.01, "bias": 0.01, "lowrank": 0.01, "bottleneck": 0.01, "token": 0.01, "head": 0.01},
        "lr_scheduler_type": "linear", "warmup_ratio": 0.1, "num_evals": 1, "max_grad_norm": 1.0, "gradient_checkpointing": False,
    },
    "grid": [
        {"placements": ["none", "lora"], "budgets": ["@own"]},
        {"placements": ["uniform"], "budgets": ["@lora", 5], "num_plans": 2},
    ],
    "cells_per_job": 10,
}  # fmt: skip

SECRETS = {
    "HF_TOKEN": "hf_SecretOfTheHub0123456789",
    "AWS_ACCESS_KEY_ID": "AKIASECRETOFS3",
    "AWS_SECRET_ACCESS_KEY": "secretOfS3/0123456789abcdef",
    "AWS_SESSION_TOKEN": "sessionSecretOfS3",
    "MY_PASSWORD": "correct horse battery",
}
"""What a person's environment may hold, of which no study may tell."""


def secrets_in(text: str) -> list[str]:
    """Those that a text tells."""
    return [secret for secret in ("the-user", "the-password", *SECRETS.values()) if secret in text]


OLDER = PARAMS | {"grid": PARAMS["grid"][:1]}
"""The study before an axis was added to it."""


class Checkout:
    """A working copy of the pipeline in a folder of its own, with the verified wheels already there."""

    def __init__(self, folder: Path, wheels: Path | None):
        self.folder = folder
        folder.mkdir()
        for name in PIPELINE:
            source = ROOT / name
            (folder / name).parent.mkdir(exist_ok=True)
            (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
        # DVC's stages name the package's folders as dependencies.
        shutil.copytree(
            ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "ladder")
        )
        if wheels:
            shutil.copytree(wheels, folder / "data" / "wheels")
        self.write(PARAMS)

    def write(self, params: dict) -> None:
        (self.folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))

    @property
    def environment(self) -> dict[str, str]:
        """This Python's programs first in PATH, an author for git, and secrets that no study needs."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        git = {f"GIT_{who}_{what}": "toy@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        return {**SECRETS, **os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1", **git}

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command in the working copy; its output is in the error where it fails."""
        options = {"cwd": self.folder, "env": self.environment, "capture_output": True, "text": True}
        done = subprocess.run(command, check=False, **options)
        assert not check or done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done

    def snakemake(self, *arguments: str, check: bool = True) -> str:
        done = self.run("snakemake", "--profile", "workflow/profiles/local", *arguments, check=check)
        return done.stdout + done.stderr

    def enter(self, entry: str, *targets: str) -> str:
        """Run the study by one of `ENTRIES`. Returns what it said."""
        done = self.run(*ENTRIES[entry], *targets)
        return done.stdout + done.stderr

    def stop(self, entry: str, sign: signal.Signals, ripe: Callable[[], bool], *targets: str) -> bool:
        """Run, and signal all its processes, as a terminal does, once `ripe`. False if it had ended well by then."""
        with (self.folder / ".said").open("w+") as said:
            options = {"cwd": self.folder, "env": self.environment, "stdout": said, "stderr": said}
            process = subprocess.Popen([*ENTRIES[entry], *targets], start_new_session=True, **options)
            while not ripe() and process.poll() is None:
                time.sleep(0.01)
            if running := process.poll() is None:
                os.killpg(process.pid, sign)
            code = process.wait()
            said.seek(0)
            assert running or code == 0, said.read()[-3000:]
        while self.is_busy():
            time.sleep(0.05)
        return running

    def is_busy(self) -> bool:
        """Whether any process still works in this folder."""
        alive = (p.info for p in psutil.process_iter(["cwd", "status"]) if p.info["status"] != psutil.STATUS_ZOMBIE)
        return any(Path(p["cwd"] or "/").is_relative_to(self.folder) for p in alive)

    def nothing_to_do(self, entry: str = "snakemake") -> bool:
        if entry == "snakemake":
            return "Nothing to be done" in self.snakemake("-n")
        return "up to date" in self.run("dvc", "status").stdout

    def git(self, *arguments: str) -> str:
        return self.run("git", *arguments).stdout

    def record(self, tag: str) -> None:
        """Commit all that git tracks, and give the commit a name."""
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", tag)
        self.git("tag", tag)

    def copy(self, folder: Path) -> Checkout:
        """Another folder with the same files and their times; without the wheels, for their text is read."""
        made = copy.copy(self)
        made.folder = folder
        shutil.copytree(self.folder, folder, copy_function=shutil.copy2, ignore=shutil.ignore_patterns("wheels"))
        return made

    def clone(self, folder: Path) -> Checkout:
        """What git brings to another machine."""
        made = copy.copy(self)
        made.folder = folder
        self.git("clone", "--quiet", str(self.folder), str(folder))
        return made

    def trained(self) -> dict[str, int]:
        """Cell -> the moment its last training ended, in nanoseconds: a training leaves a new run record."""
        runs = self.folder / "results" / "runs"
        return {p.relative_to(runs).as_posix()[:-5]: p.stat().st_mtime_ns for p in sorted(runs.rglob("*.json"))}

    def metrics(self) -> bytes:
        return (self.folder / "results" / "metrics.json").read_bytes()

    def cells(self) -> dict[str, bytes]:
        """Every file of every cell, by path. (A killed job may leave a folder with a dot before its name.)"""
        root = self.folder / "results" / "cells"
        files = [p for p in sorted(root.glob("*/*/[!.]*/*")) if p.is_file()]
        return {p.relative_to(root).as_posix(): p.read_bytes() for p in files}


@dataclass(frozen=True)
class Recorded:
    """The toy study at its second revision, with git tags `older` and `newer`, all pushed to a local remote.

    trained: by which step, which cells. published: results/metrics.json of each revision.
    """

    checkout: Checkout
    trained: dict[str, set[str]]
    published: dict[str, bytes]


def edited(**changes: object) -> dict:
    """The toy study with some keys changed."""
    return {**copy.deepcopy(PARAMS), **changes}


def trainings(before: dict[str, int], after: dict[str, int]) -> set[str]:
    """The cells that were trained in between."""
    return {cell for cell, moment in after.items() if before.get(cell) != moment}
