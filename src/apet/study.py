"""A resolved study on disk: read by every job, and gathered into tables."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pandas as pd

from apet.analysis.costs import write_costs
from apet.analysis.predictions import Predictions
from apet.analysis.tasks import write_tasks
from apet.analysis.tidy import read_records, tidy
from apet.analysis.tidy_file import write_tidy
from apet.config import Margins
from apet.errors import CorruptError, DataError, ParamsError, unknown
from apet.grid import TRAINER_VERSION, Cell
from apet.provenance import write_text
from apet.record import METRICS
from apet.status import read_status
from apet.store import Results, read_resolved

COORDINATES = ("model", "task", "placement", "budget")


def read_study(path: Path, cells: Sequence[str] | None = None) -> list[Cell]:
    """The cells of a resolved study at these paths, in which * stands for anything (all by default).

    Raises as `read_resolved`, and ParamsError for a study of another trainer's version and for a path that is not the
    study's.
    """
    record = read_resolved(path)
    known, trainer = record["cells"], record["shared"]["trainer"]
    if trainer != TRAINER_VERSION:
        raise ParamsError(
            f"{path}: resolved by another version of apet, of trainer {trainer}; this one has trainer "
            f"{TRAINER_VERSION}, whose cells have other names. Make it again with `apet check`."
        )
    # Only those that are asked for: a job's are few, and a study has thousands.
    return [_cell(record, known[name]) for name in _asked(known, cells, path)]


def _asked(known: Mapping[str, Any], cells: Sequence[str] | None, path: Path) -> list[str]:
    """The cells that are named, each once; in a name * stands for anything."""
    if cells is None:
        return list(known)
    found = {name: [name] if name in known else _matching(known, name) for name in cells}
    for name in (name for name, those in found.items() if not those):
        raise ParamsError(unknown("cell", name, known, str(path)))
    return list(dict.fromkeys(name for those in found.values() for name in those))


def _matching(known: Mapping[str, Any], name: str) -> list[str]:
    return [path for path in known if fnmatchcase(path, name)] if "*" in name else []


def _cell(record: dict, own: dict) -> Cell:
    digests = {"plm": record["digests"]["plm"][own["model"]], "data": record["digests"]["data"][own["task"]]}
    return Cell.of({**record["shared"], **digests, **own, "training": record["trainings"][own["training"]]})


def aggregate(study: Path, results: Results, out: Path, partial: bool = False) -> None:
    """Write a study's tidy table from its cells, with tasks.csv, costs.csv, and missing.csv of the cells not there.

    Raises DataError for a cell that is not there, unless the table may be partial; CorruptError where one model's cells
    used different PLMs; and as `tidy`.
    """
    record = read_resolved(study)
    name, cells, margins = record["study"], dict(sorted(record["cells"].items())), Margins(**record["analysis"])
    coordinates = {path: {key: cells[path][key] for key in COORDINATES} for path in cells}
    missing = _missing(coordinates, results)
    if missing and not partial:
        first = missing[0]
        raise DataError(
            f"{results.cells / first['cell'] / METRICS}: no such file ({first['reason']}); {len(missing)} of "
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
    absent = [path for path in cells if not (results.cells / path / METRICS).is_file()]
    status = read_status(absent, results, time.time())
    reasons = {path: " ".join(str(record.get("error", "failed")).split()) for path, record in status.failed.items()}
    reasons |= dict.fromkeys(status.under_way, "begun, not finished")
    return [{**cells[path], "cell": path, "reason": reasons.get(path, "not trained")} for path in absent]


def _check_plms(records: list[tuple[str, dict]]) -> None:
    """Cells name the PLM by its recipe; the weights that were really loaded must agree within a model."""
    first: dict[str, tuple[str, str]] = {}
    for path, metrics in records:
        plm, named = metrics["plm"], metrics["cell"]["model"]
        if plm["name"] != named:
            raise CorruptError(f"{path}: of {named}, trained on {plm['name']}. Delete the cell and run again.")
        cell, content = first.setdefault(plm["name"], (path, plm["content"]))
        if plm["content"] != content:
            raise CorruptError(
                f"{path}: trained on other weights of {plm['name']} ({plm['content'][:10]}) "
                f"than {cell} ({content[:10]}). Delete the cells of one of them and run again."
            )
