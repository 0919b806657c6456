"""The study's table: PLM × method against tasks, as Markdown for people, CSV for machines and LaTeX for papers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from apet.analysis.findings import _document, _evidence, compact, summary
from apet.analysis.means import MATCHED, MEAN, METHODS, RANDOM, matched, method_differences, models_by_scale, over_tasks
from apet.analysis.resampling import MeanSamples, sample_means
from apet.core.atomic import write_json, write_text
from apet.core.records import write_json_record
from apet.report.markdown import LEVELS, interval, number, p_value, page, scopes_shown

MISSING = "no data"
BASELINE = "full"
"""What the methods are compared with, and so never the best of them."""
METHODS_NOTE = (
    "Test score in per cent: mean ± S.D. over n replicates (draws of the plan for APET, reruns for the methods); "
    "the last column is the mean over tasks of both. `{missing}`: no replicate with a score, in the mean in some task."
)


def methods_table(frame: pd.DataFrame, draws: MeanSamples | None = None) -> tuple[str, pd.DataFrame]:
    """The named methods at their own count and APET at each matched budget, as Markdown and as one long table.

    The table has a row for each PLM, method and task (`mean over tasks` last): model, placement, budget, tunable, task,
    mean and sd in per cent, n replicates. An absent cell stays as a row of n 0. draws: where they are at hand already.
    """
    tasks = sorted(frame.task.unique())
    chosen = matched(sample_means(frame) if draws is None else draws)
    cells, means = chosen.cells, over_tasks(chosen, tasks).assign(task=MEAN)
    found = pd.concat([cells, means]).set_index(["model", "placement", "budget", "task"])
    rows = [(model, *method) for model in models_by_scale(frame) for method in _methods(cells)]
    wanted = [(*row, task) for row in rows for task in (*tasks, MEAN)]
    long = found.reindex(pd.MultiIndex.from_tuples(wanted, names=found.index.names)).reset_index()
    keys = ["model", "placement", "budget"]
    long["tunable"] = long.groupby(keys).tunable.transform("first").astype("Int64")
    long[["mean", "sd"]] *= 100
    long["n"] = long.units.fillna(0).astype(int)
    long = long[[*keys, "tunable", "task", "mean", "sd", "n"]]
    return _markdown(long, [*tasks, MEAN]) + _heads(frame), long


def methods_latex(long: pd.DataFrame) -> str:
    """`methods_table`'s long table: a block a PLM, in bold the best of each column of it, full fine-tuning apart."""
    tasks = list(long.task.unique())
    blocks = []
    for model, block in long.groupby("model", sort=False):
        best = block[block.placement.ne(BASELINE)].groupby("task")["mean"].max().map("{:.1f}".format)
        rows: list[list[str]] = []
        for (placement, budget), row in block.groupby(["placement", "budget"], sort=False):
            entries = [
                _latex_entry(r, r.placement != BASELINE and f"{r.mean:.1f}" == best[r.task]) for r in row.itertuples()
            ]
            rows.append(["" if rows else escape(model), escape(method_name(placement, budget)), _count(row), *entries])
        blocks.append(rows)
    head = ["PLM", "method", "tunable", *map(escape, tasks)]
    caption = (
        r"Test score in per cent: mean $\pm$ S.D.\ over replicates, their number in brackets. Bold: the best of a "
        "PLM's column, full fine-tuning apart."
    )
    return latex_table("methods", caption, "ll" + "r" * (len(head) - 2), head, blocks)


def write_table(frame: pd.DataFrame, folder: Path, draws: MeanSamples | None = None) -> None:
    """Write `methods_table` to `methods.md`, `methods.csv` and `methods.tex`."""
    markdown, long = methods_table(frame, draws)
    write_text(folder / "methods.md", markdown)
    write_text(folder / "methods.csv", long.to_csv(index=False, lineterminator="\n", float_format="%.6g"))
    write_text(folder / "methods.tex", methods_latex(long))


def _heads(frame: pd.DataFrame) -> str:
    """A sentence on each PLM that is read through a trained head, whose size depends on the task's labels."""
    found = frame[frame["head"] > 0].groupby("model")["head"].agg(["min", "max"])
    lines = [
        f"{model} is read through a trained classification head of {' to '.join(f'{n:,}' for n in sorted({*sizes}))} "
        "parameters, not counted among the tunable ones."
        for model, sizes in zip(found.index, found.itertuples(index=False), strict=True)
    ]
    return "".join(f"\n{line}\n" for line in lines)


def _methods(cells: pd.DataFrame) -> list[tuple[str, str]]:
    """The (placement, budget) pairs of the study, in the order of the methods, APET after them."""
    present = set(zip(cells.placement, cells.budget, strict=True))
    order = [(name, "@own") for name in METHODS] + [(RANDOM, f"@{name}") for name in MATCHED]
    return [pair for pair in order if pair in present]


def _markdown(long: pd.DataFrame, tasks: list[str]) -> str:
    head = ["PLM", "method", "tunable parameters", *tasks]
    lines = [head, ["---", "---", *["---:"] * (len(head) - 2)]]
    for (model, placement, budget), row in long.groupby(["model", "placement", "budget"], sort=False):
        lines.append([model, method_name(placement, budget), _count(row), *map(method_entry, row.itertuples())])
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{body}\n\n{METHODS_NOTE.format(missing=MISSING)}\n"


def _count(group: pd.DataFrame) -> str:
    tunable = group.tunable.iloc[0]
    return MISSING if pd.isna(tunable) else f"{tunable:,}"


def method_name(placement: str, budget: str) -> str:
    """How tables call a row of `methods_table`."""
    return f"APET {budget}" if placement == RANDOM else placement


def method_entry(row: Any) -> str:
    """mean ± S.D. (n) of a row of `methods_table`."""
    if pd.isna(row.mean):
        return MISSING
    spread = "" if pd.isna(row.sd) else f" ± {row.sd:.1f}"
    return f"{row.mean:.1f}{spread} ({row.n})"


def _latex_entry(row: Any, is_best: bool) -> str:
    """`method_entry` in LaTeX, the mean in bold where it is the best."""
    if pd.isna(row.mean):
        return MISSING
    mean = rf"\textbf{{{row.mean:.1f}}}" if is_best else f"{row.mean:.1f}"
    spread = "" if pd.isna(row.sd) else rf" $\pm$ {row.sd:.1f}"
    return f"{mean}{spread} ({row.n})"


LEVEL = 0.05
DIFFERENCE_COLUMNS = [
    "model", "placement", "budget", "other", "other_budget", "task", "difference", "low", "high", "p", "p_adjusted",
    "n", "units",
]  # fmt: skip
DIFFERENCES_NOTE = (
    "Difference of mean test scores on the same test rows, in points, with its 95 % interval. A star: p < 0.05 after "
    "Holm's correction, over all entries of tasks, and apart over all means."
)


def differences_table(draws: MeanSamples) -> pd.DataFrame:
    """A row for each PLM, method and task (`mean over tasks` last), columns of `DIFFERENCE_COLUMNS`.

    Differences and interval bounds are in points; `n` counts test rows, `units` the fewer independent replicates.
    """
    found = method_differences(draws)
    found[["difference", "low", "high"]] *= 100
    order = {name: i for i, name in enumerate([*models_by_scale(draws.cells), *METHODS, RANDOM])}
    place = {task: i for i, task in enumerate([*sorted(set(found.task) - {MEAN}), MEAN])}
    keys = [found.model.map(order), found.placement.map(order), found.other.map(order), found.task.map(place)]
    rank = pd.concat(keys, axis=1).apply(tuple, axis=1) if len(found) else pd.Series(dtype=object)
    return found.loc[rank.sort_values().index, DIFFERENCE_COLUMNS].reset_index(drop=True)


def write_differences(draws: MeanSamples, folder: Path) -> None:
    """Write `differences_table` to `differences.csv`, `differences.md` and `differences.tex`."""
    table = differences_table(draws)
    head, blocks = _wide(table)
    write_text(folder / "differences.csv", table.to_csv(index=False, lineterminator="\n", float_format="%.6g"))
    lines = [head, ["---"] * 3 + ["---:"] * (len(head) - 3), *(row for block in blocks for row in block)]
    markdown = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    write_text(folder / "differences.md", f"{markdown}\n{DIFFERENCES_NOTE}\n")
    escaped = [[[escape(text) for text in row] for row in _thinned(block)] for block in blocks]
    align = "lll" + "r" * (len(head) - 3)
    write_text(
        folder / "differences.tex",
        latex_table("differences", escape(DIFFERENCES_NOTE), align, [*map(escape, head)], escaped),
    )


def difference_entry(row: Any) -> str:
    """difference (low to high), with a star where it is told from 0."""
    star = "*" if row.p_adjusted < LEVEL else ""
    difference, low, high = (f"{value:.1f}".replace("-", "−") for value in (row.difference, row.low, row.high))
    return f"{difference}{star} ({low} to {high})"


def _wide(table: pd.DataFrame) -> tuple[list[str], list[list[list[str]]]]:
    """Head, and a block a PLM of rows as text: a row a pair of methods, a column a task."""
    tasks = list(dict.fromkeys([*sorted(set(table.task) - {MEAN}), MEAN]))
    blocks = []
    for model, block in table.groupby("model", sort=False):
        rows = []
        for (placement, budget, other), pair in block.groupby(["placement", "budget", "other"], sort=False):
            entries = {row.task: difference_entry(row) for row in pair.itertuples()}
            rows.append([model, method_name(placement, budget), other, *(entries.get(task, MISSING) for task in tasks)])
        blocks.append(rows)
    return ["PLM", "method", "against", *tasks], blocks


def _thinned(block: list[list[str]]) -> list[list[str]]:
    """A PLM is named in its first row."""
    return [[row[0] if not index else "", *row[1:]] for index, row in enumerate(block)]


FINDINGS = ("claim", "scope", "PLMs", "tasks", "estimate", "95 % interval", "adjusted p", "verdict")
BLANK = ""
"""In place of what an estimate that could not be had lacks."""


def findings_rows(findings: Mapping[str, Any]) -> list[list[list[str]]]:
    """The main results of findings.json as text: a block a claim, a row a scope and level, columns of `FINDINGS`."""
    blocks = []
    for claim in findings["claims"].values():
        rows = [
            [scope, str(len(found["plms"])), tasks, *_finding(found[level])]
            for scope, found in scopes_shown(claim).items()
            for level, tasks in LEVELS.items()
        ]
        name = f"{claim['statement'].rstrip('.')} ({claim['unit']})"
        blocks.append([[name if not index else "", *row] for index, row in enumerate(rows)])
    return blocks


def findings_markdown(findings: Mapping[str, Any]) -> str:
    """The main results of findings.json as a Markdown table, with what its numbers are."""
    lines: list[Sequence[str]] = [FINDINGS, ("---", "---", "---:", "---", "---:", "---:", "---:", "---")]
    lines += [[text.replace("|", r"\|") for text in row] for block in findings_rows(findings) for row in block]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + f"\n{_about(findings)}\n"


def findings_latex(findings: Mapping[str, Any]) -> str:
    """`findings_markdown` in LaTeX."""
    blocks = [[[escape(text) for text in row] for row in block] for block in findings_rows(findings)]
    align = r"p{0.28\textwidth}lrlrrrl"
    return latex_table("findings", escape(_about(findings)), align, [*map(escape, FINDINGS)], blocks)


def write_findings_table(findings: Mapping[str, Any], folder: Path) -> None:
    """Write `findings.md` and `findings.tex`."""
    write_text(folder / "findings.md", findings_markdown(findings))
    write_text(folder / "findings.tex", findings_latex(findings))


def _finding(found: Mapping[str, Any]) -> list[str]:
    """Estimate, interval, adjusted p, verdict."""
    if found["estimate"] is None:
        return ["not estimable", BLANK, BLANK, found["verdict"]]
    return [number(found["estimate"]), interval(found), p_value(found["p_adjusted"]), found["verdict"]]


def _about(findings: Mapping[str, Any]) -> str:
    margins = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in findings["margins"].items())
    return (
        "Each claim says that its quantity lies below 0. Estimates with 95 % intervals; p-values are adjusted for the "
        f"claims that are tested together (Holm). Margins: {margins}."
    )


SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''", "±": r"$\pm$", "−": "$-$", "∞": r"$\infty$", "²": "$^2$",
    "×": r"$\times$", "≤": r"$\leq$", "≥": r"$\geq$", "θ": r"$\theta$",
}  # fmt: skip
"""Characters that LaTeX reads as commands, or does not know, and what prints them."""


def escape(text: str) -> str:
    """Text that LaTeX prints as it stands."""
    return "".join(SPECIAL.get(character, character) for character in text)


def latex_table(
    name: str, caption: str, align: str, head: Sequence[str], blocks: Sequence[Sequence[Sequence[str]]]
) -> str:
    """A table in blocks of rows with a rule between them; entries, caption and head are LaTeX already."""
    body = "\\midrule\n".join("".join(f"{' & '.join(row)} \\\\\n" for row in block) for block in blocks)
    return (
        "% Needs booktabs.\n\\begin{table}\n\\centering\n\\small\n"
        f"\\caption{{{caption}}}\n\\label{{tab:{name}}}\n\\begin{{tabular}}{{{align}}}\n\\toprule\n"
        f"{' & '.join(head)} \\\\\n\\midrule\n{body}\\bottomrule\n\\end{{tabular}}\n\\end{{table}}\n"
    )


def write_findings(frame: pd.DataFrame, folder: Path, draws: MeanSamples | None = None) -> None:
    """Write `findings.json`, `findings.md`, `findings_cells.csv`, `tables/findings.md` and `.tex`, and
    `metrics.json`: the summary and the verdicts."""
    evidence = _evidence(frame, draws)
    found, behind = _document(frame, evidence)
    write_json_record(folder / "findings.json", found)
    write_text(folder / "findings.md", page(found, frame))
    write_text(folder / "findings_cells.csv", behind.to_csv(index=False, lineterminator="\n"))
    write_findings_table(found, folder / "tables")
    # By it a study is known to have its results, so it is the last.
    numbers = {"missing": found["missing"], "findings": compact(found)}
    write_json(folder / "metrics.json", summary(frame, frame.attrs["study"], evidence.draws) | numbers)
