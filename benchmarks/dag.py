"""Overhead of the workflow without training: `python benchmarks/dag.py [CELLS …]`. See README.md.

Each study is in a temporary folder, with placeholder files instead of results. All programs are real, except `apet
train`, which is replaced by a shell script that writes a cell's files at once.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml

from apet.config.study_config import load_study
from apet.core.atomic import write_json
from apet.core.hashing import with_checksum
from apet.data.wheels import known_wheels
from apet.figures import FIGURES
from apet.study.archive import write_index
from apet.study.cell_record import FORMAT, METRICS
from apet.study.cells import Cell
from apet.study.grid import Grid
from apet.study.inputs import write_inputs
from apet.study.workdir import published_marker

ROOT = Path(__file__).parent.parent
MODELS = [f"bloom-{width}x2" for width in (16, 32, 48, 64, 80)]
TASKS = ["bbc_topics", "reuters8", "rotten_tomatoes", "election_tweets", "bbc_match"]
PAIRS = len(MODELS) * len(TASKS)

LIMITS = {"dry run": 6, "nothing to do": 6, "dvc status": 10}
"""Seconds for 10,000 cells."""
MOST_MB, MOST_MS = 1000, 20
"""Memory of the dry run, and time a cell of a run of empty trainings, for 10,000 cells."""

TRAIN = """#!/bin/sh
# Stands in for `apet train`: all else goes to the real program.
[ "$1" = train ] || exec {apet} "$@"
shift
while [ $# -gt 0 ]; do
  case "$1" in
    --results-dir) root="$2"; shift 2;;
    --data-dir) shift; while [ "${{1#data/}}" != "$1" ]; do shift; done;;
    --*) shift 2;;
    *) cells="$cells $1"; shift;;
  esac
done
for cell in $cells; do
  mkdir -p "$root/cells/$cell"
  for file in theta.safetensors plans.json predictions.parquet metrics.json; do
    echo "$cell" > "$root/cells/$cell/$file"
  done
done
"""


@dataclass(frozen=True)
class Took:
    """What a command took: wall and CPU seconds, those of its children included, and the largest of them in MB."""

    wall: float
    cpu: float
    memory: float
    output: str


class Workspace:
    """A working copy with a study of so many cells, a multiple of PAIRS."""

    def __init__(self, folder: Path, cells: int):
        self.folder, self.budgets = folder, cells // PAIRS
        folder.mkdir()
        for name in ("Snakefile", "dvc.yaml", ".dvcignore", ".gitignore"):
            shutil.copy(ROOT / name, folder / name)
        for name in ("workflow", "envs", "src"):
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
        (folder / "ladder").mkdir()  # a dependency of a stage of DVC
        shutil.copy(ROOT / "ladder" / "README.md", folder / "ladder")
        self.write(self.budgets)
        train = folder / "bin" / "apet"
        train.parent.mkdir()
        train.write_text(TRAIN.format(apet=shutil.which("apet")))
        train.chmod(0o755)

    def write(self, budgets: int) -> Grid:
        """The study with this many budgets for each (model, task)."""
        study = yaml.safe_load((ROOT / "params.yaml").read_text())
        grid = [{"placements": ["uniform"], "budgets": list(range(1, budgets + 1))}]
        path = self.folder / "params.yaml"
        path.write_text(yaml.safe_dump({**study, "models": MODELS, "tasks": TASKS, "grid": grid}, sort_keys=False))
        return Grid(load_study(path), path)

    def run(self, *command: str, stand_in: bool = False) -> Took:
        """A command in the working copy, on one core a job. Raises CalledProcessError with its output."""
        bins = ([str(self.folder / "bin")] if stand_in else []) + [str(Path(sys.executable).parent), os.environ["PATH"]]
        environment = {**os.environ, "PATH": os.pathsep.join(bins), "DVC_NO_ANALYTICS": "1"}
        with tempfile.TemporaryFile("w+") as output:
            start = time.monotonic()
            process = subprocess.Popen(
                command, cwd=self.folder, env=environment, stdout=output, stderr=subprocess.STDOUT
            )
            _, status, usage = os.wait4(process.pid, 0)
            wall = time.monotonic() - start
            output.seek(0)
            said = output.read()
        if status:
            raise subprocess.CalledProcessError(status, command, said)
        return Took(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, said)

    def snakemake(self, *arguments: str, stand_in: bool = False) -> Took:
        return self.run("snakemake", "--profile", "workflow/profiles/local", *arguments, stand_in=stand_in)

    def fill(self, grid: Grid) -> None:
        """Every file that a finished study leaves, with a few bytes in it."""
        self._write(f"data/wheels/{wheel.file}" for wheel in known_wheels().values())
        self._write(f"{grid.corpus}/{name}" for name in ("corpus.json", "train.parquet", "heldout.parquet"))
        for task in grid.tasks:
            names = ("train.parquet", "validation.parquet", "test.parquet", "task.json")
            self._write(f"{grid.task_folder(task)}/{name}" for name in names)
        self._write(f"{grid.tokenizer}/{name}" for name in ("tokenizer.json", "tokenizer_config.json"))
        for model in grid.models:
            names = ("config.json", "model.safetensors", "pretraining.json")
            self._write(f"{grid.plm_folder(model)}/{name}" for name in names)
        self.fill_cells(grid.cells)
        write_inputs(grid, self.folder / "results/inputs.json")
        write_index(grid, self.folder / "results/cells.json", self.folder)
        write_json(self.folder / "results/metrics.json", {"study": grid.id})
        self._write(out for out in self._outs("figures") if Path(out).suffix)
        self._write([str(published_marker(Path("results"), grid.id))])
        tables = ("methods", "differences", "findings")
        self._write(f"results/tables/{table}.{form}" for table in tables for form in ("md", "csv", "tex"))
        self._write(f"results/figures/{figure}.{form}" for figure in FIGURES for form in ("svg", "png", "csv"))

    def _outs(self, stage: str) -> list[str]:
        """What a stage of dvc.yaml leaves."""
        outs = yaml.safe_load((self.folder / "dvc.yaml").read_text())["stages"][stage]["outs"]
        return [path for out in outs for path in out]

    def fill_cells(self, cells: Iterable[Cell]) -> None:
        names = ("theta.safetensors", "plans.json", "predictions.parquet", METRICS)
        for cell in cells:
            self._write(f"results/cells/{cell.path}/{name}" for name in names)
            record = with_checksum({"format": FORMAT, "path": cell.path, "files": {}})
            (self.folder / "results/cells" / cell.path / METRICS).write_text(json.dumps(record))

    def _write(self, paths: Iterable[str]) -> None:
        for path in paths:
            place = self.folder / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(f"{path}\n")


def measure(cells: int, scratch: Path) -> dict[str, Took]:
    """What is asked of a workflow, asked of a study of so many cells."""
    space = Workspace(scratch / str(cells), cells)
    grid = space.write(space.budgets)
    found = {"first dry run": space.snakemake("-n"), "dry run": space.snakemake("-n")}
    space.fill(grid)
    found["nothing to do"] = space.snakemake()
    assert "Nothing to be done" in found["nothing to do"].output
    found |= measure_dvc(space)
    larger = space.write(space.budgets + 1)
    found["one axis edited, dry run"] = space.snakemake("-n")
    assert 0 < jobs(found["one axis edited, dry run"]) <= PAIRS, "one cell more a (model, task) is at most one job each"
    space.fill_cells(larger.cells)
    shutil.rmtree(space.folder / "results" / "cells")
    space.write(space.budgets)
    found["run of empty trainings"] = space.snakemake("cells", stand_in=True)
    assert sum(1 for _ in (space.folder / "results" / "cells").rglob("metrics.json")) == cells
    return found


def measure_dvc(space: Workspace) -> dict[str, Took]:
    """`dvc status` after all stages were recorded as they are."""
    space.run("git", "init", "-q")
    space.run("dvc", "init", "-q")
    space.run("dvc", "commit", "-q", "--force")
    found = {"dvc status": space.run("dvc", "status")}
    assert "up to date" in found["dvc status"].output, found["dvc status"].output
    return found


def jobs(dry_run: Took) -> int:
    """How many training jobs a dry run counts."""
    return sum(int(count) for count in re.findall(r"^ train .* (\d+) *$", dry_run.output, re.MULTILINE))


def report(cells: int, found: dict[str, Took]) -> bool:
    """Lines of a table; whether all limits hold."""
    kept = True
    for what, took in found.items():
        each = 1000 * took.cpu / cells
        line = f"{what:26} {cells:7,} {took.wall:8.1f} {took.cpu:8.1f} {took.memory:6.0f} {each:14.2f}"
        held, limit = verdict(what, took, cells) if cells == 10_000 else (True, "")
        kept &= held
        print(f"{line}   {limit}{'' if held else '  EXCEEDED'}".rstrip(), flush=True)
    return kept


def verdict(what: str, took: Took, cells: int) -> tuple[bool, str]:
    """Whether a limit holds, and what it is. Wall time, for it is what a user waits for."""
    if what == "run of empty trainings":
        return 1000 * took.wall / cells <= MOST_MS, f"{MOST_MS} ms a cell ({1000 * took.wall / cells:.1f})"
    if what not in LIMITS:
        return True, ""
    return took.wall <= LIMITS[what] and took.memory <= MOST_MB, f"{LIMITS[what]} s, {MOST_MB} MB"


def main() -> int:
    """Exit with status 1 if a limit is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", type=int, nargs="*", default=[1000, 10_000, 25_000], help=f"multiples of {PAIRS}")
    parser.add_argument("--scratch", type=Path, help="folder for the studies (default: the system's)")
    args = parser.parse_args()
    kept = True
    print(
        f"{'':26} {'cells':>7} {'wall s':>8} {'CPU s':>8} {'MB':>6} {'CPU ms a cell':>14}   limit for 10,000",
        flush=True,
    )
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        for cells in args.cells:
            kept &= report(cells, measure(cells, Path(scratch)))
            shutil.rmtree(Path(scratch) / str(cells))
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
