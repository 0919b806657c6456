"""Verification of a study: finished cells are retrained and compared, by digests, because published cells lack θ."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from apet.core.text import plural
from apet.errors import CellsFailedError, DataError
from apet.study.cell_record import METRICS, RUN_HINT, is_complete, read_record
from apet.study.cells import Cell
from apet.study.paths import ResultPaths
from apet.study.status import differences, read_machines
from apet.study.workdir import missing_cells
from apet.training.job import train_job


@dataclass(frozen=True)
class Verdict:
    """The comparison of one retrained cell."""

    cell: str
    """Path of the cell, model/task/name."""
    differing: tuple[str, ...]
    """Names of files that differ, or that only one of the cells has."""
    score_difference: float
    """Largest difference between the test scores of a replicate (points). NaN if the retraining failed."""
    machine_differences: tuple[str, ...] | None
    """Differences between the machine types of both trainings. Equal bytes are promised only if there are none. None if
    a run record is missing."""
    error: str = ""
    """Error of the retraining."""

    @property
    def equal(self) -> bool:
        """True if all files are equal."""
        return not (self.differing or self.error)

    def within(self, tolerance: float | None) -> bool:
        """Return whether the machine types differ and the test scores differ by at most `tolerance` points."""
        return tolerance is not None and bool(self.machine_differences) and self.score_difference <= tolerance

    def line(self, tolerance: float | None = None) -> str:
        """Format a table row: verdict, cell, differences."""
        verdict = "equal" if self.equal else "close" if self.within(tolerance) else "DIFFERENT"
        text = self.error or ", ".join(self.differing)
        if self.differing:
            text += f" (test scores differ by at most {self.score_difference:.2f} points)"
        if self.machine_differences:
            text += f" [trained on another machine type: {'; '.join(self.machine_differences)}]"
        return f"{verdict:9}  {self.cell}  {text}".rstrip()


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
    """Retrain finished cells, job by job, and compare each with that in `results`.

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
    if not is_complete(retrained.cells / cell.path, cell.path):
        return Verdict(cell.path, (), math.nan, None, error)
    theirs, ours = (read_record(root.cells / cell.path, cell.path) for root in (results, retrained))
    digests = {METRICS: (theirs, ours)} | {
        name: (theirs["files"].get(name), ours["files"].get(name)) for name in {**theirs["files"], **ours["files"]}
    }
    differing = tuple(sorted(name for name, (first, second) in digests.items() if first != second))
    there, here = (read_machines(root.runs / f"{cell.path}.json") for root in (results, retrained))
    lines = dict.fromkeys(line for machine in there for line in differences(machine, here[0])) if here else {}
    machine_differences = tuple(lines) if there and here else None
    return Verdict(cell.path, differing, _score_difference(theirs, ours), machine_differences)


def _score_difference(theirs: dict[str, Any], ours: dict[str, Any]) -> float:
    """Return the largest difference between the test scores of a replicate, in points."""
    scores = ([replicate["test"]["score"] for replicate in record["replicates"]] for record in (theirs, ours))
    return 100 * max(abs(first - second) for first, second in zip(*scores, strict=True))
