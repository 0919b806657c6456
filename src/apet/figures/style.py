"""How every figure looks, what it says in words, and how it is written."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import style as mplstyle
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from apet.core.atomic import write_bytes, write_text

DPI = 200
GREY = "#7F7F7F"
DARK = "#444444"

# Okabe and Ito's palette, and for what it has no colour for three of Paul Tol's: safe for the colour-blind. Each
# placement has a marker too, for prints without colour.
PART, DEPTH, STRUCTURE = "#882255", "#999933", "#56B4E9"
LOOKS: dict[str, tuple[str, Any, str]] = {
    "full": ("#000000", "s", "full fine-tuning"),
    "lora": ("#0072B2", "o", "LoRA"),
    "adapter": ("#009E73", "^", "adapter"),
    "prompt": ("#E69F00", "D", "prompt"),
    "bitfit": ("#CC79A7", "v", "BitFit"),
    "none": ("#7F7F7F", "X", "untuned"),
    "uniform": ("#D55E00", "P", "APET (random positions)"),
    "attention": (PART, "<", "attention"),
    "ffn": (PART, ">", "feed-forward"),
    "bottom": (DEPTH, "d", "bottom third"),
    "middle": (DEPTH, "8", "middle third"),
    "top": (DEPTH, "p", "top third"),
    "entry_only": (STRUCTURE, "h", "weights' scalars"),
    "bias_only": (STRUCTURE, "*", "biases"),
    "lowrank_only": (STRUCTURE, "H", "rank-1 parts"),
    "bottleneck_only": (STRUCTURE, (3, 0, 180), "adapter units"),
    "token_only": (STRUCTURE, (4, 0, 45), "virtual tokens"),
}
"""Placement -> colour, marker, name. One colour for what a restricted placement is about: a part of the block, a depth,
a structure."""
THRESHOLDS: dict[str, tuple[str, str, str]] = {
    "low": ("#9C89D9", "^", "low threshold: beats a guess"),
    "high": ("#332288", "v", "high threshold: matches full fine-tuning"),
}
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*", "d", "8", "H")
"""Of tasks, in turn, where all of them stand in one panel."""
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


def budget_name(budget: str) -> str:
    """A budget as a study writes it, in words: `@lora` as LoRA's count, `10000` as 10k."""
    if budget.startswith("@"):
        return f"{LOOKS[budget[1:]][2]}'s count" if budget[1:] in LOOKS else "its own count"
    return short(float(budget)) if budget.isdigit() else budget


def short(number: float) -> str:
    """A count at three digits, in at most five characters: 25000 as 25k, 1234567 as 1.23M."""
    rounded = float(f"{number:.3g}")
    # The unit is that of the rounded count, or 999,700 would be a thousand thousands.
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if rounded >= unit:
            return f"{rounded / unit:.3g}{name}"
    return f"{rounded:.3g}"


def plm_name(model: str, width: int) -> str:
    """A PLM's name without its owner, `broken`."""
    return broken(model.rsplit("/", 1)[-1], width)


def broken(name: str, width: int) -> str:
    """A name in lines of about `width` characters, broken where its parts are joined."""
    lines = [""]
    for part in re.split(r"(?<=[-_ ])", name):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def span(values: Iterable[float]) -> str:
    """The range of some counts: `3`, or `1–3`; `0` where there are none."""
    found = sorted({int(value) for value in values}) or [0]
    return str(found[0]) if len(found) == 1 else f"{found[0]}–{found[-1]}"


def count_note(frame: pd.DataFrame) -> str:
    """The part of n that all figures share: test rows of each task, replicates, how many diverged, cells missing."""
    rows = ", ".join(f"{task} {span(n)}" for task, n in frame.groupby("task").n)
    diverged, missing = int(frame.outcome.eq("diverged").sum()), len(frame.attrs.get("missing", ()))
    return f"Test rows: {rows}. Replicates that diverged: {diverged} of {len(frame):,}. Cells missing: {missing:,}."


def guess_note(frame: pd.DataFrame) -> str:
    """What the lines of a guess are where a score is the F1 of labels; nothing where none is."""
    found = (frame.metric.eq("f1") & frame.majority.notna()).any()
    return "Where the metric is F1: the F1 of an even guess, and of always the second label. " if found else ""


def metric_label(frame: pd.DataFrame) -> str:
    """The score's axis label: the metric's name if all tasks share one."""
    metrics = sorted(frame.metric.unique())
    return f"test {metrics[0] if len(metrics) == 1 else 'score'} (%)"
