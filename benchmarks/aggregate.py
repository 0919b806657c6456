"""Run time of aggregation, findings and figures on a large study: `python benchmarks/aggregate.py`. See README.md.

The real programs process simulated results of nine PLMs in three families and eleven tasks, with predictions.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from apet.core.hashing import digest
from apet.core.records import write_json_record

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import simulated_study as simulated

FAMILIES = ("bert", "bloom", "t5")
SIZES = (200_000, 2_000_000, 20_000_000)
TASKS = 11
MATCHED = ("lora", "adapter", "prompt", "bitfit")
MOST_SECONDS, MOST_MB = 180, 4096
"""For all commands together, and for each."""


def cells(count: int, rows: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """At least `count` cells: the methods twice, APET at their counts with two seeds of two plans, a sweep thrice."""
    simulated.MODELS = {f"{family}-{size}": (size, 2 * size) for family in FAMILIES for size in SIZES}
    simulated.TASKS = {f"task{i}": (2 + i, 1 / (2 + i), 1 / (2 + i), rows) for i in range(TASKS)}
    own = len(simulated.OWN) + len(MATCHED)
    sweep = max(2, -(-count // (len(simulated.MODELS) * TASKS)) - own)
    rng = np.random.default_rng(0)
    for model, (size, parameters) in simulated.MODELS.items():
        counts = {name: int(share * parameters) for name, share in simulated.OWN.items()}
        spent = [(name, "@own", counts[name], (1, 2)) for name in simulated.OWN]
        spent += [("uniform", f"@{name}", counts[name], (2, 2)) for name in MATCHED]
        amounts = dict.fromkeys(map(round, np.geomspace(10, size, sweep)))
        spent += [("uniform", str(amount), amount, (3, 1)) for amount in amounts]
        for task, (_, chance, _, _) in simulated.TASKS.items():
            for placement, budget, amount, shape in spent:
                share = np.clip(np.log10(amount + 1) / np.log10(size) - 0.2, 0, 0.8)
                scores = rng.binomial(rows, np.clip(chance + share + rng.normal(0, 0.02, shape), 0, 1)) / rows
                path, metrics = simulated.record(model, task, placement, budget, scores, amount)
                metrics["plm"]["family"] = model.partition("-")[0]
                yield path, metrics


def build(folder: Path, count: int, rows: int) -> tuple[int, int]:
    """Write the cells and their resolved study. Returns the numbers of cells and of replicates."""
    found = list(cells(count, rows))
    simulated.write_cells(folder / "results/cells", found)
    margins = {"chance_margin": 2.0, "full_ft_margin": 2.0, "equivalence_margin": 0.5}
    by_path = {path: m["cell"] for path, m in found}
    study = {"study": digest(count), "name": "simulated", "analysis": margins, "cells": by_path}
    write_json_record(folder / "study.json", study)
    return len(found), sum(len(metrics["replicates"]) for _, metrics in found)


def measure(folder: Path, *command: str) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and peak memory (MB) of a command, on one thread."""
    start = time.monotonic()
    process = subprocess.Popen(["apet", *command], cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"})
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"apet {command[0]} failed")
    return time.monotonic() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> int:
    """Exit with status 1 if a limit is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=8300, help="at least so many (default: 8300)")
    parser.add_argument("--rows", type=int, default=1000, help="test rows of a task (default: 1000)")
    parser.add_argument("--scratch", type=Path, help="folder for the tree (default: the system's)")
    args = parser.parse_args()
    tidy = ("--tidy", "results/tidy.parquet")
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        folder = Path(scratch)
        count, replicates = build(folder, args.cells, args.rows)
        print(f"{count:,} cells, {replicates:,} replicates, {args.rows:,} test rows")
        print(f"{'':12}{'wall s':>8}{'CPU s':>8}{'MB':>8}", flush=True)
        total, most = 0.0, 0.0
        for command in (
            ("aggregate", "--resolved", "study.json", "--results-dir", "results", "--out-dir", "results"),
            ("findings", *tidy, "--out-dir", "results"),
            ("figures", *tidy, "--out-dir", "results/figures"),
        ):
            wall, cpu, memory = measure(folder, *command)
            total, most = total + wall, max(most, memory)
            print(f"{command[0]:12}{wall:8.1f}{cpu:8.1f}{memory:8.0f}", flush=True)
        print(f"{'in all':12}{total:8.1f}{'':8}{most:8.0f}   limits: {MOST_SECONDS} s, {MOST_MB} MB")
    return int(total > MOST_SECONDS or most > MOST_MB)


if __name__ == "__main__":
    sys.exit(main())
