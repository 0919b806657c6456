"""Cells of one job, trained by several processes that share a PLM and take the same steps at the same time."""

from __future__ import annotations

import math
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from torch import distributed

from apet.core.progress import CellProgress
from apet.core.signals import SignalHandler
from apet.errors import ApetError, Interrupted
from apet.models.sharding import is_main_process, join
from apet.study.cells import Cell
from apet.study.paths import ResultPaths
from apet.training.callbacks import NO_CALLBACKS, CellCallbacks, JobCallbacks, logger_named
from apet.training.cell import CellInputs
from apet.training.checkpoint import CellCheckpoint
from apet.training.job import (
    JobOptions,
    check_one_model,
    failed_cells,
    load_inputs,
    pending_cells,
    record_failure,
    run_cell,
)
from apet.training.runtime import make_deterministic, return_freed_memory

RANK_FAILED = (
    "another process of this job failed, so training cannot continue. The current cell is lost, finished cells are "
    "saved. Rerun the same command to resume."
)

Group = tuple[list[Cell], dict[int, CellInputs]]
"""Cells of one task, and their inputs by `max_length`."""


class RankFailedError(ApetError):
    """One process failed, so that the processes of the job are no longer at the same step."""


class NullCheckpoint(CellCheckpoint):
    """Checkpoint that saves nothing, because no process could write one without the others."""

    def __init__(self, folder: Path):
        super().__init__(folder, identity="", machine={}, signals=SignalHandler(), interval=math.inf)

    def load(self, name: str) -> None:
        return None


def train_distributed(
    cells: Sequence[Cell],
    plm_folder: Path,
    data_folders: Sequence[Path],
    results: ResultPaths,
    options: JobOptions,
) -> int:
    """Train the cells that are not complete, as one of the processes of a job. The main process writes the results.

    An interrupted cell has no checkpoint and starts again. An ApetError occurs on all processes alike, so the other
    cells are trained. Any other error may be that of one process, for which the others would wait forever, so it ends
    the job.

    Args:
        cells: cells of one model.
        plm_folder: folder of the PLM.
        data_folders: folders of the prepared tasks of the cells.
        results: results directory.
        options: the logger. The checkpoint interval is ignored.

    Returns:
        Number of cells that were trained.

    Raises:
        RankFailedError: a process failed.
        CellsFailedError: cells failed on all processes. All others were trained.
        Interrupted: a signal was received.
    """
    check_one_model(cells)
    make_deterministic()
    return_freed_memory()
    join()
    try:
        pending, failed = pending_cells(cells, results) if is_main_process() else ([], {})
        pending = _broadcast(pending)
        with SignalHandler().install():
            if pending:
                for group, inputs in _loaded(load_inputs(pending, plm_folder, data_folders, results)):
                    failed |= _train(group, inputs, results, options.logger)
    finally:
        distributed.destroy_process_group()
    if failed:
        raise failed_cells(failed, len(cells))
    return len(pending)


def _loaded(groups: Iterator[Group]) -> Iterator[Group]:
    """Yield the groups of `load_inputs`. An error that one process may have alone ends the job."""
    while True:
        with _name_interrupted("loading"), _same_error_on_all_ranks("loading"):
            group = next(groups, None)
        if group is None:
            return
        yield group


def _train(
    cells: Sequence[Cell], inputs: Mapping[int, CellInputs], results: ResultPaths, logger: str | None
) -> dict[str, ApetError]:
    """Train cells of one task. Returns the errors of failed cells by path."""
    failed: dict[str, ApetError] = {}
    title = f"{cells[0].model} {cells[0].task}, {distributed.get_world_size()} processes"
    with CellProgress(title, len(cells)) if is_main_process() else nullcontext() as progress:
        for cell in cells:
            cell_inputs = inputs[cell.training.max_length]
            with _name_interrupted(cell.path):
                try:
                    with _same_error_on_all_ranks(cell.path):
                        run_cell(cell, cell_inputs, results, _callbacks(cell, results, progress, logger))
                except RankFailedError as error:
                    record_failure(results, cell.path, error)
                    raise
                except ApetError as error:
                    failed[cell.path] = error
                    cell_inputs.plm.root_unit.reset_iter_state()
                    if is_main_process():
                        record_failure(results, cell.path, error)
                if progress:
                    progress.end()
    return failed


@contextmanager
def _name_interrupted(name: str) -> Iterator[None]:
    """Name the interrupted work in an Interrupted, also if another error is being handled."""
    try:
        yield
    except Interrupted as error:
        signal_name = str(error).partition(":")[0]
        raise Interrupted(f"{name}: {signal_name}, from a scheduler or because {RANK_FAILED}") from None


@contextmanager
def _same_error_on_all_ranks(name: str) -> Iterator[None]:
    """Raise RankFailedError for an error that the other processes may not have."""
    try:
        yield
    except ApetError:
        raise
    except Exception as error:
        traceback.print_exc()
        message = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RankFailedError(f"{name}: {RANK_FAILED} Error: {message}") from None


def _callbacks(cell: Cell, results: ResultPaths, progress: CellProgress | None, logger: str | None) -> CellCallbacks:
    if not progress:
        return NO_CALLBACKS
    progress.begin(cell.path)
    checkpoint, open_logger = NullCheckpoint(results.checkpoints / cell.path), logger_named(logger) if logger else None
    return JobCallbacks(checkpoint, progress, open_logger, results.loggers / cell.path)


def _broadcast(cells: list[Cell]) -> list[Cell]:
    """Return the main process's cells on all processes."""
    objects = [cells]
    distributed.broadcast_object_list(objects, src=0)
    return objects[0]
