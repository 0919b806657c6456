"""Verification of a study: finished cells are retrained in a temporary folder and compared byte by byte."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from apet.core.hashing import file_digest
from apet.core.text import plural
from apet.errors import CellsFailedError, DataError
from apet.study.cell_record import RUN_HINT, is_complete
from apet.study.cells import Cell
from apet.study.paths import ResultPaths
from apet.study.status import differences, read_machine
from apet.study.workdir import missing_cells
from apet.training.job import train_job


@dataclass(frozen=True)
class Verdict:
    """The comparison of one retrained cell."""

    cell: str
    """Path of the cell, model/task/name."""
    differing: tuple[str, ...]
    """Names of files that differ, or that only one of the folders has."""
    machine_differences: tuple[str, ...] | None
    """Differences between the machine types of both trainings. Equal bytes are promised only if there are none. None if
    a run record is missing."""
    error: str = ""
    """Error of the retraining."""

    @property
    def equal(self) -> bool:
        """True if all files are equal."""
        return not (self.differing or self.error)

    def line(self) -> str:
        """Format a table row: verdict, cell, differences."""
        text = self.error or ", ".join(self.differing)
        if self.machine_differences:
            text += f" [trained on another machine type: {'; '.join(self.machine_differences)}]"
        return f"{'equal    ' if self.equal else 'DIFFERENT'}  {self.cell}  {text}".rstrip()


def sample_cells(cells: Sequence[Cell], results: ResultPaths, count: int, seed: int) -> list[Cell]:
    """Sample finished cells without replacement.

    Args:
        cells: cells of a study.
        results: results directory.
        count: size of the sample; all finished cells if there are fewer.
        seed: seed of the sample.

    Returns:
        The sample.

    Raises:
        DataError: no cell is finished.
    """
    missing = set(missing_cells((cell.path for cell in cells), results))
    finished = [cell for cell in cells if cell.path not in missing]
    if not finished:
        raise DataError(f"{results.cells}: none of the study's {plural(len(cells), 'cell')} is finished. {RUN_HINT}")
    return random.Random(seed).sample(finished, min(count, len(finished)))


def verify_cells(
    cells: Sequence[Cell], project: Path, results: ResultPaths, scratch: Path, device: str = "cpu"
) -> Iterator[Verdict]:
    """Retrain finished cells, job by job, and compare each file with that in `results`.

    Args:
        cells: finished cells.
        project: project directory, with the folders data/ and models/.
        results: results directory with the cells.
        scratch: results directory for the retraining.
        device: `cpu` or `cuda`.

    Yields:
        The comparison of each cell.

    Raises:
        DataError: a cell is not finished, or as in `train_job`.
    """
    for cell in cells:
        if not is_complete(results.cells / cell.path, cell.path):
            raise DataError(f"{results.cells / cell.path}: the cell is not finished. Train it first.")
    retrained = ResultPaths(scratch)
    for (plm, data), job in groupby(sorted(cells, key=lambda c: c.path), lambda c: (c.plm_folder, c.data_folder)):
        job_cells, error = list(job), ""
        try:
            train_job(job_cells, project / plm, [project / data], retrained, device=device)
        except CellsFailedError as failure:
            error = str(failure)
        for cell in job_cells:
            yield _compare(cell, results, retrained, error)


def _compare(cell: Cell, results: ResultPaths, retrained: ResultPaths, error: str) -> Verdict:
    first, second = results.cells / cell.path, retrained.cells / cell.path
    names = sorted({path.name for folder in (first, second) if folder.is_dir() for path in folder.iterdir()})
    differing = tuple(name for name in names if not _equal(first / name, second / name))
    theirs, ours = (read_machine(root.runs / f"{cell.path}.json") for root in (results, retrained))
    machine_differences = differences(theirs, ours) if theirs and ours else None
    return Verdict(cell.path, differing, machine_differences, "" if second.is_dir() else error)


def _equal(first: Path, second: Path) -> bool:
    return first.is_file() and second.is_file() and file_digest(first) == file_digest(second)
