"""A block of cells on several processes that share one PLM: the same steps, at the same time, in each of them."""

from __future__ import annotations

import math
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from torch import distributed

from apet.core.progress import CellProgress
from apet.errors import ApetError, Interrupted
from apet.models.sharding import is_main_process, join
from apet.study.grid import Cell
from apet.study.paths import ResultPaths
from apet.training.callbacks import NO_CALLBACKS, CellCallbacks, JobCallbacks, opener
from apet.training.cell import CellInputs
from apet.training.checkpoint import CellCheckpoint
from apet.training.job import JobOptions, load_inputs, record_failure, run_cell, unfinished
from apet.training.runtime import SignalHandler, make_deterministic, return_freed_memory

GONE = (
    "a process of this job has failed or is gone, and no other can go on without it. Nothing is left of what they were "
    "at; the cells before it are saved, and the same command goes on from there."
)


class RankFailedError(ApetError):
    """The processes of a job are no longer at the same step."""


class NullCheckpoint(CellCheckpoint):
    """Nothing is kept of a cell under way, as no process could write it without the others: it is begun again."""

    def __init__(self, folder: Path):
        super().__init__(folder, identity="", machine={}, stop=SignalHandler(), every=math.inf)

    def find(self, name: str) -> None:
        return None


def train_distributed(
    cells: Sequence[Cell], plm_folder: Path, data_folder: Path, results: ResultPaths, aside: JobOptions
) -> int:
    """`train_block` for each of the processes of a job, of which the first one writes; nothing is kept of a cell that
    is cut off.

    An ApetError is the same everywhere, so the other cells go on. Any other may be one process's own, and whoever waits
    for it would wait for ever: it ends the job.
    """
    make_deterministic()
    return_freed_memory()
    join()
    try:
        missing, failed = unfinished(cells, results) if is_main_process() else ([], {})
        missing = _broadcast(missing)
        with SignalHandler().install():
            if missing:
                with _named("loading"), _same_error_on_all_ranks("loading"):
                    benches = load_inputs(missing, plm_folder, data_folder, results)
                failed |= _train(missing, benches, results, aside.logger)
    finally:
        distributed.destroy_process_group()
    if failed:
        listed = "; ".join(f"{path}: {error}" for path, error in failed.items())
        raise ApetError(f"{len(failed)} of {len(cells)} cells failed, the others are saved. {listed}")
    return len(missing)


def _train(
    cells: Sequence[Cell], benches: dict[int, CellInputs], results: ResultPaths, logger: str | None
) -> dict[str, ApetError]:
    """Train the cells. Returns those that failed. Raises ApetError where the processes are out of step."""
    failed: dict[str, ApetError] = {}
    title = f"{cells[0].model} {cells[0].task}, {distributed.get_world_size()} processes"
    with CellProgress(title, len(cells)) if is_main_process() else nullcontext() as report:
        for cell in cells:
            bench = benches[cell.training.max_length]
            with _named(cell.path):
                try:
                    with _same_error_on_all_ranks(cell.path):
                        run_cell(cell, bench, results, _journal(cell, results, report, logger))
                except RankFailedError as error:
                    record_failure(results, cell.path, error)
                    raise
                except ApetError as error:
                    failed[cell.path] = error
                    bench.plm.root_unit.reset_iter_state()
                    if is_main_process():
                        record_failure(results, cell.path, error)
                if report:
                    report.end()
    return failed


@contextmanager
def _named(what: str) -> Iterator[None]:
    """An interruption says what it interrupted, wherever it comes, also while another error is dealt with."""
    try:
        yield
    except Interrupted as error:
        asked = str(error).partition(":")[0]
        raise Interrupted(f"{what}: {asked}, by a scheduler or as {GONE}") from None


@contextmanager
def _same_error_on_all_ranks(what: str) -> Iterator[None]:
    """Tell an error that every process meets from that of one, or from the silence of one that is gone."""
    try:
        yield
    except ApetError:
        raise
    except Exception as error:
        traceback.print_exc()
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RankFailedError(f"{what}: {GONE} It said: {said}") from None


def _journal(cell: Cell, results: ResultPaths, report: CellProgress | None, logger: str | None) -> CellCallbacks:
    if not report:
        return NO_CALLBACKS
    report.begin(cell.path)
    kept, log = NullCheckpoint(results.progress / cell.path), opener(logger) if logger else None
    return JobCallbacks(kept, report, log, results.loggers / cell.path)


def _broadcast(cells: list[Cell]) -> list[Cell]:
    """The cells that the first process names."""
    told = [cells]
    distributed.broadcast_object_list(told, src=0)
    return told[0]
