"""How every figure looks, says n, shows what is missing, and is written."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import style as mplstyle
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter

from apet.provenance import write_bytes, write_text

MM = 1 / 25.4
WIDTH = 180 * MM
DPI = 200
NOTE_CHARACTERS = 150
MISSING = "no data"

# Okabe and Ito's palette, safe for the colour-blind; each placement has a marker too, for prints without colour.
LOOKS: dict[str, tuple[str, str, str]] = {
    "full": ("#000000", "s", "full fine-tuning"),
    "lora": ("#0072B2", "o", "LoRA"),
    "adapter": ("#009E73", "^", "adapter"),
    "prompt": ("#E69F00", "D", "prompt"),
    "bitfit": ("#CC79A7", "v", "BitFit"),
    "none": ("#7F7F7F", "X", "untuned"),
    "uniform": ("#D55E00", "P", "APET (random positions)"),
}
GREY = "#7F7F7F"
BOX = {"facecolor": "white", "edgecolor": GREY, "linewidth": 0.4, "pad": 1.5}
RC = {
    "font.family": "DejaVu Sans",
    "font.size": 7,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 7,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.0,
    "lines.markersize": 3.6,
    "hatch.linewidth": 0.4,
    "legend.frameon": False,
    "svg.hashsalt": "apet",
}


def styled(function: Any) -> Any:
    """Run a function under the house style alone, whatever the user's own matplotlib settings."""

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with mplstyle.context(["default", RC]):
            return function(*args, **kwargs)

    return wrapper


@styled
def save(fig: Figure, data: pd.DataFrame, folder: Path, name: str) -> None:
    """Write `name.svg`, `name.png` (200 dpi) and `name.csv`, the numbers drawn; equal input gives equal bytes."""
    FigureCanvasAgg(fig)
    _settle(fig)
    for kind, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
        buffer = io.BytesIO()
        fig.savefig(buffer, format=kind, dpi=DPI, metadata=metadata)
        write_bytes(folder / f"{name}.{kind}", buffer.getvalue())
    write_text(folder / f"{name}.csv", data.to_csv(index=False, lineterminator="\n", float_format="%.10g"))


def _settle(fig: Figure) -> None:
    """Lay the panels out once, and round: the layout's solver gives the last digits in no fixed order."""
    fig.draw_without_rendering()
    fig.set_layout_engine("none")
    for ax in fig.axes:
        ax.set_position(np.round(ax.get_position().bounds, 4))


def look(placement: str) -> dict[str, Any]:
    """Colour, marker and label of a placement, as keywords of a plot."""
    colour, marker, label = LOOKS[placement]
    return {"color": colour, "marker": marker, "label": label}


def panels(count: int, columns: int, height: float, note: str, share: str = "all") -> tuple[Figure, list[Axes]]:
    """A figure of print width with `count` panels, `height` mm each, in rows of `columns`.

    `share` says whose y axes are one. Room stays above for `legend`, and below for `note`, which says n.
    """
    rows = -(-count // columns)
    lines = textwrap.wrap(note, NOTE_CHARACTERS)
    below = (2.9 * len(lines) + 3) * MM
    total = rows * height * MM + below + 12 * MM
    fig = Figure(figsize=(WIDTH, total), layout="constrained")
    axes = list(fig.subplots(rows, columns, sharey=share, squeeze=False).flat)
    for spare in axes[count:]:
        spare.set_axis_off()
    fig.get_layout_engine().set(rect=(0, below / total, 1, 1 - below / total), w_pad=0.02, h_pad=0.03)
    fig.text(0.006, MM / total, "\n".join(lines), fontsize=6, color="#444444", va="bottom", linespacing=1.25)
    return fig, axes[:count]


def name_axes(axes: Sequence[Axes], columns: int, x: str, y: Sequence[str]) -> None:
    """Label x under the lowest panel of each column, and y beside each row, `y` taken in turn."""
    for ax in axes[-columns:]:
        ax.set_xlabel(x)
    for row, ax in enumerate(axes[::columns]):
        ax.set_ylabel(y[row % len(y)])


def legend(fig: Figure, axes: Iterable[Axes], columns: int = 8) -> None:
    """One legend above the panels, an entry for each label in the order of first use."""
    entries: dict[str, Any] = {}
    for ax in axes:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    fig.legend(
        entries.values(),
        entries.keys(),
        loc="outside upper center",
        ncols=columns,
        columnspacing=1.4,
        handletextpad=0.5,
    )


def scale_axis(ax: Axes, sizes: Sequence[int]) -> None:
    """A log axis of PLM sizes: a tick at each, labelled unless it would run into the label before."""
    sizes = sorted(set(sizes))
    low, high = np.log10(sizes[0]), np.log10(sizes[-1])
    pad = max(0.12 * (high - low), 0.15)
    ax.set_xscale("log")
    ax.set_xlim(10 ** (low - pad), 10 ** (high + pad))
    shown: list[int] = []
    for size in sizes:
        if not shown or np.log10(size / shown[-1]) > 0.2 * (high - low + 2 * pad):
            shown.append(size)
    ax.xaxis.set_major_locator(FixedLocator(shown))
    ax.xaxis.set_major_formatter(lambda value, _: short(value))
    ax.xaxis.set_minor_locator(FixedLocator(sizes))
    ax.xaxis.set_minor_formatter(NullFormatter())


def count_axis(ax: Axes, counts: Iterable[float]) -> None:
    """A log axis of numbers of parameters: a tick a decade, every second one labelled where there are many.

    Counts of 0 have no place on it.
    """
    positive = [count for count in counts if count > 0] or [1]
    low, high = np.log10(min(positive)), np.log10(max(positive))
    decades = 10.0 ** np.arange(np.floor(low), np.ceil(high) + 1)
    ax.set_xscale("log")
    ax.set_xlim(10 ** (low - 0.4), 10 ** (high + 0.4))
    ax.xaxis.set_major_locator(FixedLocator(decades[:: 2 if len(decades) > 5 else 1]))
    ax.xaxis.set_major_formatter(lambda value, _: short(value))
    ax.xaxis.set_minor_locator(FixedLocator(decades))
    ax.xaxis.set_minor_formatter(NullFormatter())


def errorbars(ax: Axes, x: Any, y: Any, low: Any, high: Any, **keywords: Any) -> None:
    """Points with asymmetric whiskers, all in the unit of the axis; NaN leaves a gap."""
    y = np.asarray(y, float)
    reach = np.abs(np.vstack([y - np.asarray(low, float), np.asarray(high, float) - y]))
    ax.errorbar(x, y, yerr=reach, **{"elinewidth": 0.7, "capsize": 0, **keywords})


def mark_missing(ax: Axes, x: Sequence[float], colour: str) -> None:
    """A hatched box on the x axis for each cell without data, in its method's colour."""
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


def note_missing(ax: Axes, names: Sequence[str]) -> None:
    """Words in the panel for cells without data that have no place on its x axis."""
    if names:
        lines = textwrap.wrap(f"{MISSING}: {', '.join(names)}", 44)
        ax.text(0.98, 0.03, "\n".join(lines), transform=ax.transAxes, ha="right", va="bottom", fontsize=6, bbox=BOX)


def empty(ax: Axes) -> None:
    """A panel without any data: hatched all over, and said in words."""
    ax.patch.set(hatch="////", edgecolor="#C8C8C8")
    ax.text(0.5, 0.5, MISSING, transform=ax.transAxes, ha="center", va="center", bbox=BOX)


def short(number: float) -> str:
    """A count in at most four characters: 25000 as 25k, 1200000 as 1.2M."""
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return f"{number:.3g}"


def span(values: Iterable[float]) -> str:
    """The range of some counts: `3`, or `1–3`; `0` where there are none."""
    found = sorted({int(value) for value in values}) or [0]
    return str(found[0]) if len(found) == 1 else f"{found[0]}–{found[-1]}"


def rows_note(frame: pd.DataFrame) -> str:
    """How many rows each task is tested on, and how many replicates diverged: the part of n that all figures share."""
    rows = ", ".join(f"{task} {span(n)}" for task, n in frame.groupby("task").n)
    diverged = int(frame.outcome.eq("diverged").sum())
    return f"Test rows: {rows}. Replicates that diverged: {diverged} of {len(frame)}."


def metric_label(frame: pd.DataFrame) -> str:
    """The score's axis label: the metric's name if all tasks share one."""
    metrics = sorted(frame.metric.unique())
    return f"test {metrics[0] if len(metrics) == 1 else 'score'} (%)"
