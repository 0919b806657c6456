"""A toy study that Snakemake and DVC run in a minute: two tiny ladder models, real text, few rows and steps."""

from __future__ import annotations

import copy
import json
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

from apet.placement import STRUCTURES
from forkserver import programs

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
        "learning_rates": dict.fromkeys((*STRUCTURES, "head"), 0.01),
        "lr_scheduler_type": "linear", "warmup_ratio": 0.1, "num_evals": 1, "max_grad_norm": 1.0,
        "gradient_checkpointing": False,
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
"""Secrets in a user's environment, which must not appear in any file of a study."""


def secrets_in(text: str) -> list[str]:
    """Return the secrets that a text contains."""
    return [secret for secret in ("the-user", "the-password", *SECRETS.values()) if secret in text]


OLDER = PARAMS | {"grid": PARAMS["grid"][:1]}
"""The study before an entry was added to its grid."""


class Checkout:
    """A working copy of the pipeline in a new folder, with the verified wheels."""

    alone = False
    """Run each program in a process of its own, without the forkserver."""

    def __init__(self, folder: Path, wheels: Path | None):
        self.folder = folder
        folder.mkdir()
        for name in PIPELINE:
            source = ROOT / name
            (folder / name).parent.mkdir(exist_ok=True)
            (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
        # Dependencies of DVC's stages.
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
        """The forkserver's and this Python's programs first in PATH, an author for git, and secrets."""
        quick = [] if self.alone else [str(programs())]
        path = os.pathsep.join([*quick, str(Path(sys.executable).parent), os.environ["PATH"]])
        git = {f"GIT_{who}_{what}": "toy@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        return {**SECRETS, **os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1", **git}

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in the working copy. If it fails, the error contains its output."""
        options = {"cwd": self.folder, "env": self.environment, "capture_output": True, "text": True}
        done = subprocess.run(command, check=False, **options)
        assert not check or done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done

    def snakemake(self, *arguments: str, check: bool = True) -> str:
        done = self.run("snakemake", "--profile", "workflow/profiles/local", *arguments, check=check)
        return done.stdout + done.stderr

    def enter(self, entry: str, *targets: str) -> str:
        """Run the study by one of `ENTRIES` and return the output."""
        done = self.run(*ENTRIES[entry], *targets)
        return done.stdout + done.stderr

    def stop(self, entry: str, sign: signal.Signals, ripe: Callable[[], bool], *targets: str) -> bool:
        """Run, and send a signal to the process group, as a terminal does, once `ripe`. False if the run was faster."""
        with (self.folder / ".output").open("w+") as output:
            options = {"cwd": self.folder, "env": self.environment, "stdout": output, "stderr": output}
            process = subprocess.Popen([*ENTRIES[entry], *targets], start_new_session=True, **options)
            while not ripe() and process.poll() is None:
                time.sleep(0.01)
            if running := process.poll() is None:
                os.killpg(process.pid, sign)
            code = process.wait()
            output.seek(0)
            assert running or code == 0, output.read()[-3000:]
        while self.is_busy():
            time.sleep(0.05)
        return running

    def is_busy(self) -> bool:
        """Return whether a process works in this folder."""
        alive = (p.info for p in psutil.process_iter(["cwd", "status"]) if p.info["status"] != psutil.STATUS_ZOMBIE)
        return any(Path(p["cwd"] or "/").is_relative_to(self.folder) for p in alive)

    def nothing_to_do(self, entry: str = "snakemake") -> bool:
        if entry == "snakemake":
            return "Nothing to be done" in self.snakemake("-n")
        return self.stale_stages() == set()

    def stale_stages(self) -> set[str]:
        """Return the stages that `dvc status` lists, without `inputs`, which it always does."""
        status = json.loads(self.run("dvc", "status", "--json").stdout)
        assert status.pop("inputs") == ["always changed"]
        return set(status)

    def git(self, *arguments: str) -> str:
        return self.run("git", *arguments).stdout

    def record(self, tag: str) -> None:
        """Commit everything that git tracks, and tag the commit."""
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", tag)
        self.git("tag", tag)

    def copy(self, folder: Path) -> Checkout:
        """Copy the files with their times, without the wheels, whose text was read already."""
        made = copy.copy(self)
        made.folder = folder
        shutil.copytree(self.folder, folder, copy_function=shutil.copy2, ignore=shutil.ignore_patterns("wheels"))
        return made

    def clone(self, folder: Path) -> Checkout:
        """Clone with git, as on another machine."""
        made = copy.copy(self)
        made.folder = folder
        self.git("clone", "--quiet", str(self.folder), str(folder))
        return made

    def trained(self) -> dict[str, int]:
        """Return when each cell was last trained, in nanoseconds: each training writes a run record."""
        runs = self.folder / "results" / "runs"
        return {p.relative_to(runs).as_posix()[:-5]: p.stat().st_mtime_ns for p in sorted(runs.rglob("*.json"))}

    def measured(self) -> dict[str, int]:
        """Return when the costs of each PLM were measured, in nanoseconds, by folder of the record."""
        records = sorted((self.folder / "results" / "measurements").glob("*/record.json"))
        return {path.parent.name: path.stat().st_mtime_ns for path in records}

    def metrics(self) -> bytes:
        return (self.folder / "results" / "metrics.json").read_bytes()

    def cells(self) -> dict[str, bytes]:
        """Return every file of every cell, without the temporaries of killed jobs."""
        root = self.folder / "results" / "cells"
        files = [p for p in sorted(root.glob("*/*/[!.]*/*")) if p.is_file()]
        return {p.relative_to(root).as_posix(): p.read_bytes() for p in files}


@dataclass(frozen=True)
class Recorded:
    """The toy study at its second revision, with git tags `older` and `newer`, all pushed to a local remote."""

    checkout: Checkout
    trained: dict[str, set[str]]
    """The cells that each step trained."""
    published: dict[str, bytes]
    """results/metrics.json of each revision."""


def edited(**changes: object) -> dict:
    """Return the toy study with some keys changed."""
    return {**copy.deepcopy(PARAMS), **changes}


def trainings(before: dict[str, int], after: dict[str, int]) -> set[str]:
    """Return the cells that were trained between two calls of `Checkout.trained`."""
    return {cell for cell, moment in after.items() if before.get(cell) != moment}
