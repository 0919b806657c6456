"""Retraining finished cells in a scratch place and comparing bytes: does this study still give what it gave?"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from apet.core.hashing import file_digest
from apet.errors import CellsFailedError, DataError
from apet.study.cell_record import is_complete
from apet.study.grid import Cell
from apet.study.paths import ResultPaths
from apet.study.status import differences, read_machine
from apet.training.job import train_cells


@dataclass(frozen=True)
class Verdict:
    """What became of one cell. differing: names of its files that came out otherwise, or are on one side only.

    elsewhere: in which points the machine that trained it is of another class than this one, where equal bytes are
    not promised; empty where it is the same, None where a run record does not say.
    """

    cell: str
    differing: tuple[str, ...]
    elsewhere: tuple[str, ...] | None
    error: str = ""

    @property
    def equal(self) -> bool:
        return not (self.differing or self.error)

    def line(self) -> str:
        """One row of a table: the verdict, the cell, and what differs."""
        said = self.error or ", ".join(self.differing)
        if self.elsewhere:
            said += f" [trained on another class of machine: {'; '.join(self.elsewhere)}]"
        return f"{'equal    ' if self.equal else 'DIFFERENT'}  {self.cell}  {said}".rstrip()


def sample_of(cells: Sequence[Cell], count: int, seed: int) -> list[Cell]:
    """So many of the cells, drawn without replacement; all where there are no more."""
    return random.Random(seed).sample(list(cells), min(count, len(cells)))


def verify_cells(
    cells: Sequence[Cell], root: Path, results: ResultPaths, scratch: Path, device: str = "cpu"
) -> Iterator[Verdict]:
    """Retrain cells below `scratch`, and compare each file with that of `results`, block by block.

    root: of the working copy that holds data/ and models/. Raises DataError for a cell that has not been trained,
    and as `train_cells` for inputs with which none can be.
    """
    for cell in cells:
        if not is_complete(results.cells / cell.path, cell.path):
            raise DataError(f"{results.cells / cell.path}: not trained yet, so there is nothing to compare with.")
    again = ResultPaths(scratch)
    for (plm, data), block in groupby(sorted(cells, key=lambda c: c.path), lambda c: (c.plm_folder, c.data_folder)):
        same, error = list(block), ""
        try:
            train_cells(same, root / plm, root / data, again, device=device)
        except CellsFailedError as found:
            error = str(found)
        for cell in same:
            yield _compare(cell, results, again, error)


def _compare(cell: Cell, results: ResultPaths, again: ResultPaths, error: str) -> Verdict:
    first, second = results.cells / cell.path, again.cells / cell.path
    names = sorted({path.name for folder in (first, second) if folder.is_dir() for path in folder.iterdir()})
    differing = tuple(name for name in names if not _same(first / name, second / name))
    there, here = (read_machine(root.runs / f"{cell.path}.json") for root in (results, again))
    elsewhere = differences(there, here) if there and here else None
    return Verdict(cell.path, differing, elsewhere, "" if second.is_dir() else error)


def _same(first: Path, second: Path) -> bool:
    return first.is_file() and second.is_file() and file_digest(first) == file_digest(second)
