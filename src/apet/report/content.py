"""Content of the HTML report, read from a results folder. No markup."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from apet.analysis.aggregate import MACHINE_COLUMNS, VERSIONS
from apet.analysis.means import METHOD, RANDOM
from apet.analysis.resampling import sample_means
from apet.analysis.tidy import read_tidy
from apet.core.records import read_json_record
from apet.core.text import plural
from apet.errors import DataError
from apet.report.cell_tables import cells, incomplete
from apet.report.claim_summary import ClaimSummary, read_claims, tally
from apet.report.cost_tables import costs_by_method
from apet.report.figure_images import FigureImage, has_figure, read_figure, read_figures
from apet.report.findings_text import chance_warning
from apet.report.formats import NO_VALUE
from apet.report.tables import SPENT_COLUMNS, Table, costs_by_model, differences, methods, tasks
from apet.study.paths import ResultPaths
from apet.study.workdir import is_published

FINDINGS_HINT = "Run `apet findings` to make it from the table."
FINDINGS_KEYS = {"study", "name", "table", "confidence", "margins", "missing", "claims"}
COST_FIGURE = "score_by_cost"
DESIGN = {"PLMs": "model", "Tasks": "task", "Placements": "placement", "Budgets": "budget"}
"""Factors of a study -> column of the table."""


@dataclass(frozen=True)
class Content:
    """Content of one report. A table is None if it would be empty."""

    study: str
    """The study's id."""
    name: str
    facts: list[tuple[str, str]]
    """Numbers of the study: label, text."""
    design: list[tuple[str, str]]
    """Names of its PLMs, tasks, placements and budgets, and its seed: label, text."""
    has_apet: bool
    """Whether the study contains APET, the random placement."""
    claims: list[ClaimSummary]
    tally: str
    warning: str
    """Where full fine-tuning does not exceed chance; empty if it does everywhere."""
    margins: dict[str, float]
    figures: list[FigureImage]
    methods: Table
    differences: Table
    tasks: Table | None
    cells: Table
    machines: list[list[tuple[str, str]]]
    """Properties of each machine type: label, text."""
    costs: Table | None
    spent: str
    """Total CPU hours, as a sentence."""
    measured_costs: Table | None
    """Measured costs next to scores. None if they were not measured for this study."""
    cost_figures: list[FigureImage]
    incomplete: Table


def read_content(results: Path) -> Content:
    """Read the content of a report from a results folder.

    Args:
        results: folder with tidy.parquet and findings.json; costs.csv, tasks.csv, figures and measured_costs are
            optional.

    Returns:
        The content.

    Raises:
        DataError: missing or unreadable file, or findings of another table.
        CorruptError: tidy.parquet or findings.json does not match its checksum.
    """
    frame = read_tidy(results / "tidy.parquet")
    findings = _read_findings(results / "findings.json", frame.attrs["study"], frame.attrs["digest"])
    costs = _read_costs(results / "costs.csv", frame)
    tasks_csv = _read_csv(results / "tasks.csv", ["task"])
    samples = sample_means(frame)
    missing = frame.attrs["missing"]
    claims = read_claims(findings)
    measured = ResultPaths(results).measured_costs
    has_measured = is_published(measured, frame.attrs["study"])
    return Content(
        study=str(findings["study"]),
        name=str(findings["name"]),
        facts=_facts(frame, len(missing)),
        design=_design(frame, missing),
        has_apet=frame.placement.eq(RANDOM).any(),
        claims=claims,
        tally=tally(claims),
        warning=chance_warning(frame, findings["margins"]["chance_margin"]),
        margins=findings["margins"],
        figures=read_figures(results / "figures"),
        methods=methods(frame, samples),
        differences=differences(samples),
        tasks=tasks(tasks_csv) if len(tasks_csv) else None,
        cells=cells(frame, samples, costs, missing),
        machines=_machines(costs),
        costs=costs_by_model(frame, costs) if costs.cpu_seconds.notna().any() else None,
        spent=_spent(frame, costs),
        measured_costs=costs_by_method(_read_csv(measured / "costs.csv", METHOD)) if has_measured else None,
        cost_figures=[read_figure(measured, COST_FIGURE)] if has_measured and has_figure(measured, COST_FIGURE) else [],
        incomplete=incomplete(frame, missing),
    )


def _read_findings(path: Path, study: str, table: str) -> dict[str, Any]:
    findings = read_json_record(path, FINDINGS_HINT)
    if missing := FINDINGS_KEYS - set(findings):
        raise DataError(f"{path}: missing keys: {', '.join(sorted(missing))}. {FINDINGS_HINT}")
    if findings["study"] != study:
        raise DataError(
            f"{path}: expected study {study[:12]} of tidy.parquet, got {findings['study'][:12]}. {FINDINGS_HINT}"
        )
    if findings["table"] != table:
        raise DataError(f"{path}: made from another table than tidy.parquet beside it. {FINDINGS_HINT}")
    return findings


def _read_costs(path: Path, frame: pd.DataFrame) -> pd.DataFrame:
    """Read costs.csv, restricted to cells of the frame: it may be older than the table or of another study."""
    costs = _read_csv(path, ["cell_path", *SPENT_COLUMNS])
    for name in SPENT_COLUMNS:
        numbers = pd.to_numeric(costs[name], errors="coerce").replace([float("inf"), -float("inf")], float("nan"))
        wrong = costs[name][costs[name].notna() & numbers.isna()]
        if len(wrong):
            cell = costs.cell_path[wrong.index[0]]
            raise DataError(f"{path}: {name} of {cell}: expected a number, got {str(wrong.iloc[0])!r}.")
        costs[name] = numbers
    return costs[costs.cell_path.isin(frame.cell_path)].drop_duplicates("cell_path")


def _read_csv(path: Path, columns: list[str]) -> pd.DataFrame:
    """Read an optional table; DataError if it is unreadable or lacks one of the columns."""
    if not path.is_file():
        return pd.DataFrame(columns=columns)
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable CSV file ({error}). Run `apet aggregate` to write it again.") from None
    for name in columns:
        if name not in table:
            raise DataError(f"{path}: missing column {name!r}. Run `apet aggregate` to write it again.")
    return table


def _facts(frame: pd.DataFrame, missing: int) -> list[tuple[str, str]]:
    counts = {
        "PLMs": frame.model.nunique(),
        "tasks": frame.task.nunique(),
        "cells": frame.cell_path.nunique(),
        "replicates": len(frame),
        "missing cells": missing,
        "diverged replicates": int(frame.outcome.eq("diverged").sum()),
    }
    return [
        (label.removesuffix("s") if count == 1 else label, f"{count:,}") for label, count in counts.items() if count
    ]


def _design(frame: pd.DataFrame, missing: Sequence[Mapping[str, str]]) -> list[tuple[str, str]]:
    """List the names of each factor; names of which all cells are missing come last."""
    names = {
        label: dict.fromkeys([*frame[key], *(str(cell[key]) for cell in missing)]) for label, key in DESIGN.items()
    }
    return [*((label, ", ".join(values)) for label, values in names.items()), ("Seed", f"{frame.seed.iloc[0]}")]


def _machines(costs: pd.DataFrame) -> list[list[tuple[str, str]]]:
    """List the machine types that trained the cells, the one with most cells first."""
    names = [name for name in costs.columns if name in MACHINE_COLUMNS or name.startswith(f"{VERSIONS}.")]
    known = costs[names].dropna(how="all").astype("string").fillna(NO_VALUE)
    if known.empty:
        return []
    sizes = known.groupby(names, sort=True).size().sort_values(ascending=False, kind="stable").reset_index(name="cells")
    labels = {name: name.removeprefix(f"{VERSIONS}.") for name in names}
    return [[("cells", f"{row['cells']:,}"), *((labels[n], row[n]) for n in names)] for row in sizes.to_dict("records")]


def _spent(frame: pd.DataFrame, costs: pd.DataFrame) -> str:
    spent = costs.cpu_seconds.dropna()
    if spent.empty:
        return "The cost is unknown: there is no run record of this study's cells."
    count = frame.cell_path.nunique()
    cells = plural(count, "cell")
    trained = (
        f"all {cells}" if len(spent) == count > 1 else cells if len(spent) == count else f"{len(spent):,} of {cells}"
    )
    return f"{spent.sum() / 3600:,.2f} CPU hours for training {trained}, without preparing texts and PLMs."
