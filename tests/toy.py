"""A toy study that real Snakemake and DVC run in a minute: two tiny rungs, real text, few rows and steps."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
PIPELINE = ("Snakefile", "dvc.yaml", "workflow", "envs", ".gitignore")

PARAMS = {
    "study": "toy",
    "seed": 1,
    "models": ["bloom-16x1", "bloom-16x2"],
    "tasks": ["rotten_tomatoes"],
    "sources": {},
    "rows": {"train": 40, "validation": 20, "test": 30},
    "methods": {"lora_rank": 1, "adapter_width": 2, "prompt_tokens": 2},
    "pretraining": {"vocabulary": 512, "tokens": 8192, "batch": 8, "length": 32},
    "training": {
        "loss": "labels", "steps": 3, "batch": 4, "length": 24, "rate_grid": [1.0],
        "rates": {"entry": 0.01, "bias": 0.01, "lowrank": 0.01, "bottleneck": 0.01, "token": 0.01, "head": 0.01},
        "schedule": "linear", "warmup": 0.1, "evaluations": 1, "clip": 1.0, "checkpointing": False,
    },
    "grid": [
        {"placements": ["none", "lora"], "budgets": ["@own"]},
        {"placements": ["uniform"], "budgets": ["@lora", 5], "draws": 2},
    ],
    "cells_per_job": 10,
}  # fmt: skip


class Checkout:
    """A working copy of the pipeline in a folder of its own, with the verified wheels already there."""

    def __init__(self, folder: Path, wheels: Path | None):
        self.folder = folder
        folder.mkdir()
        for name in PIPELINE:
            source = ROOT / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
        # DVC's stages name the package's folders as dependencies.
        shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        if wheels:
            shutil.copytree(wheels, folder / "data" / "wheels")
        self.write(PARAMS)

    def write(self, params: dict) -> None:
        (self.folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))

    @property
    def environment(self) -> dict[str, str]:
        """This Python's programs first in PATH, and an author for git."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        git = {f"GIT_{who}_{what}": "toy@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        return {**os.environ, "PATH": path, "DVC_NO_ANALYTICS": "1", **git}

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command in the working copy; its output is in the error where it fails."""
        options = {"cwd": self.folder, "env": self.environment, "capture_output": True, "text": True}
        done = subprocess.run(command, check=False, **options)
        assert not check or done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done

    def snakemake(self, *arguments: str, check: bool = True) -> str:
        done = self.run("snakemake", "--profile", "workflow/profiles/local", *arguments, check=check)
        return done.stdout + done.stderr

    def kill_once(self, ripe: Callable[[], bool], *targets: str) -> None:
        """Start Snakemake, and kill it with all its jobs, unwarned, as soon as `ripe` is true."""
        command = ["snakemake", "--profile", "workflow/profiles/local", *targets]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen(command, cwd=self.folder, env=self.environment, start_new_session=True, **quiet)
        while not ripe():
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def nothing_to_do(self) -> bool:
        return "Nothing to be done" in self.snakemake("-n")

    def trained(self) -> dict[str, int]:
        """Cell -> the moment its last training ended, in nanoseconds: a training leaves a new run record."""
        runs = self.folder / "results" / "runs"
        return {p.relative_to(runs).as_posix()[:-5]: p.stat().st_mtime_ns for p in sorted(runs.rglob("*.json"))}

    def cells(self) -> dict[str, bytes]:
        """Every file of every cell, by path."""
        root = self.folder / "results" / "cells"
        return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def trainings(before: dict[str, int], after: dict[str, int]) -> set[str]:
    """The cells that were trained in between."""
    return {cell for cell, moment in after.items() if before.get(cell) != moment}
