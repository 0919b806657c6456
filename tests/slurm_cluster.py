"""A one-node Slurm that tests start and stop, seen through Slurm's own commands, and the toy study on it."""

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
from apet.study.grid import Grid, Job
from toy import PARAMS, ROOT, Checkout

SCRIPTS = Path(__file__).parent / "slurm"
QUICK = {"slurm-init-seconds-before-status-checks": 1, "max-status-checks-per-second": 10}
"""In place of what the profile says, which spares a controller that many share."""

IMPATIENT = (sys.executable, str(SCRIPTS / "impatient.py"), "--profile", "slurm")
"""Snakemake that looks after its jobs each second, however long nothing has finished."""

ENOUGH = 600
"""Seconds that anything waited for may take on a machine that others use too."""


def wait_for(ripe: Callable[[], object], what: str, process: subprocess.Popen | None = None) -> None:
    """Until `ripe` is true, while `process` runs. Fails after ENOUGH seconds."""
    end = time.monotonic() + ENOUGH
    while not ripe():
        assert process is None or process.poll() is None, f"Snakemake ended before: {what}"
        assert time.monotonic() < end, f"waited {ENOUGH} s for: {what}"
        time.sleep(0.05)


class Cluster:
    """The daemons, with all they write in one folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def script(self, name: str) -> None:
        done = subprocess.run(["bash", SCRIPTS / name, self.folder], check=False, capture_output=True, text=True)
        assert done.returncode == 0, f"tests/slurm/{name}: {done.stdout[-2000:]}{done.stderr[-2000:]}"

    def jobs(self, checkout: Checkout, rule: str | None = None) -> list[dict[str, str]]:
        """What `scontrol show job` says of the jobs of a working copy, or of one of its rules, in order."""
        said = slurm("scontrol", "--oneliner", "show", "job")
        found = [dict(word.partition("=")[::2] for word in line.split()) for line in said.splitlines()]
        found = [job for job in found if job.get("WorkDir") == str(checkout.folder)]
        return [job for job in found if rule is None or job["Comment"] == f"rule_{rule}"]

    def queued(self, checkout: Checkout) -> list[str]:
        """Ids of the working copy's jobs that wait or run, as `squeue` says."""
        lines = slurm("squeue", "--noheader", "--format=%i %Z").splitlines()
        return [line.split()[0] for line in lines if line.split()[1] == str(checkout.folder)]

    def ended(self) -> dict[str, str]:
        """Job id -> the state in which it ended, as Slurm wrote it into its file of completed jobs."""
        lines = (self.folder / "jobs.log").read_text().splitlines()
        return dict(re.match(r"JobId=(\d+) .* JobState=(\w+)", line).groups() for line in lines)

    def workers(self, job: dict[str, str]) -> list[int]:
        """Processes of a running job, as `scontrol listpids` says, that train."""
        found = []
        for line in slurm("scontrol", "listpids", job["JobId"]).splitlines()[1:]:
            command = Path("/proc", line.split()[0], "cmdline")
            if command.exists() and re.match(rb"[^\0]*python[^\0]*\0[^\0]*/apet\0train\0", command.read_bytes()):
                found.append(int(line.split()[0]))
        return found


def slurm(*command: str) -> str:
    """What a command of Slurm's prints."""
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout


def merged(old: object, new: object) -> object:
    """A mapping with the keys of another put in at every depth; anything else is replaced."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return old | {key: merged(old.get(key), value) for key, value in new.items()}


class SlurmCheckout(Checkout):
    """A working copy that runs on Slurm: one tiny rung, and blocks of cells long enough to be hit in the middle."""

    params = copy.deepcopy(PARAMS) | {
        "models": ["bloom-16x1"],
        "grid": [
            {"placements": ["none"], "budgets": ["@own"]},
            {"placements": ["uniform"], "budgets": [*range(1, 24)], "training": {"max_steps": 400}},
        ],
        "cells_per_job": 6,
    }

    def __init__(self, folder: Path, wheels: Path):
        super().__init__(folder, wheels)
        shutil.copytree(ROOT / "slurm", folder / "slurm")
        self.edit_profile(QUICK)
        self.write(self.params)

    def copy(self, folder: Path) -> SlurmCheckout:
        """Another folder with the same files, and the profile as it is shipped."""
        made = copy.copy(self)
        made.folder = folder
        shutil.copytree(self.folder, folder, copy_function=shutil.copy2, ignore=shutil.ignore_patterns(".snakemake"))
        shutil.copy(ROOT / "slurm" / "config.yaml", folder / "slurm")
        made.edit_profile(QUICK)
        return made

    def edit_profile(self, changes: dict) -> None:
        """Change keys of the profile as a user would, those of its mappings one by one."""
        path = self.folder / "slurm" / "config.yaml"
        path.write_text(yaml.safe_dump(merged(yaml.safe_load(path.read_text()), changes)))

    @property
    def grid(self) -> Grid:
        return Grid(load_study(self.folder / "params.yaml"), self.folder / "params.yaml")

    def rule(self, block: Job) -> str:
        return f"train_{block.name.replace('/', '_')}"

    def trained_of(self, block: Job) -> dict[str, int]:
        """Of the block's cells, those that were trained, with the moment."""
        paths = {cell.path for cell in block.cells}
        return {path: moment for path, moment in self.trained().items() if path in paths}

    @contextmanager
    def running(self, *command: str) -> Iterator[subprocess.Popen]:
        """Snakemake at work. What it says goes to the file `said`."""
        with (self.folder / "said").open("a") as said:
            options = {"cwd": self.folder, "env": self.environment, "stdout": said, "stderr": subprocess.STDOUT}
            process = subprocess.Popen(command, start_new_session=True, **options)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()

    def finish(self, process: subprocess.Popen) -> None:
        """Wait for the end, and for success."""
        wait_for(lambda: process.poll() is not None, "Snakemake ends")
        assert process.returncode == 0, (self.folder / "said").read_text()[-6000:]

    def results(self) -> dict[str, bytes]:
        """All files of data, PLMs and results, by path, but logs, run records and what holds their times."""
        apart = {("results", name) for name in ("logs", "runs", "costs.csv", "report.html")}
        roots = [self.folder / name for name in ("data", "models", "results")]
        files = [path.relative_to(self.folder) for root in roots for path in sorted(root.rglob("*")) if path.is_file()]
        kept = [path for path in files if path.parts[:2] not in apart]
        return {path.as_posix(): (self.folder / path).read_bytes() for path in kept}
