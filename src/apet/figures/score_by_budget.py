"""Score against the number of tunable parameters: how many reach full fine-tuning, and how many beat a guess?"""

from __future__ import annotations

from itertools import product

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from apet.analysis.means import METHODS, RANDOM, cell_scores, method_scores, models_by_scale
from apet.figures import style

KEYS = ["model", "task", "placement", "budget"]
COUNTS = ["draws", "units", "n"]


@style.styled
def draw(tidy: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """A panel a task and PLM: APET's sweep as a line in its interval, methods as points at their own count."""
    data = numbers(tidy)
    keys = list(product(data.task.unique(), models_by_scale(tidy)))
    columns = tidy.model.nunique() if tidy.model.nunique() <= 4 else 3
    fig, axes = style.panels(len(keys), columns, 44, _note(tidy))
    for (task, model), ax in zip(keys, axes, strict=True):
        ax.set_title(f"{task}, {model}")
        style.count_axis(ax, data.tunable)
        _panel(ax, data[data.task.eq(task) & data.model.eq(model)])
    style.name_axes(axes, columns, "tunable parameters", [style.metric_label(tidy)])
    style.legend(fig, axes, 5)
    return fig, data


def numbers(tidy: pd.DataFrame) -> pd.DataFrame:
    """A row for each task, PLM, and budget of APET or method: mean, low, high, chance, majority in per cent, counts.

    Every (placement, budget) of the study stands in every task and PLM; without data, mean is NaN and units 0.
    """
    found = pd.concat([cell_scores(tidy[tidy.placement.eq(RANDOM)]), method_scores(tidy)])
    models = models_by_scale(tidy)
    grid = pd.DataFrame({"task": sorted(tidy.task.unique())}).merge(pd.DataFrame({"model": models}), "cross")
    grid = grid.merge(found[["placement", "budget"]].drop_duplicates(), "cross")
    data = grid.merge(found[[*KEYS, "tunable", "mean", "low", "high", *COUNTS]], "left")
    data[COUNTS] = data[COUNTS].fillna(0).astype(int)
    data = data.join(tidy.groupby("task")[["chance", "majority"]].first(), on="task")
    data[["mean", "low", "high", "chance", "majority"]] *= 100
    order = {name: index for index, name in enumerate([*models, RANDOM, *METHODS])}
    return data.sort_values(
        ["task", "model", "placement", "tunable", "budget"],
        ignore_index=True,
        key=lambda column: column.map(order) if column.name in ("model", "placement") else column,
    )


def _panel(ax: Axes, data: pd.DataFrame) -> None:
    sweep = data[data.placement.eq(RANDOM) & data["mean"].notna()]
    look = style.look(RANDOM)
    ax.fill_between(sweep.tunable, sweep.low, sweep.high, color=look["color"], alpha=0.22, linewidth=0)
    ax.plot(sweep.tunable, sweep["mean"], **look | {"markersize": 3})
    for row in data[data.placement.ne(RANDOM) & data["mean"].notna()].itertuples():
        _method(ax, row)
    for name, line, label in (("chance", ":", "uniform guess"), ("majority", "--", "majority share")):
        level = data[name].iloc[0]
        if pd.notna(level):
            ax.axhline(level, color=style.GREY, linestyle=line, linewidth=0.9, zorder=1, label=label)
    lost = data[data["mean"].isna()]
    if len(lost) == len(data):
        style.empty(ax)
    else:
        style.note_missing(
            ax,
            [f"APET {r.budget}" if r.placement == RANDOM else style.LOOKS[r.placement][2] for r in lost.itertuples()],
        )


def _method(ax: Axes, row: tuple) -> None:
    """A method at its own count; no parameters at all have no place on a log axis and stand on its left edge."""
    look = style.look(row.placement)
    x = row.tunable if row.tunable > 0 else ax.get_xlim()[0]
    style.errorbars(
        ax,
        [x],
        [row.mean],
        [row.low],
        [row.high],
        linestyle="none",
        zorder=4,
        clip_on=False,
        **look | {"markersize": 4.2},
    )
    if row.placement == "full":
        ax.axhline(row.mean, color=look["color"], linewidth=0.8, zorder=1)


def _note(tidy: pd.DataFrame) -> str:
    sweep = cell_scores(tidy[tidy.placement.eq(RANDOM)])
    runs = method_scores(tidy).units
    return (
        f"APET: {style.span(sweep.units)} draws a budget; methods at their own count: {style.span(runs)} replicates, "
        "the untuned PLM on the left edge; line: full fine-tuning. Band and whiskers: 95 % intervals over replicates "
        "and test rows (test rows alone where there is one replicate). Uniform guess: 1/labels, in generation the "
        f"references shuffled. {style.rows_note(tidy)}"
    )
