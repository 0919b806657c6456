"""A resolved study on disk: read by every job, and gathered into tables."""

from __future__ import annotations

import json
from pathlib import Path

from apet.analysis.statistics import summary
from apet.analysis.table import write_table
from apet.analysis.tasks import write_tasks
from apet.analysis.tidy import read_records, tidy, write_tidy
from apet.errors import CorruptError, ParamsError
from apet.grid import Cell
from apet.provenance import write_json


def read_record(path: Path) -> dict:
    """The record that `apet check` wrote. Raises ParamsError where it is not one."""
    try:
        record = json.loads(path.read_text())
        return {**record, "cells": {p: Cell.of(c) for p, c in record["cells"].items()}}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ParamsError(f"{path}: not a resolved study ({error}): make it with `apet check`.") from None


def read_study(path: Path) -> list[Cell]:
    """The cells of a resolved study."""
    return list(read_record(path)["cells"].values())


def aggregate(study: Path, cells: Path, out: Path) -> None:
    """Write tidy.parquet, tidy.csv, the tables and metrics.json of a study from its cells' records.

    Raises DataError for a cell that is missing, CorruptError where one model's cells used different PLMs.
    """
    record = read_record(study)
    records = list(read_records(cells, sorted(record["cells"])))
    _check_plms(records)
    frame = tidy(records)
    write_tidy(frame, out, record["study"])
    write_table(frame, out)
    write_tasks((metrics for _, metrics in records), out)
    write_json(out / "metrics.json", summary(frame, record["study"]))


def _check_plms(records: list[tuple[str, dict]]) -> None:
    """Cells name the PLM by its recipe; the weights that were really loaded must agree within a model."""
    first: dict[str, tuple[str, str]] = {}
    for path, metrics in records:
        plm = metrics["plm"]
        cell, content = first.setdefault(plm["name"], (path, plm["content"]))
        if plm["content"] != content:
            raise CorruptError(
                f"{path}: trained on other weights of {plm['name']} ({plm['content'][:10]}) "
                f"than {cell} ({content[:10]}). Delete the cells of one of them and run again."
            )
