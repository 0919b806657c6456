"""Result files: tables of methods, differences and findings as CSV, Markdown and LaTeX, and the findings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from apet.analysis.claims import POINTS, AnalysisInputs
from apet.analysis.findings import NOT_TESTED, build_findings, compact, summary
from apet.analysis.means import (
    MATCHED,
    MEAN,
    METHOD,
    METHODS,
    RANDOM,
    has_means,
    matched,
    mean_note,
    method_differences,
    models_by_scale,
    over_tasks,
)
from apet.analysis.resampling import MeanSamples, sample_means, study_cells, study_pairs
from apet.core.atomic import write_json, write_text
from apet.core.records import write_json_record
from apet.placement import canonical_budget
from apet.report.findings_text import LEVELS, findings_markdown, is_tested, scopes_shown
from apet.report.formats import fixed, interval, p_value, significant
from apet.report.text_tables import escape, escaped, escaped_rows, latex_table, markdown_table, write_csv

NO_DATA = "no data"
NO_PAIR = "–"
NO_INTERVAL = "no interval"
BASELINE = "full"
"""Baseline of the methods, and therefore never the best of them."""
ALPHA = 0.05
SCORES_NOTE = "Test score in per cent: mean ± S.D. over replicates, their number in brackets"
APET_REPLICATES = "plans for APET, seeds for the methods"
NO_DATA_NOTE = f"`{NO_DATA}`: no replicate with a score; in a mean, none on some task."
NO_PAIR_NOTE = f"`{NO_PAIR}`: the study does not combine this PLM and task."
NO_SCATTER_NOTE = (
    f"`{NO_INTERVAL}`: the difference is the same on every test row and in every replicate, so that its uncertainty "
    "cannot be estimated."
)
METHODS_CAPTION = (
    r"Test score in per cent: mean $\pm$ S.D.\ over replicates, their number in brackets. Bold: the best of a PLM's "
    "column, except full fine-tuning."
)
DIFFERENCE_COLUMNS = [
    "model", "placement", "budget", "baseline", "baseline_budget", "task", "difference", "low", "high", "p",
    "p_adjusted", "n_test", "num_replicates",
]  # fmt: skip
DIFFERENCES_NOTE = (
    "Difference of mean test scores on the same test rows, in points, with its 95 % interval. A star: p < 0.05 after "
    "Holm's correction over all entries of tasks"
)
MEANS_TESTED = ", and separately over all means"
FINDING_COLUMNS = ("claim", "scope", "PLMs", "tasks", "estimate", "95 % interval", "adjusted p", "verdict")


def methods_table(frame: pd.DataFrame, samples: MeanSamples | None = None) -> pd.DataFrame:
    """Tabulate the named methods at their own count and APET at each matched budget.

    Args:
        frame: the tidy table.
        samples: its samples, if they have been computed.

    Returns:
        One row per PLM, method of that PLM and task (`mean over tasks` last): model, placement, budget,
        trainable_params, task, mean and sd in per cent, num_replicates: 0 for a missing cell, NA for a PLM and task
        that the study does not combine.
    """
    tasks = sorted(frame.task.unique())
    selected = matched(sample_means(frame) if samples is None else samples)
    cells, means = selected.cells, over_tasks(selected).assign(task=MEAN)
    scores = pd.concat([cells, means]).set_index([*METHOD, "task"])
    pairs, planned = _pairs(frame), _planned(frame)
    order = [(name, "@own") for name in METHODS] + [(RANDOM, f"@{name}") for name in MATCHED]
    rows = [
        (model, *method, task)
        for model in models_by_scale(frame)
        for method in order
        if (model, *method) in planned
        for task in (*tasks, MEAN)
    ]
    table = scores.reindex(pd.MultiIndex.from_tuples(rows, names=scores.index.names)).reset_index()
    table["trainable_params"] = table.groupby(METHOD).trainable_params.transform("first").astype("Int64")
    table[["mean", "sd"]] *= POINTS
    in_study = [task == MEAN or (model, task) in pairs for model, task in zip(table.model, table.task, strict=True)]
    table["num_replicates"] = table.num_replicates.fillna(0).astype("Int64").where(pd.Series(in_study))
    return table[[*METHOD, "trainable_params", "task", "mean", "sd", "num_replicates"]]


def methods_note(table: pd.DataFrame, tasks: Mapping[str, Sequence[str]]) -> str:
    """Explain the columns and entries that `methods_table` has.

    Args:
        table: the table.
        tasks: tasks of means over tasks, by family.

    Returns:
        Sentences.
    """
    kinds = f" ({APET_REPLICATES})" if table.placement.eq(RANDOM).any() else ""
    missing = [NO_DATA_NOTE] if (table["mean"].isna() & table.num_replicates.notna()).any() else []
    excluded = [NO_PAIR_NOTE] if table.num_replicates.isna().any() else []
    return " ".join([f"{SCORES_NOTE}{kinds}.", *filter(None, [mean_note(tasks)]), *missing, *excluded])


def _planned(frame: pd.DataFrame) -> set[tuple[str, str, str]]:
    """Return PLM, placement and budget in its canonical spelling of the study's cells, with data or missing."""
    cells = study_cells(frame)[METHOD].drop_duplicates().itertuples(index=False, name=None)
    return {(model, *canonical_budget(placement, budget)) for model, placement, budget in cells}


def _pairs(frame: pd.DataFrame) -> set[tuple[str, str]]:
    """Return the pairs of PLM and task that the study combines."""
    return set(study_pairs(frame)[["model", "task"]].itertuples(index=False, name=None))


def without_means(table: pd.DataFrame, tasks: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Drop the means over tasks if each is that of a single task."""
    return table if has_means(tasks) else table[table.task.ne(MEAN)]


def write_methods(frame: pd.DataFrame, folder: Path, samples: MeanSamples | None = None) -> None:
    """Write `methods_table` to `methods.md`, `methods.csv` and `methods.tex`."""
    samples = sample_means(frame) if samples is None else samples
    table = methods_table(frame, samples)
    write_csv(table, folder / "methods.csv")
    shown, note = without_means(table, samples.tasks), methods_note(table, samples.tasks)
    write_text(folder / "methods.md", methods_markdown(shown, note) + _trained_heads(frame))
    write_text(folder / "methods.tex", methods_latex(shown))


def methods_markdown(table: pd.DataFrame, note: str) -> str:
    """Format `methods_table` as Markdown with a note."""
    tasks, rows = list(table.task.unique()), []
    for (model, placement, budget), row in table.groupby(METHOD, sort=False):
        rows.append([model, method_name(placement, budget), _count(row), *map(method_entry, row.itertuples())])
    head = ["PLM", "method", "trainable parameters", *tasks]
    return markdown_table(head, "ll" + "r" * (len(head) - 2), [rows], note)


def methods_latex(table: pd.DataFrame) -> str:
    """Format `methods_table` as LaTeX: the best of each PLM's column in bold, except full fine-tuning."""
    blocks = []
    for model, block in table.groupby("model", sort=False):
        best = block[block.placement.ne(BASELINE)].groupby("task")["mean"].max().map("{:.1f}".format)
        rows: list[list[str]] = []
        for (placement, budget), row in block.groupby(["placement", "budget"], sort=False):
            is_best = [placement != BASELINE and f"{r.mean:.1f}" == best[r.task] for r in row.itertuples()]
            entries = map(_latex_entry, row.itertuples(), is_best)
            rows.append(["" if rows else escape(model), escape(method_name(placement, budget)), _count(row), *entries])
        blocks.append(rows)
    head = ["PLM", "method", "parameters", *map(escape, table.task.unique())]
    return latex_table("methods", METHODS_CAPTION, "ll" + "r" * (len(head) - 2), head, blocks)


def _trained_heads(frame: pd.DataFrame) -> str:
    """Return a sentence for each PLM with a trained head, whose size depends on the task's labels."""
    sizes = frame[frame.head_params > 0].groupby("model").head_params.agg(["min", "max"])
    return "".join(
        f"\n{model} has a trained classification head of {' to '.join(f'{size:,}' for size in sorted({*bounds}))} "
        "parameters, which are not counted as trainable parameters here.\n"
        for model, bounds in zip(sizes.index, sizes.itertuples(index=False), strict=True)
    )


def _count(group: pd.DataFrame) -> str:
    count = group.trainable_params.iloc[0]
    return NO_DATA if pd.isna(count) else f"{count:,}"


def method_name(placement: str, budget: str) -> str:
    """Return the name of a method in tables."""
    return f"APET {budget}" if placement == RANDOM else placement


def method_entry(row: Any) -> str:
    """Format a row of `methods_table` as mean ± S.D. (replicates)."""
    if pd.isna(row.num_replicates):
        return NO_PAIR
    if pd.isna(row.mean):
        return NO_DATA
    spread = "" if pd.isna(row.sd) else f" ± {row.sd:.1f}"
    return f"{row.mean:.1f}{spread} ({row.num_replicates})"


def _latex_entry(row: Any, is_best: bool) -> str:
    entry = escape(method_entry(row))
    mean = f"{row.mean:.1f}"
    return entry.replace(mean, rf"\textbf{{{mean}}}", 1) if is_best else entry


def differences_table(samples: MeanSamples) -> pd.DataFrame:
    """Tabulate the differences of methods from their baselines.

    Args:
        samples: cells and samples.

    Returns:
        One row per PLM, method and task (`mean over tasks` last), with DIFFERENCE_COLUMNS. Differences and bounds are
        in points.
    """
    table = method_differences(samples)
    table[["difference", "low", "high"]] *= POINTS
    order = {name: i for i, name in enumerate([*models_by_scale(samples.cells), *METHODS, RANDOM])}
    task_order = {task: i for i, task in enumerate([*sorted(set(table.task) - {MEAN}), MEAN])}
    keys = [table.model.map(order), table.placement.map(order), table.baseline.map(order), table.task.map(task_order)]
    rank = pd.concat(keys, axis=1).apply(tuple, axis=1) if len(table) else pd.Series(dtype=object)
    return table.loc[rank.sort_values().index, DIFFERENCE_COLUMNS].reset_index(drop=True)


def write_differences(frame: pd.DataFrame, folder: Path, samples: MeanSamples | None = None) -> None:
    """Write `differences_table` to `differences.csv`, `differences.md` and `differences.tex`."""
    samples = sample_means(frame) if samples is None else samples
    table = differences_table(samples)
    write_csv(table, folder / "differences.csv")
    table, blocks, pairs = without_means(table, samples.tasks), [], _pairs(frame)
    tasks = sorted(set(table.task), key=lambda task: (task == MEAN, task))
    tested = MEANS_TESTED if has_means(samples.tasks) else ""
    notes = [
        f"{DIFFERENCES_NOTE}{tested}.",
        mean_note(samples.tasks),
        NO_SCATTER_NOTE if table.low.isna().any() else "",
    ]
    note = " ".join(filter(None, notes))
    for model, block in table.groupby("model", sort=False):
        rows = []
        for (placement, budget, baseline), pair in block.groupby(["placement", "budget", "baseline"], sort=False):
            entries = {row.task: _difference_entry(row) for row in pair.itertuples()}
            columns = [
                entries.get(task, NO_DATA if task == MEAN or (model, task) in pairs else NO_PAIR) for task in tasks
            ]
            rows.append([model, method_name(placement, budget), baseline, *columns])
        blocks.append(rows)
    head, align = ["PLM", "method", "baseline", *tasks], "lll" + "r" * len(tasks)
    write_text(folder / "differences.md", markdown_table(head, align, blocks, note))
    thinned = [[[model if not i else "", *row] for i, (model, *row) in enumerate(block)] for block in blocks]
    latex = latex_table("differences", escape(note), align, escaped(head), map(escaped_rows, thinned))
    write_text(folder / "differences.tex", latex)


def _difference_entry(row: Any) -> str:
    """Format difference (low to high), with a star if it is significant."""
    star = "*" if row.p_adjusted < ALPHA else ""
    difference, low, high = (fixed(value, ".1f") for value in (row.difference, row.low, row.high))
    return f"{difference}{star} ({low} to {high})" if pd.notna(row.low) else f"{difference}{star} ({NO_INTERVAL})"


def write_findings(frame: pd.DataFrame, folder: Path, samples: MeanSamples | None = None) -> None:
    """Write the findings and `metrics.json`, the summary of scores and verdicts for `dvc metrics diff`.

    The files are `findings.json`, `findings.md`, `findings_sources.csv`, `tables/findings.md` and `.tex`.

    Args:
        frame: the tidy table with its attrs.
        folder: destination.
        samples: the table's samples, if they have been computed.
    """
    inputs = AnalysisInputs.from_frame(frame, samples)
    findings, sources = build_findings(inputs)
    write_json_record(folder / "findings.json", findings)
    write_text(folder / "findings.md", findings_markdown(findings, frame))
    write_text(folder / "findings_sources.csv", sources.to_csv(index=False, lineterminator="\n"))
    write_findings_table(findings, folder / "tables")
    # Last, because its presence marks the results as complete.
    verdicts = {"missing": findings["missing"], "findings": compact(findings)}
    write_json(folder / "metrics.json", summary(frame, frame.attrs["study"], inputs.samples) | verdicts)


def write_findings_table(findings: Mapping[str, Any], folder: Path) -> None:
    """Write the main numbers of findings.json to `findings.md` and `findings.tex`."""
    blocks = []
    for claim in findings["claims"].values():
        rows = [row for scope, entry in scopes_shown(claim).items() for row in _finding_rows(scope, entry)]
        name = f"{claim['statement'].rstrip('.')} ({claim['unit']})"
        blocks.append([[name if not index else "", *row] for index, row in enumerate(rows)])
    margins = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in findings["margins"].items())
    note = (
        "Each claim is that its quantity is below 0. Estimates with 95 % intervals; p-values are adjusted for the "
        f"claims that are tested together (Holm). Margins: {margins}."
    )
    write_text(folder / "findings.md", markdown_table(FINDING_COLUMNS, "llrlrrrl", blocks, note))
    align = r"p{0.28\textwidth}lrlrrrl"
    latex = latex_table("findings", escape(note), align, escaped(FINDING_COLUMNS), map(escaped_rows, blocks))
    write_text(folder / "findings.tex", latex)


def _finding_rows(scope: str, entry: Mapping[str, Any]) -> list[list[str]]:
    """Return a row for each level, or one if the claim is not tested at any."""
    if not is_tested(entry):
        return [[scope, "", "", "", "", "", NOT_TESTED]]
    plms = str(len(entry["plms"]))
    return [[scope, plms, tasks, *_finding_entries(entry[level])] for level, tasks in LEVELS.items()]


def _finding_entries(finding: Mapping[str, Any]) -> list[str]:
    """Format estimate, interval, adjusted p and verdict."""
    if finding["estimate"] is None:
        return ["", "", "", finding["verdict"]]
    numbers = [significant(finding["estimate"]), interval(finding), p_value(finding["p_adjusted"])]
    return [*numbers, finding["verdict"]]
