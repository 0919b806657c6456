"""What a report says, read from a folder of results; no markup."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from apet.analysis.aggregate import MACHINE, VERSIONS
from apet.analysis.resampling import sample_means
from apet.analysis.tidy import read_tidy
from apet.core.records import read_json_record
from apet.errors import DataError
from apet.report.cell_tables import cells, lost
from apet.report.claim_summary import ClaimSummary, read_claims, tally
from apet.report.figure_images import Drawing, read_drawings
from apet.report.tables import SPENT, Table, costs_by_model, differences, methods, tasks

REMEDY = "`apet findings` makes it from the table."
KEYS = {"study", "table", "confidence", "margins", "missing", "claims"}
DESIGN = {"PLMs": "model", "Tasks": "task", "Placements": "placement", "Budgets": "budget"}
"""What a study is made of -> column of the table."""


@dataclass(frozen=True)
class Content:
    """One report.

    facts: the study in numbers, (label, text). design: its PLMs, tasks, placements and budgets by name, and its seed,
    likewise. machines: for each class of machine, (label, text) of all that is known of it. spent: total CPU hours as a
    sentence. A table is None where there is nothing to show.
    """

    study: str
    facts: list[tuple[str, str]]
    design: list[tuple[str, str]]
    claims: list[ClaimSummary]
    tally: str
    margins: dict[str, float]
    drawings: list[Drawing]
    methods: Table
    differences: Table
    tasks: Table | None
    cells: Table
    machines: list[list[tuple[str, str]]]
    costs: Table | None
    spent: str
    lost: Table


def read_content(results: Path) -> Content:
    """A report on a folder of results. DataError where tidy.parquet or findings.json is missing or not what it says."""
    frame = read_tidy(results / "tidy.parquet")
    findings = _findings(results / "findings.json", frame.attrs["study"], frame.attrs["digest"])
    costs = _costs(results / "costs.csv", frame)
    found_tasks = _csv(results / "tasks.csv", ["task"])
    draws = sample_means(frame)
    missing = frame.attrs["missing"]
    claims = read_claims(findings)
    return Content(
        study=str(findings["study"]),
        facts=_numbers(frame, len(missing)),
        design=_design(frame, missing),
        claims=claims,
        tally=tally(claims),
        margins=findings["margins"],
        drawings=read_drawings(results / "figures"),
        methods=methods(frame, draws),
        differences=differences(draws),
        tasks=tasks(found_tasks) if len(found_tasks) else None,
        cells=cells(frame, draws, costs, missing),
        machines=_machines(costs),
        costs=costs_by_model(frame, costs) if costs.cpu_seconds.notna().any() else None,
        spent=_spent(frame, costs),
        lost=lost(frame, missing),
    )


def _findings(path: Path, study: str, table: str) -> dict[str, Any]:
    found = read_json_record(path, REMEDY)
    if lacking := KEYS - set(found):
        raise DataError(f"{path}: not the findings of a study; missing: {', '.join(sorted(lacking))}.")
    if found["study"] != study:
        raise DataError(f"{path}: of study {found['study'][:12]}, and tidy.parquet beside it of {study[:12]}. {REMEDY}")
    if found["table"] != table:
        raise DataError(f"{path}: made from another table of the study than tidy.parquet beside it. {REMEDY}")
    return found


def _costs(path: Path, frame: pd.DataFrame) -> pd.DataFrame:
    """A row a cell of the frame of which costs.csv has one: it may be older than the table, or another study's."""
    found = _csv(path, ["cell", *SPENT])
    for name in SPENT:
        numbers = pd.to_numeric(found[name], errors="coerce").replace([float("inf"), -float("inf")], float("nan"))
        wrong = found[name][found[name].notna() & numbers.isna()]
        if len(wrong):
            raise DataError(
                f"{path}: {name!r} of {found.cell[wrong.index[0]]} is {str(wrong.iloc[0])!r}; allowed: a number."
            )
        found[name] = numbers
    return found[found.cell.isin(frame.cell)].drop_duplicates("cell")


def _csv(path: Path, columns: list[str]) -> pd.DataFrame:
    """A table that need not be there; DataError where it cannot be read or lacks one of the columns."""
    if not path.is_file():
        return pd.DataFrame(columns=columns)
    try:
        found = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable CSV file ({error}).") from None
    lacking = [name for name in columns if name not in found]
    if lacking:
        raise DataError(f"{path}: column {lacking[0]!r} is missing.")
    return found


def _numbers(frame: pd.DataFrame, missing: int) -> list[tuple[str, str]]:
    counts = {
        "PLMs": frame.model.nunique(),
        "tasks": frame.task.nunique(),
        "cells": frame.cell.nunique(),
        "replicates": len(frame),
        "missing cells": missing,
        "diverged replicates": int(frame.outcome.eq("diverged").sum()),
    }
    return [(label.removesuffix("s") if count == 1 else label, f"{count:,}") for label, count in counts.items()]


def _design(frame: pd.DataFrame, missing: Sequence[Mapping[str, str]]) -> list[tuple[str, str]]:
    """By the study's own names, those of which all cells are missing last."""
    names = {label: dict.fromkeys([*frame[key], *(str(gap[key]) for gap in missing)]) for label, key in DESIGN.items()}
    return [*((label, ", ".join(found)) for label, found in names.items()), ("Seed", f"{frame.seed.iloc[0]}")]


def _machines(costs: pd.DataFrame) -> list[list[tuple[str, str]]]:
    """The classes of machine that trained the cells, the one of most cells first."""
    names = [name for name in costs.columns if name in MACHINE or name.startswith(f"{VERSIONS}.")]
    known = costs[names].dropna(how="all").astype("string").fillna("—")
    if known.empty:
        return []
    sizes = known.groupby(names, sort=True).size().sort_values(ascending=False, kind="stable").reset_index(name="cells")
    labels = {name: name.removeprefix(f"{VERSIONS}.") for name in names}
    return [[("cells", f"{row['cells']:,}"), *((labels[n], row[n]) for n in names)] for row in sizes.to_dict("records")]


def _spent(frame: pd.DataFrame, costs: pd.DataFrame) -> str:
    spent = costs.cpu_seconds.dropna()
    if spent.empty:
        return "No run record of this study's cells is there, so what they took is not known."
    cells = frame.cell.nunique()
    of = f"all {cells:,} cells" if len(spent) == cells else f"{len(spent):,} of {cells:,} cells"
    return f"{spent.sum() / 3600:,.2f} CPU hours for the training of {of}, texts and PLMs not counted."
