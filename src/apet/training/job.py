"""Cells of one job, trained in one process. A failed cell is recorded and does not stop the others."""

from __future__ import annotations

import os
import platform
import resource
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apet.core.arithmetic import cpu_name
from apet.core.atomic import write_json
from apet.core.hashing import digest
from apet.core.progress import CellProgress
from apet.core.signals import SignalHandler
from apet.core.text import plural
from apet.data.prepared_files import RECORD as TASK_RECORD
from apet.data.prepared_files import read_task
from apet.errors import ApetError, CellsFailedError, ConfigError, DataError, ModelError, StorageError, without_secrets
from apet.models.loading import PLM, load_plm
from apet.models.sharding import is_main_process, load_sharded, world_size
from apet.study.cell_record import FORMAT, is_complete
from apet.study.cells import Cell
from apet.study.paths import ResultPaths
from apet.training.callbacks import CellCallbacks, JobCallbacks, OpenLogger, logger_named
from apet.training.cell import CellInputs, train_cell
from apet.training.checkpoint import CHECKPOINT_SECONDS, CellCheckpoint, discard_checkpoint
from apet.training.runtime import keep_freed_memory, machine_type, make_deterministic


@dataclass(frozen=True)
class JobOptions:
    """Options of a job that cannot change a result."""

    checkpoint_interval: float = CHECKPOINT_SECONDS
    """Seconds of work that a killed process may lose."""
    logger: str | None = None
    """Key of `callbacks.LOGGERS`, or None."""


def train_job(
    cells: Sequence[Cell],
    plm_folder: Path,
    data_folders: Sequence[Path],
    results: ResultPaths,
    options: JobOptions = JobOptions(),
    device: str = "cpu",
) -> int:
    """Train the cells that are not complete, task by task.

    Args:
        cells: cells of one model.
        plm_folder: folder of the PLM.
        data_folders: folders of the prepared tasks of the cells.
        results: results directory.
        options: checkpoint interval and logger.
        device: `cpu` or `cuda`.

    Returns:
        Number of cells that were trained.

    Raises:
        ConfigError: the cells have several models, or the logger's package is not installed.
        DataError: a prepared task is missing, or is not the task of the cells.
        ModelError: the PLM cannot be loaded, or is not the PLM of the cells.
        CellsFailedError: cells failed. All others were trained.
        Interrupted: a signal was received. Finished work is saved.
    """
    check_one_model(cells)
    pending, failed = pending_cells(cells, results)
    if pending:
        open_logger = logger_named(options.logger) if options.logger else None
        make_deterministic(device)
        keep_freed_memory()
        signals = SignalHandler()
        with signals.install():
            for group, inputs in load_inputs(pending, plm_folder, data_folders, results, device):
                failed |= _train_task(group, inputs, results, signals, options.checkpoint_interval, open_logger)
    if failed:
        raise failed_cells(failed, len(cells))
    return len(pending)


def _train_task(
    cells: Sequence[Cell],
    inputs: Mapping[int, CellInputs],
    results: ResultPaths,
    signals: SignalHandler,
    checkpoint_interval: float,
    open_logger: OpenLogger | None,
) -> dict[str, Exception]:
    """Train cells of one task. Returns the errors of failed cells by path."""
    failed: dict[str, Exception] = {}
    with CellProgress(f"{cells[0].model} {cells[0].task}", len(cells)) as progress:
        for cell in cells:
            cell_inputs = inputs[cell.training.max_length]
            identity, machine = _identity(cell, cell_inputs), _machine_type(cell_inputs)
            folder = results.checkpoints / cell.path
            checkpoint = CellCheckpoint(folder, identity, machine, signals, checkpoint_interval)
            callbacks = JobCallbacks(checkpoint, progress, open_logger, results.loggers / cell.path)
            progress.begin(cell.path)
            with _collect_failure(cell, results, failed), signals.deferred():
                run_cell(cell, cell_inputs, results, callbacks)
            progress.end()
    return failed


def check_one_model(cells: Sequence[Cell]) -> None:
    """Raise ConfigError for cells of several models."""
    models = sorted({cell.model for cell in cells})
    if len(models) > 1:
        raise ConfigError(f"cells: expected one model, got {', '.join(models)}. Train each model in its own command.")


def pending_cells(cells: Sequence[Cell], results: ResultPaths) -> tuple[list[Cell], dict[str, Exception]]:
    """Return the cells to train, and the errors of corrupt cells by path."""
    pending: list[Cell] = []
    failed: dict[str, Exception] = {}
    for cell in cells:
        with _collect_failure(cell, results, failed):
            if is_complete(results.cells / cell.path, cell.path):
                _clean_up(cell, results)
            else:
                pending.append(cell)
    return pending, failed


def load_inputs(
    cells: Sequence[Cell], plm_folder: Path, data_folders: Sequence[Path], results: ResultPaths, device: str = "cpu"
) -> Iterator[tuple[list[Cell], dict[int, CellInputs]]]:
    """Load the PLM and read the prepared tasks, each once, and tokenize one task after another.

    An error is recorded as the failure of all cells that need the input.

    Args:
        cells: cells of one model.
        plm_folder: folder of the PLM.
        data_folders: folders of the prepared tasks of the cells.
        results: results directory.
        device: `cpu` or `cuda`, unless several processes share the PLM.

    Yields:
        The cells of a task, and their inputs by `max_length`.

    Raises:
        DataError: a prepared task is missing, or is not the task of the cells.
        ModelError: the PLM cannot be loaded, or is not the PLM of the cells.
    """
    groups = {task: [cell for cell in cells if cell.task == task] for task in dict.fromkeys(c.task for c in cells)}
    with _record_failures(cells, results):
        name = cells[0].model
        plm = load_plm(plm_folder, name, device=device) if world_size() == 1 else load_sharded(plm_folder, name)
        _check_plm(cells[0], plm)
        records = [(folder, read_task(folder)) for folder in data_folders]
        tasks = {record["task"]: (folder, record) for folder, record in records}
        for group in groups.values():
            _check_task(group[0], tasks)
    for task, group in groups.items():
        with _record_failures(group, results):
            folder, record = tasks[task]
            lengths = sorted({cell.training.max_length for cell in group})
            inputs = {length: CellInputs.from_folder(plm, folder, length, record) for length in lengths}
        yield group, inputs


def _check_task(cell: Cell, tasks: Mapping[str, tuple[Path, dict[str, Any]]]) -> None:
    if cell.task not in tasks:
        names = ", ".join(f"{name!r} in {folder / TASK_RECORD}" for name, (folder, _) in sorted(tasks.items()))
        raise DataError(f"{cell.path}: expected the prepared task {cell.task!r}, got {names}. Give {cell.data_folder}.")
    folder, record = tasks[cell.task]
    if record["task_digest"] != cell.data_digest:
        raise DataError(
            f"{folder / TASK_RECORD}: task_digest: expected the task, source, max_samples and seed of {cell.path}, got "
            f"others. Give {cell.data_folder}."
        )


def _check_plm(cell: Cell, plm: PLM) -> None:
    record, name = plm.folder.origin if plm.folder else ("", None)
    if plm.folder and name not in (None, cell.model):
        raise ModelError(
            f"{plm.folder.path / record}: name: expected {cell.model!r}, the PLM of {cell.path}, got {name!r}. Give "
            f"{cell.plm_folder}."
        )


def run_cell(cell: Cell, inputs: CellInputs, results: ResultPaths, callbacks: CellCallbacks) -> None:
    """Train one cell and write its run record.

    Args:
        cell: the cell.
        inputs: PLM and task of the cell.
        results: results directory.
        callbacks: callbacks on the cell. They must be JobCallbacks on the main process.
    """
    start, cpu_start = time.monotonic(), time.process_time()
    record = train_cell(cell, inputs, results.cells / cell.path, callbacks)
    if not is_main_process():
        return
    assert isinstance(callbacks, JobCallbacks)
    run = {
        "cell": cell.path,
        "trained": [r["theta_digest"] for r in record["replicates"]],
        "seconds": round(time.monotonic() - start, 3),
        "cpu_seconds": round(time.process_time() - cpu_start, 3),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "host": platform.node(),
        "processor": cpu_name(),
        **_machine_type(inputs),
        # Times do not include those of an earlier process from which this one resumed.
        "resumed": callbacks.checkpoint.resumed,
        "begun_on": callbacks.checkpoint.other_machines,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    write_json(results.runs / f"{cell.path}.json", run)
    _clean_up(cell, results)


def _machine_type(inputs: CellInputs) -> dict[str, Any]:
    return machine_type(inputs.plm.dtype, inputs.plm.device)


def _identity(cell: Cell, inputs: CellInputs) -> str:
    """Return the hash of all inputs that determine a cell's bytes on one machine type."""
    return digest([FORMAT, cell.digest, inputs.plm.content, inputs.task["digest"]])


def _clean_up(cell: Cell, results: ResultPaths) -> None:
    """Delete checkpoint and failure record of a finished cell."""
    discard_checkpoint(results.checkpoints / cell.path)
    _failure_file(results, cell.path).unlink(missing_ok=True)


TRACEBACK_LINES = 20
"""Last lines of a traceback that are recorded."""


def record_failure(results: ResultPaths, cell: str, error: Exception) -> None:
    """Write the failure record of a cell.

    Args:
        results: results directory.
        cell: path of the cell, model/task/name.
        error: the error that stopped it.
    """
    trace = without_secrets("".join(traceback.format_exception(error))).splitlines()
    record = {
        "cell": cell,
        "error": without_secrets(f"{type(error).__name__}: {error}"),
        "traceback": trace[-TRACEBACK_LINES:],
        "log": _log_file(),
        "host": platform.node(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    write_json(_failure_file(results, cell), record)


def failed_cells(failed: Mapping[str, Exception], total: int) -> CellsFailedError:
    """Return the error that lists failed cells, given by path, of a number of cells."""
    errors = "; ".join(f"{path}: {error}" for path, error in failed.items())
    return CellsFailedError(f"{len(failed)} of {plural(total, 'cell')} failed, the others are saved. {errors}")


@contextmanager
def _record_failures(cells: Sequence[Cell], results: ResultPaths) -> Iterator[None]:
    """Record an error as the failure of all cells, and raise it again."""
    try:
        yield
    except Exception as error:
        for cell in cells:
            record_failure(results, cell.path, error)
        raise


@contextmanager
def _collect_failure(cell: Cell, results: ResultPaths, failed: dict[str, Exception]) -> Iterator[None]:
    """Print an error, record it as the failure of a cell, and add it to `failed`.

    A StorageError is raised instead, because the disk would also lose the next cells.
    """
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        if not isinstance(error, ApetError):  # the message of an ApetError is complete
            traceback.print_exc()
        record_failure(results, cell.path, error)
        failed[cell.path] = error


def _failure_file(results: ResultPaths, cell: str) -> Path:
    return results.failed / f"{cell}.json"


def _log_file() -> str | None:
    """Return the file that this process's messages go to. None if it is a terminal, or if the system has no /dev/fd."""
    path = os.path.realpath("/dev/fd/2")
    return os.path.relpath(path) if os.path.isfile(path) else None
