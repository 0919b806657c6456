"""Layout, axes and marks that all figures share."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter

from apet.analysis.means import MEAN
from apet.figures.style import GREY, short, wrap_name

MM = 1 / 25.4
WIDTH, PAGE = 180.0, 245.0
"""mm: width of all figures, and their largest height if panels stay legible."""
NOTE_CHARACTERS = 150
MISSING = "no data"
ABSENT = "not in\nthis study"
RATIO_STEPS = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 4, 5, 6, 7, 8, 9),
               np.arange(1, 10, 0.1), np.arange(1, 10, 0.05))  # fmt: skip
"""Ticks of a ratio within a power of ten, from few to many."""
BOX = {"facecolor": "white", "edgecolor": GREY, "linewidth": 0.4, "pad": 1.5}
Share = bool | Literal["none", "all", "row", "col"]


def panels(
    rows: int,
    columns: int,
    height: float,
    note: str,
    share: tuple[Share, Share] = (False, "all"),
    least: float = 18.0,
    top: float = 12.0,
    heights: Sequence[float] | None = None,
) -> tuple[Figure, np.ndarray]:
    """Make a figure of print width with a grid of panels.

    Args:
        rows: number of rows.
        columns: number of columns.
        height: mm of a panel, or less if the page is full.
        note: text below the panels, with the sample sizes.
        share: sharing of x and of y axes, as in matplotlib.
        least: smallest height of a panel, mm.
        top: mm above the panels for `legend`.
        heights: heights of the rows relative to each other.

    Returns:
        The figure and its axes (rows, columns).
    """
    lines = textwrap.wrap(note, NOTE_CHARACTERS)
    below = 2.9 * len(lines) + 3
    height = max(min(height, (PAGE - below - top) / rows), least)
    total = rows * height + below + top
    fig = Figure(figsize=(WIDTH * MM, total * MM), layout="constrained")
    axes = fig.subplots(rows, columns, sharex=share[0], sharey=share[1], squeeze=False, height_ratios=heights)
    engine: Any = fig.get_layout_engine()
    engine.set(rect=(0, below / total, 1, 1 - below / total), w_pad=0.02, h_pad=0.03)
    fig.text(0.006, 1 / total, "\n".join(lines), fontsize=6, color="#444444", va="bottom", linespacing=1.25)
    return fig, axes


def flow(axes: np.ndarray, count: int) -> list[Axes]:
    """Return the first `count` axes in reading order and hide the others."""
    for spare in axes.flat[count:]:
        spare.set_axis_off()
    return list(axes.flat[:count])


def name_axes(axes: Sequence[Axes], columns: int, x: str, y: Sequence[str]) -> None:
    """Label x below the lowest panel of each column, and y beside each row, cycling through `y`."""
    for ax in axes[-columns:]:
        ax.set_xlabel(x)
    for row, ax in enumerate(axes[::columns]):
        ax.set_ylabel(y[row % len(y)])


def name_matrix(axes: np.ndarray, columns: Sequence[str], rows: Sequence[str], x: str, y: str) -> None:
    """Name columns above and rows on the right; label x and y once if panels are small."""
    for ax, name in zip(axes[0], columns, strict=True):
        ax.set_title(name, fontsize=6.5 if len(columns) > 4 else 7.5)
    for ax, name in zip(axes[:, -1], rows, strict=True):
        size = 6 if len(rows) > 4 else 7.5
        text = wrap_name(name, 12 if len(rows) > 4 else 40)
        ax.text(1.03, 0.5, text, transform=ax.transAxes, rotation=270, va="center", ha="left", fontsize=size)
    below = axes[-1] if len(columns) <= 4 else [axes[-1, len(columns) // 2]]
    for ax in below:
        ax.set_xlabel(x)
    beside = axes[:, 0] if len(rows) <= 4 else [axes[len(rows) // 2, 0]]
    for ax in beside:
        ax.set_ylabel(y)


def legend(fig: Figure, axes: Iterable[Axes], columns: int = 8) -> None:
    """Draw one legend above the panels, an entry per label in the order of first use, in the columns that fit."""
    entries: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    for number in range(columns, 0, -1):
        made = fig.legend(
            entries.values(),
            entries.keys(),
            loc="outside upper center",
            ncols=number,
            columnspacing=1.4,
            handletextpad=0.5,
        )
        if number == 1 or made.get_window_extent().width <= fig.bbox.width:
            return
        made.remove()


def scale_axis(ax: Axes, sizes: Sequence[int]) -> None:
    """Set a log axis of PLM sizes: a tick at each, labelled unless it would overlap the previous label."""
    sizes = sorted(set(sizes))
    low, high = np.log10(sizes[0]), np.log10(sizes[-1])
    pad = max(0.12 * (high - low), 0.15 if high > low else 0.5)
    labelled: list[int] = []
    for size in sizes:
        if not labelled or np.log10(size / labelled[-1]) > 0.2 * (high - low + 2 * pad):
            labelled.append(size)
    _log_axis(ax, (low - pad, high + pad), labelled, sizes)


def count_axis(ax: Axes, counts: Iterable[float], axis: str = "x", labels: int = 5) -> None:
    """Set a log axis of numbers of parameters, with a tick per power of ten.

    Args:
        ax: the panel.
        counts: numbers of parameters to show. 0 and inf are left out.
        axis: `x` or `y`.
        labels: most ticks that are labelled.
    """
    positive = [count for count in counts if 0 < count < np.inf] or [1]
    low, high = np.log10(min(positive)), np.log10(max(positive))
    decades = 10.0 ** np.arange(np.floor(low), np.ceil(high) + 1)
    _log_axis(ax, (low - 0.4, high + 0.4), decades[:: -(-len(decades) // labels)], decades, axis)


def ratio_axis(ax: Axes, ratios: Iterable[float]) -> None:
    """Set a log axis of ratios that includes 1, with about three labelled ticks. 0 and NaN are left out."""
    positive = [ratio for ratio in ratios if 0 < ratio < np.inf] + [1.0]
    low, high = np.log10(min(positive)), np.log10(max(positive))
    pad = max(0.08 * (high - low), 0.02)
    low, high = low - pad, high + pad
    powers = 10.0 ** np.arange(np.floor(low), np.ceil(high) + 1)
    ticks: np.ndarray = powers
    for steps in RATIO_STEPS:
        ticks = np.outer(powers, steps).ravel()
        ticks = ticks[(np.log10(ticks) >= low) & (np.log10(ticks) <= high)]
        if len(ticks) > 2:
            break
    _log_axis(ax, (low, high), ticks[:: -(-len(ticks) // 4)], ticks)


def _log_axis(ax: Axes, limits: tuple[float, float], labelled: Iterable, ticks: Iterable, axis: str = "x") -> None:
    ax.set(**{f"{axis}scale": "log", f"{axis}lim": tuple(10.0 ** np.array(limits))})
    ruler = getattr(ax, f"{axis}axis")
    ruler.set_major_locator(FixedLocator(list(labelled)))
    ruler.set_major_formatter(lambda value, _: short(value))
    ruler.set_minor_locator(FixedLocator(list(ticks)))
    ruler.set_minor_formatter(NullFormatter())


def side_by_side(count: int, step: float) -> np.ndarray:
    """Return factors (count,) that put points side by side on a log axis, `step` powers of ten apart."""
    return 10 ** (step * (np.arange(count) - (count - 1) / 2))


def errorbars(ax: Axes, x: Any, y: Any, low: Any, high: Any, across: bool = False, **keywords: Any) -> None:
    """Draw points with asymmetric whiskers along y, or along x if `across`; NaN leaves a gap."""
    centre = np.asarray(x if across else y, float)
    reach = np.abs(np.vstack([centre - np.asarray(low, float), np.asarray(high, float) - centre]))
    ax.errorbar(x, y, **{"xerr" if across else "yerr": reach}, **{"elinewidth": 0.7, "capsize": 0, **keywords})


def mark_missing(ax: Axes, x: Sequence[float], colour: str) -> None:
    """Draw a hatched box on the x axis for each cell without data, in its method's colour."""
    if len(x):
        ax.scatter(
            x,
            [0] * len(x),
            transform=ax.get_xaxis_transform(),
            marker="s",
            s=14,
            facecolor="white",
            edgecolor=colour,
            hatch="/" * 9,
            linewidth=0.6,
            clip_on=False,
            zorder=5,
            label=MISSING,
        )


def note_missing(ax: Axes, names: Sequence[str], width: int = 44) -> None:
    """List cells without data that have no position on the x axis, or count them in a small panel."""
    if names:
        text = ", ".join(names)
        text = text if len(text) <= 2 * width else f"{len(names)} cells"
        lines = textwrap.wrap(f"{MISSING}: {text}", width)
        # A legend, because matplotlib puts it where it covers the fewest points.
        note = ax.legend(handles=[], title="\n".join(lines), loc="best", title_fontsize=6, borderpad=0.2)
        note.get_frame().set(facecolor="white", edgecolor=GREY, linewidth=0.4)
        note.set_frame_on(True)


def empty(ax: Axes, text: str = MISSING) -> None:
    """Hatch a panel without data and write `text` in it."""
    ax.patch.set(hatch="////", edgecolor="#C8C8C8")
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", bbox=BOX)


def without_data(reason: str) -> Figure:
    """Make the figure of a study that contains nothing to draw in it. The report leaves it out."""
    fig, grid = panels(1, 1, 20, "", top=0)
    grid[0, 0].set_axis_off()
    grid[0, 0].text(0.5, 0.5, reason, ha="center", va="center", transform=grid[0, 0].transAxes)
    return fig


def absent(ax: Axes) -> None:
    """Mark a PLM and task that are no pair of this study; the ticks of its row and column stay."""
    ax.grid(False)
    ax.text(0.5, 0.5, ABSENT, transform=ax.transAxes, ha="center", va="center", fontsize=6, color=GREY)


def rows_axis(axes: Sequence[Axes], names: Sequence[str], positions: Sequence[float], above: float = 0.6) -> None:
    """Set a shared y axis of names from the top down, `above` rows of space over the first, and a grid on x."""
    ruler = axes[0].yaxis
    ruler.set_major_locator(FixedLocator(list(positions)))
    ruler.set_major_formatter(lambda _, index: names[int(index)] if index is not None else "")
    axes[0].set_ylim(max(positions) + 0.6, min(positions) - above)
    for ax in axes:
        ax.grid(False, axis="y")
        ax.grid(True, axis="x")
        ax.tick_params(axis="y", length=0)


def with_mean(cells: pd.DataFrame, tasks: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Add rows of means over tasks.

    Args:
        cells: cells or pairs of the study, with columns PLM and task.
        tasks: tasks of means over tasks, by family.

    Returns:
        The rows, and one more for every combination of the other columns that has all these tasks, by family, task,
        size and otherwise in the order of `cells`.
    """
    others = [name for name in cells if name != "task"]
    means = cells.groupby(others, as_index=False, sort=False).task.agg(set)
    complete = [set(tasks[family]) <= own for family, own in zip(means.family, means.task, strict=True)]
    rows = pd.concat([cells, means[np.array(complete, bool)].assign(task=MEAN)]).assign(last=lambda f: f.task.eq(MEAN))
    order = ["family", "last", "task", "non_embedding_params", "model"]
    return rows.sort_values(order, ignore_index=True, kind="stable").drop(columns="last")


def column_blocks(pairs: pd.DataFrame, most: int) -> list[list[str]]:
    """Split PLMs, by family and size, into blocks of at most `most` columns; a family that fits is in one block."""
    blocks: list[list[str]] = [[]]
    for _, group in pairs.groupby("family"):
        models = list(group.drop_duplicates("model").sort_values(["non_embedding_params", "model"]).model)
        while models:
            room = most - len(blocks[-1])
            if blocks[-1] and (len(models) > room):
                blocks.append([])
                room = most
            blocks[-1] += models[:room]
            models = models[room:]
    return blocks
