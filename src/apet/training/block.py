"""A block of cells in one process: what is complete is skipped, what fails does not take its siblings along."""

from __future__ import annotations

import os
import platform
import resource
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from apet.errors import ApetError
from apet.grid import Cell
from apet.plms.load import load_plm
from apet.provenance import write_json
from apet.training.cells import Bench, is_complete, train_cell
from apet.training.determinism import machine_class, make_deterministic


@dataclass(frozen=True)
class Roots:
    """cells: folders of cells. runs: run records (time, memory, host), which differ from run to run."""

    cells: Path
    runs: Path


def train_block(cells: Sequence[Cell], plm_folder: Path, data_folder: Path, roots: Roots) -> int:
    """Train the cells (all of one model and task) that are not complete. Returns how many were trained.

    Raises ApetError at the end, naming the cells that failed, after all others are done and saved.
    """
    missing = [cell for cell in cells if not is_complete(roots.cells / cell.path)]
    if not missing:
        return 0
    make_deterministic()
    plm = load_plm(plm_folder, cells[0].model)
    benches = {n: Bench.of(plm, data_folder, n) for n in sorted({cell.training.length for cell in missing})}
    failed = {}
    title = f"{cells[0].model} {cells[0].task}"
    for cell in tqdm(missing, desc=title, unit="cell", mininterval=10 if _logged() else 0.1):
        try:
            _run(cell, benches[cell.training.length], roots)
        except Exception as error:
            traceback.print_exc()
            failed[cell.path] = error
    if failed:
        listed = "; ".join(f"{path}: {error}" for path, error in failed.items())
        raise ApetError(f"{len(failed)} of {len(missing)} cells failed, the others are saved. {listed}")
    return len(missing)


def _run(cell: Cell, bench: Bench, roots: Roots) -> None:
    """Train one cell and write down what the run took."""
    start, cpu = time.monotonic(), time.process_time()
    record = train_cell(cell, bench, roots.cells / cell.path)
    run = {
        "cell": cell.path,
        "trained": [r["theta"] for r in record["replicates"]],
        "seconds": round(time.monotonic() - start, 3),
        "cpu_seconds": round(time.process_time() - cpu, 3),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "host": platform.node(),
        **machine_class(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    write_json(roots.runs / f"{cell.path}.json", run)


def _logged() -> bool:
    """Whether progress goes to a log and not to a terminal."""
    return not os.isatty(2)
