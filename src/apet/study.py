"""A resolved study on disk: read by every job, and gathered into tables."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from apet.analysis.costs import write_costs
from apet.analysis.predictions import Predictions
from apet.analysis.tasks import write_tasks
from apet.analysis.tidy import read_records, tidy, write_tidy
from apet.config import Margins
from apet.errors import CorruptError, DataError, ParamsError, unknown
from apet.grid import Cell
from apet.provenance import write_text
from apet.status import read_status
from apet.store import Results

COORDINATES = ("model", "task", "placement", "budget")


def read_study(path: Path, cells: Sequence[str] | None = None) -> list[Cell]:
    """The cells of a resolved study at these paths (all by default).

    Raises ParamsError for a file that `apet check` did not write, and for a path that is not the study's.
    """
    with _resolved(path) as record:
        known = record["cells"]
        for name in (name for name in cells or () if name not in known):
            raise ParamsError(unknown("cell", name, known, str(path)))
        # Only those that are asked for: a job's are few, and a study has thousands.
        return [_cell(record, known[name]) for name in (known if cells is None else cells)]


def _cell(record: dict, own: dict) -> Cell:
    digests = {"plm": record["digests"]["plm"][own["model"]], "data": record["digests"]["data"][own["task"]]}
    return Cell.of({**record["shared"], **digests, **own, "training": record["trainings"][own["training"]]})


@contextmanager
def _resolved(path: Path) -> Iterator[dict]:
    """The record that `apet check` wrote; ParamsError where it is not one."""
    try:
        record = json.loads(path.read_text())
        if not isinstance(record["cells"], dict):
            raise TypeError("its cells are no mapping")
        yield record
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ParamsError(f"{path}: not a resolved study ({error}): make it with `apet check`.") from None


def aggregate(study: Path, results: Results, out: Path, partial: bool = False) -> None:
    """Write a study's tidy table from its cells, with tasks.csv, costs.csv, and missing.csv of the cells not there.

    Raises DataError for a cell that is not there, unless the table may be partial; CorruptError where one model's cells
    used different PLMs; and as `tidy`.
    """
    with _resolved(study) as record:
        name, cells, margins = record["study"], dict(sorted(record["cells"].items())), Margins(**record["analysis"])
        coordinates = {path: {key: cells[path][key] for key in COORDINATES} for path in cells}
    missing = _missing(coordinates, results)
    if missing and not partial:
        first = missing[0]
        raise DataError(
            f"{results.cells / first['cell']}/metrics.json: no such file ({first['reason']}); {len(missing)} of "
            f"{len(cells)} cells are missing. `apet status` tells how far they are; `apet aggregate --partial` goes on "
            "without them."
        )
    gone = {row["cell"] for row in missing}
    records = list(read_records(results.cells, (path for path in cells if path not in gone)))
    frame = tidy(records, Predictions(results.cells))
    _check_plms(records)
    write_tidy(frame, out, name, margins, missing)
    write_tasks((metrics for _, metrics in records), out)
    write_costs(coordinates, results.runs, out)
    listed = pd.DataFrame(missing, columns=[*COORDINATES, "cell", "reason"])
    write_text(out / "missing.csv", listed.to_csv(index=False, lineterminator="\n"))


def _missing(cells: Mapping[str, Mapping[str, str]], results: Results) -> list[dict[str, str]]:
    """The cells that are not there, with their coordinates and the reason."""
    absent = [path for path in cells if not (results.cells / path / "metrics.json").is_file()]
    status = read_status(absent, results, time.time())
    reasons = {path: " ".join(str(record.get("error", "failed")).split()) for path, record in status.failed.items()}
    reasons |= dict.fromkeys(status.under_way, "begun, not finished")
    return [{**cells[path], "cell": path, "reason": reasons.get(path, "not trained")} for path in absent]


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
