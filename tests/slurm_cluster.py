"""A Slurm cluster of one node for tests, and the toy study on it."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from apet.config.study_config import load_study
from apet.study.cells import Job
from apet.study.grid import Grid
from toy import PARAMS, ROOT, Checkout

SCRIPTS = Path(__file__).parent / "slurm"
QUICK = {"slurm-init-seconds-before-status-checks": 1, "max-status-checks-per-second": 10}
"""Replaces values of the profile, which are slow to spare a shared controller."""

IMPATIENT = (sys.executable, str(SCRIPTS / "impatient.py"), "--profile", "slurm")
"""Command of a Snakemake that polls its jobs every second."""

MODEL, NUM_CELLS = "bloom-32x2", 16
TIMEOUT = 600
"""Most seconds to wait for a condition on a shared machine."""


def wait_for(condition: Callable[[], object], name: str, process: subprocess.Popen | None = None) -> None:
    """Wait until a condition is true. Fails after TIMEOUT seconds, or if `process` ends."""
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert process is None or process.poll() is None, f"Snakemake ended before: {name}"
        assert time.monotonic() < end, f"waited {TIMEOUT} s for: {name}"
        time.sleep(0.2)


class Cluster:
    """The daemons of a cluster, with their files in one folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def script(self, name: str) -> None:
        done = subprocess.run(["bash", SCRIPTS / name, self.folder], check=False, capture_output=True, text=True)
        assert done.returncode == 0, f"tests/slurm/{name}: {done.stdout[-2000:]}{done.stderr[-2000:]}"

    def jobs(self, checkout: Checkout, rule: str | None = None) -> list[dict[str, str]]:
        """Return the jobs of a working copy, or of one of its rules, from `scontrol show job`."""
        output = slurm("scontrol", "--oneliner", "show", "job")
        jobs = [dict(word.partition("=")[::2] for word in line.split()) for line in output.splitlines()]
        jobs = [job for job in jobs if job.get("WorkDir") == str(checkout.folder)]
        return [job for job in jobs if rule is None or job["Comment"] == f"rule_{rule}"]

    def queued(self, checkout: Checkout) -> list[str]:
        """Return the ids of pending and running jobs of a working copy, from `squeue`."""
        lines = slurm("squeue", "--noheader", "--format=%i %Z").splitlines()
        return [line.split()[0] for line in lines if line.split()[1] == str(checkout.folder)]

    def ended(self) -> dict[str, str]:
        """Return the final state of each completed job by id."""
        lines = (self.folder / "jobs.log").read_text().splitlines()
        return dict(re.match(r"JobId=(\d+) .* JobState=(\w+)", line).groups() for line in lines)

    def workers(self, job: dict[str, str]) -> list[int]:
        """Return the training processes of a running job, from `scontrol listpids`."""
        processes = []
        for line in slurm("scontrol", "listpids", job["JobId"]).splitlines()[1:]:
            command = Path("/proc", line.split()[0], "cmdline")
            if command.exists() and re.match(rb"[^\0]*python[^\0]*\0[^\0]*/apet\0train\0", command.read_bytes()):
                processes.append(int(line.split()[0]))
        return processes


def slurm(*command: str) -> str:
    """Return the output of a Slurm command."""
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout


def merged(old: object, new: object) -> object:
    """Merge nested mappings. Any other old value is replaced."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return old | {key: merged(old.get(key), value) for key, value in new.items()}


class SlurmCheckout(Checkout):
    """Working copy on Slurm: the smallest shipped ladder model, and jobs long enough to be interrupted."""

    alone = True

    params = copy.deepcopy(PARAMS) | {
        "seed": 0,
        "models": [MODEL],
        "pretraining": {},
        "grid": [
            {"placements": ["none"], "budgets": ["@own"]},
            {"placements": ["uniform"], "budgets": [*range(1, NUM_CELLS)], "training": {"max_steps": 300}},
        ],
        "cells_per_job": NUM_CELLS // 4,
        "measure_costs": False,  # times would differ between runs that are compared
    }

    def __init__(self, folder: Path, wheels: Path):
        super().__init__(folder, wheels)
        shutil.copytree(ROOT / "slurm", folder / "slurm")
        self.edit_profile(QUICK)
        self.write(self.params)

    def copy(self, folder: Path) -> SlurmCheckout:
        """Copy the files to another folder, with the profile of the repository."""
        checkout = copy.copy(self)
        checkout.folder = folder
        shutil.copytree(self.folder, folder, copy_function=shutil.copy2, ignore=shutil.ignore_patterns(".snakemake"))
        shutil.copy(ROOT / "slurm" / "config.yaml", folder / "slurm")
        checkout.edit_profile(QUICK)
        return checkout

    def edit_profile(self, changes: dict) -> None:
        """Change values of the profile."""
        path = self.folder / "slurm" / "config.yaml"
        path.write_text(yaml.safe_dump(merged(yaml.safe_load(path.read_text()), changes)))

    @property
    def grid(self) -> Grid:
        return Grid(load_study(self.folder / "params.yaml"), self.folder / "params.yaml")

    def rule(self, job: Job) -> str:
        """Return rule and wildcard of a training job, as in Slurm's comment."""
        return f"train_{job.model}_wildcards_{job.name}"

    def trained_of(self, job: Job) -> dict[str, int]:
        """Return the trained cells of a job, with the times of training."""
        paths = {cell.path for cell in job.cells}
        return {path: trained_at for path, trained_at in self.trained().items() if path in paths}

    @contextmanager
    def running(self, *command: str) -> Iterator[subprocess.Popen]:
        """Run Snakemake, with its output in the file `output`."""
        with (self.folder / "output").open("a") as file:
            options = {"cwd": self.folder, "env": self.environment, "stdout": file, "stderr": subprocess.STDOUT}
            process = subprocess.Popen(command, start_new_session=True, **options)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()

    def finish(self, process: subprocess.Popen) -> None:
        """Wait until a process ends, and check that it succeeded."""
        wait_for(lambda: process.poll() is not None, "Snakemake ends")
        assert process.returncode == 0, (self.folder / "output").read_text()[-6000:]

    def results(self) -> dict[str, bytes]:
        """Read all files of data, PLMs and results by path, without logs, records of jobs and runs, and times."""
        excluded = {("results", name) for name in ("logs", "jobs", "runs", "costs.csv", "report.html")}
        roots = [self.folder / name for name in ("data", "models", "results")]
        files = [path.relative_to(self.folder) for root in roots for path in sorted(root.rglob("*")) if path.is_file()]
        paths = [path for path in files if path.parts[:2] not in excluded]
        return {path.as_posix(): (self.folder / path).read_bytes() for path in paths}
