"""A resolved study on disk: read by every job, and gathered into tables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from apet.analysis.summary import summary
from apet.analysis.table import write_table
from apet.analysis.tasks import write_tasks
from apet.analysis.tidy import read_records, tidy, write_tidy
from apet.errors import CorruptError, ParamsError, unknown
from apet.grid import Cell
from apet.provenance import write_json


def read_study(path: Path, cells: Sequence[str] | None = None) -> list[Cell]:
    """The cells of a resolved study at these paths (all by default).

    Raises ParamsError for a file that `apet check` did not write, and for a path that is not the study's.
    """
    with _resolved(path) as record:
        known = record["cells"]
        for name in (name for name in cells or () if name not in known):
            raise ParamsError(unknown("cell", name, known))
        # Only those that are asked for: a job's are few, and a study has thousands.
        return [_cell(record, known[name]) for name in (known if cells is None else cells)]


def _cell(record: dict, own: dict) -> Cell:
    digests = {"plm": record["digests"]["plm"][own["model"]], "data": record["digests"]["data"][own["task"]]}
    return Cell.of({**record["shared"], **digests, **own, "training": record["trainings"][own["training"]]})


@contextmanager
def _resolved(path: Path) -> Iterator[dict]:
    """The record that `apet check` wrote; ParamsError where it is not one."""
    try:
        yield json.loads(path.read_text())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ParamsError(f"{path}: not a resolved study ({error}): make it with `apet check`.") from None


def aggregate(study: Path, cells: Path, out: Path) -> None:
    """Write tidy.parquet, tidy.csv, the tables and metrics.json of a study from its cells' records.

    Raises DataError for a cell that is missing, CorruptError where one model's cells used different PLMs.
    """
    with _resolved(study) as record:
        name, paths = record["study"], sorted(record["cells"])
    records = list(read_records(cells, paths))
    _check_plms(records)
    frame = tidy(records)
    write_tidy(frame, out, name)
    write_table(frame, out)
    write_tasks((metrics for _, metrics in records), out)
    write_json(out / "metrics.json", summary(frame, name))


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
