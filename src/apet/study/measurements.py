"""Measurements of costs: the cells of a study that are measured together, and their record. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from apet.core.hashing import digest
from apet.core.records import read_json_record
from apet.errors import DataError
from apet.models.registry import slug
from apet.study.cells import Cell
from apet.study.paths import ResultPaths

FORMAT = 1
"""Format of a record. Part of the names of measurements, so that another format is another measurement."""

RECORD = "record.json"


@dataclass(frozen=True)
class Measurement:
    """Cells of one PLM and one task whose costs are measured in one process."""

    cells: tuple[Cell, ...]
    """The cells, at least one."""

    @property
    def model(self) -> str:
        """The PLM."""
        return self.cells[0].model

    @property
    def task(self) -> str:
        """The task whose texts are read."""
        return self.cells[0].task

    @cached_property
    def name(self) -> str:
        """Name of the folder: the PLM and a short hash of the cells."""
        return f"{slug(self.model)}-{digest([FORMAT, *(cell.path for cell in self.cells)])[:10]}"

    def record_file(self, results: ResultPaths) -> Path:
        """Return the file of the record, in a folder of its own, which can be archived."""
        return results.measurements / self.name / RECORD


def measurements(cells: Iterable[Cell]) -> list[Measurement]:
    """Select the cells whose costs are measured: methods at their own or at another method's count.

    Costs do not depend on scores, and on the task only by the lengths of its texts and answers. So one task is enough:
    the first of each PLM.

    Args:
        cells: The cells of a study, in its order.

    Returns:
        A measurement per PLM that has such cells.
    """
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        group = groups.setdefault(cell.model, [])
        has_own_count = cell.budget.startswith("@") or cell.placement == "none"
        if has_own_count and (not group or group[0].task == cell.task):
            group.append(cell)
    return [Measurement(tuple(group)) for group in groups.values() if group]


def read_measurements(cells: Iterable[Cell], results: ResultPaths) -> list[dict[str, Any]]:
    """Read the records of a study's measurements.

    Args:
        cells: The cells of the study, in its order.
        results: The results directory.

    Returns:
        The records that exist.

    Raises:
        DataError: There is none.
        CorruptError: A record does not match its checksum.
    """
    files = [measurement.record_file(results) for measurement in measurements(cells)]
    records = [read_json_record(file, f"Delete {file.parent} to measure again.") for file in files if file.is_file()]
    if not records:
        raise DataError(f"{results.measurements}: no measurement of this study. Run `apet measure` for each PLM.")
    return records
