"""A block of cells in one process: what is complete is skipped, what fails does not take its siblings along."""

from __future__ import annotations

import os
import platform
import resource
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from apet.core.arithmetic import cpu_name
from apet.core.hashing import digest, write_json
from apet.core.progress import CellProgress
from apet.data.prepare import read_task
from apet.errors import ApetError, CellsFailedError, ConfigError, DataError, ModelError, StorageError, without_secrets
from apet.models.loading import load_plm
from apet.models.sharding import is_main_process, load_sharded, world_size
from apet.study.cell_record import FORMAT, is_complete
from apet.study.grid import Cell
from apet.study.paths import ResultPaths
from apet.training.callbacks import CellCallbacks, JobCallbacks, opener
from apet.training.cell import CellInputs, train_cell
from apet.training.checkpoint import CHECKPOINT_SECONDS, CellCheckpoint, discard
from apet.training.runtime import SignalHandler, keep_freed_memory, machine_class, make_deterministic


@dataclass(frozen=True)
class JobOptions:
    """What goes along with a block and never into its bytes.

    checkpoint_interval: seconds of work that a killed process may lose. logger: a name of `loggers.LOGGERS`, or None.
    """

    checkpoint_interval: float = CHECKPOINT_SECONDS
    logger: str | None = None


def train_job(
    cells: Sequence[Cell],
    plm_folder: Path,
    data_folders: Sequence[Path],
    results: ResultPaths,
    aside: JobOptions = JobOptions(),
    device: str = "cpu",
) -> int:
    """Call `train_cells` for the cells of each task.

    Args:
        cells: cells of one model.
        plm_folder: the PLM's folder.
        data_folders: the prepared folders of the cells' tasks.
        results: root of the results.
        aside: what cannot change a result.
        device: cpu or cuda.

    Returns:
        How many cells were trained.

    Raises:
        DataError: no folder is given for a cell's task.
        FailedCells: cells of some tasks failed, after those of all tasks were tried.
    """
    folders = {read_task(folder)["task"]: folder for folder in data_folders} if len(data_folders) > 1 else {}
    tasks = list(dict.fromkeys(cell.task for cell in cells)) if folders else [cells[0].task]
    for task in (task for task in tasks if folders and task not in folders):
        raise DataError(f"--data: no prepared folder of task {task!r}. Given: {', '.join(sorted(folders))}.")
    count, failures = 0, []
    for task in tasks:
        own = [cell for cell in cells if cell.task == task] if folders else cells
        try:
            count += train_cells(own, plm_folder, folders.get(task, data_folders[0]), results, aside, device)
        except CellsFailedError as error:
            failures.append(str(error))
    if failures:
        raise CellsFailedError(" ".join(failures))
    return count


def train_cells(
    cells: Sequence[Cell],
    plm_folder: Path,
    data_folder: Path,
    results: ResultPaths,
    aside: JobOptions = JobOptions(),
    device: str = "cpu",
) -> int:
    """Train the cells (all of one model and task) that are not complete. Returns how many were trained.

    device: cpu or cuda, a part of the class of machine that run records name. Raises FailedCells at the end, naming the
    cells that failed, after all others are done and saved; ParamsError for cells of several models or tasks;
    Interrupted after SIGTERM or SIGINT, when what is under way is kept.
    """
    _check_block(cells)
    missing, failed = unfinished(cells, results)
    if missing:
        logger = opener(aside.logger) if aside.logger else None
        make_deterministic(device)
        keep_freed_memory()
        stop = SignalHandler()
        with stop.install():
            benches = load_inputs(missing, plm_folder, data_folder, results, device)
            with CellProgress(f"{cells[0].model} {cells[0].task}", len(missing)) as report:
                for cell in missing:
                    bench, folder = benches[cell.training.max_length], results.progress / cell.path
                    kept = CellCheckpoint(
                        folder, _identity(cell, bench), _class(bench), stop, aside.checkpoint_interval
                    )
                    journal = JobCallbacks(kept, report, logger, results.loggers / cell.path)
                    report.begin(cell.path)
                    with _failing(cell, results, failed), stop.deferred():
                        run_cell(cell, bench, results, journal)
                    report.end()
    if failed:
        listed = "; ".join(f"{path}: {error}" for path, error in failed.items())
        raise CellsFailedError(f"{len(failed)} of {len(cells)} cells failed, the others are saved. {listed}")
    return len(missing)


def _check_block(cells: Sequence[Cell]) -> None:
    pairs = sorted({f"{cell.model}/{cell.task}" for cell in cells})
    if len(pairs) > 1:
        raise ConfigError(
            f"cells of {pairs[0]} and of {pairs[1]}: give those of one model and task, as --plm and --data."
        )


def unfinished(cells: Sequence[Cell], results: ResultPaths) -> tuple[list[Cell], dict[str, Exception]]:
    """The cells that are to be trained, and those that cannot even be looked at, with their errors."""
    missing: list[Cell] = []
    failed: dict[str, Exception] = {}
    for cell in cells:
        with _failing(cell, results, failed):
            if not is_done(cell, results):
                missing.append(cell)
    return missing, failed


@contextmanager
def _failing(cell: Cell, results: ResultPaths, failed: dict[str, Exception]) -> Iterator[None]:
    """What goes wrong in here is the cell's failure: it is said, written down and put into `failed`.

    A full disk is not: the cells after it would be trained and lost as well.
    """
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        if not isinstance(error, ApetError):  # whose message says it all
            traceback.print_exc()
        record_failure(results, cell.path, error)
        failed[cell.path] = error


def is_done(cell: Cell, results: ResultPaths) -> bool:
    """Whether a cell is complete; then nothing is left of attempts before."""
    done = is_complete(results.cells / cell.path, cell.path)
    if done:
        discard(results.progress / cell.path)
        forget_failure(results, cell.path)
    return done


def load_inputs(
    cells: Sequence[Cell], plm_folder: Path, data_folder: Path, results: ResultPaths, device: str = "cpu"
) -> dict[int, CellInputs]:
    """Length of texts -> PLM and task at that length. What cannot be loaded is a failure of every cell."""
    try:
        name = cells[0].model
        plm = load_plm(plm_folder, name, device=device) if world_size() == 1 else load_sharded(plm_folder, name)
        found = {n: CellInputs.of(plm, data_folder, n) for n in sorted({cell.training.max_length for cell in cells})}
        for bench in found.values():
            _check_inputs(cells[0], bench, plm_folder, data_folder)
        return found
    except Exception as error:
        for cell in cells:
            record_failure(results, cell.path, error)
        raise


def _check_inputs(cell: Cell, bench: CellInputs, plm_folder: Path, data_folder: Path) -> None:
    """Raises DataError for another task's prepared folder, ModelError for a PLM of another name."""
    if bench.task["task_digest"] != cell.data_digest:
        raise DataError(
            f"{data_folder}/task.json: of {bench.task['task']!r}, prepared of another task, source, rows or seed than "
            f"{cell.path} is of. Give the folder that the study names, {cell.data_folder}."
        )
    record, name = bench.plm.folder.origin if bench.plm.folder else ("", None)
    if name not in (None, cell.model):
        raise ModelError(
            f"{plm_folder / record}: of PLM {name!r}, and {cell.path} is of {cell.model!r}. Give the folder that the "
            f"study names, {cell.plm_folder}."
        )


def run_cell(cell: Cell, bench: CellInputs, results: ResultPaths, journal: CellCallbacks) -> None:
    """Train one cell and write down what the run took."""
    start, cpu = time.monotonic(), time.process_time()
    record = train_cell(cell, bench, results.cells / cell.path, journal)
    if not is_main_process():
        return
    assert isinstance(journal, JobCallbacks)  # only those of other processes are not
    run = {
        "cell": cell.path,
        "trained": [r["theta"] for r in record["replicates"]],
        "seconds": round(time.monotonic() - start, 3),
        "cpu_seconds": round(time.process_time() - cpu, 3),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "host": platform.node(),
        "processor": cpu_name(),
        **_class(bench),
        # Whether a process before had begun it, whose time is not in these; and classes of other machines that had.
        "resumed": journal.kept.used,
        "begun_on": journal.kept.others,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    write_json(results.runs / f"{cell.path}.json", run)
    discard(results.progress / cell.path)
    forget_failure(results, cell.path)


def _class(bench: CellInputs) -> dict[str, object]:
    return machine_class(bench.plm.dtype, bench.plm.device)


def _identity(cell: Cell, bench: CellInputs) -> str:
    """Of all that decides a cell's bytes on one class of machine."""
    return digest([FORMAT, cell.digest, bench.plm.content, bench.task["digest"]])


LAST_LINES = 20
"""Lines of a traceback that are written down."""


def record_failure(results: ResultPaths, cell: str, error: Exception) -> None:
    """Write the failure record of a cell, given by its path."""
    trace = without_secrets("".join(traceback.format_exception(error))).splitlines()
    record = {
        "cell": cell,
        "error": without_secrets(f"{type(error).__name__}: {error}"),
        "traceback": trace[-LAST_LINES:],
        "log": _log(),
        "host": platform.node(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    write_json(_path(results, cell), record)


def forget_failure(results: ResultPaths, cell: str) -> None:
    """The cell has succeeded."""
    _path(results, cell).unlink(missing_ok=True)


def _path(results: ResultPaths, cell: str) -> Path:
    return results.failed / f"{cell}.json"


def _log() -> str | None:
    """The file that this process writes its messages to; None for a terminal, or where the system does not tell."""
    path = os.path.realpath("/dev/fd/2")
    return os.path.relpath(path) if os.path.isfile(path) else None
