"""Appearance, labels and file formats of all figures."""

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

from apet.analysis.claims import AnalysisInputs
from apet.analysis.means import mean_note
from apet.core.atomic import write_bytes, write_text
from apet.core.text import plural

DPI = 200
GREY = "#7F7F7F"
DARK = "#444444"

# Palette of Okabe and Ito with colours of Paul Tol: safe for colour-blind readers. Each placement also has its
# own marker, for prints without colour.
PART, DEPTH, STRUCTURE, INFORMED = "#882255", "#999933", "#56B4E9", "#117733"
KINDS = {PART: "part of the block", DEPTH: "depth", STRUCTURE: "structure", INFORMED: "informed"}
"""Colour -> kind of placements that are compared with `uniform`."""
STYLES: dict[str, tuple[str, Any, str]] = {
    "full": ("#000000", "s", "full fine-tuning"),
    "lora": ("#0072B2", "o", "LoRA"),
    "adapter": ("#009E73", "^", "adapter"),
    "prompt": ("#E69F00", "D", "prompt"),
    "bitfit": ("#CC79A7", "v", "BitFit"),
    "layernorm": ("#DDCC77", (4, 1, 0), "LayerNorm tuning"),
    "ia3": ("#AA4499", (3, 1, 0), "(IA)³"),
    "prefix": ("#661100", (6, 0, 30), "prefix"),
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
    "scale_only": (STRUCTURE, (7, 1, 0), "factors"),
    "prefix_only": (STRUCTURE, (5, 0, 180), "prefix pairs"),
    "magnitude": (INFORMED, (5, 1, 0), "largest weights"),
    "gradient": (INFORMED, (6, 1, 0), "largest gradients"),
    "fisher": (INFORMED, (8, 1, 0), "largest Fisher information"),
}
"""Placement -> colour, marker, name. Other placements share a colour: part of the block, depth, structure, informed."""
THRESHOLDS: dict[str, tuple[str, str, str]] = {
    "chance": ("#9C89D9", "^", "chance threshold"),
    "full_ft": ("#332288", "v", "full fine-tuning threshold"),
}
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*", "d", "8", "H")
"""Markers of tasks, in turn, if all tasks are in one panel."""
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
    """Decorate a function to run with this style only, whatever the user's matplotlib settings."""

    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        with mplstyle.context(["default", RC]):
            return function(*args, **kwargs)

    return wrapper


@styled
def save(fig: Figure, data: pd.DataFrame, folder: Path, name: str) -> None:
    """Write a figure and its numbers; equal input gives equal bytes.

    Args:
        fig: the figure.
        data: the numbers drawn.
        folder: destination of `name.svg`, `name.png` (200 dpi) and `name.csv`.
        name: name of the files.
    """
    FigureCanvasAgg(fig)
    _fix_layout(fig)
    for kind, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
        buffer = io.BytesIO()
        fig.savefig(buffer, format=kind, dpi=DPI, metadata=metadata)
        write_bytes(folder / f"{name}.{kind}", buffer.getvalue())
    write_text(folder / f"{name}.csv", data.to_csv(index=False, lineterminator="\n", float_format="%.10g"))


def _fix_layout(fig: Figure) -> None:
    """Lay out the panels once and round positions: the last digits of the solver are not deterministic."""
    fig.draw_without_rendering()
    fig.set_layout_engine("none")
    for ax in fig.axes:
        ax.set_position(np.round(ax.get_position().bounds, 4))


def placement_style(placement: str) -> dict[str, Any]:
    """Return colour, marker and label of a placement, as keywords of a plot."""
    colour, marker, label = STYLES[placement]
    return {"color": colour, "marker": marker, "label": label}


def budget_name(budget: str) -> str:
    """Format a budget: `@lora` as LoRA's count, `10000` as 10k."""
    if budget.startswith("@"):
        return f"{STYLES[budget[1:]][2]}'s count" if budget[1:] in STYLES else "its own count"
    return short(float(budget)) if budget.isdigit() else budget


def short(number: float) -> str:
    """Format a count at three digits, in at most five characters: 25000 as 25k, 1234567 as 1.23M."""
    rounded = float(f"{number:.3g}")
    # The rounded count decides the unit, or 999,700 would be 1000k.
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if rounded >= unit:
            return f"{rounded / unit:.3g}{name}"
    return f"{rounded:.3g}"


def plm_name(model: str, width: int) -> str:
    """Return a PLM's name without its owner, in lines of about `width` characters."""
    return wrap_name(model.rsplit("/", 1)[-1], width)


def wrap_name(name: str, width: int) -> str:
    """Wrap a name after hyphens, underscores and spaces, in lines of about `width` characters."""
    lines = [""]
    for part in re.split(r"(?<=[-_ ])", name):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def span(values: Iterable[float], noun: str = "") -> str:
    """Format the range of counts, with a noun if one is given: `3`, `1–3 plans`, `1 plan`; `0` without counts."""
    counts = sorted({int(value) for value in values}) or [0]
    text = str(counts[0]) if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"
    return f"{text} {noun}{'' if text == '1' else 's'}" if noun else text


def count_note(frame: pd.DataFrame) -> str:
    """Return the sample sizes that all notes share: test rows by task, and diverged replicates and missing cells."""
    rows = ", ".join(f"{task} {span(n)}" for task, n in frame.groupby("task").n_test)
    diverged, missing = int(frame.outcome.eq("diverged").sum()), len(frame.attrs.get("missing", ()))
    return (
        f"Test rows: {rows}."
        + (f" Diverged: {diverged:,} of {plural(len(frame), 'replicate')}." if diverged else "")
        + (f" Missing: {plural(missing, 'cell')}." if missing else "")
    )


def means_note(inputs: AnalysisInputs) -> str:
    """Name the tasks of means over tasks, if there are means, before another sentence."""
    note = mean_note(inputs.samples.tasks)
    return f"{note} " if note else ""


METRIC_NAMES = {"f1": "F1", "macro_f1": "macro-F1", "mcc": "Matthews correlation", "em": "EM", "rouge_l": "ROUGE-L"}
"""Metric -> its name in figures, if that differs."""
CHANCE_NOTES = {
    "f1": "For F1, chance is the F1 of a uniform guess and of always class 1. ",
    "macro_f1": "For macro-F1, chance is the macro-F1 of a uniform guess and of the best constant label. ",
    "mcc": "The Matthews correlation is times 100; chance is 0. ",
}


def chance_note(frame: pd.DataFrame) -> str:
    """Explain the chance levels of the study's metrics of labels other than accuracy."""
    metrics = frame.metric[frame.chance_majority.notna()].unique()
    return "".join(note for metric, note in CHANCE_NOTES.items() if metric in metrics)


def metric_label(frame: pd.DataFrame) -> str:
    """Return the axis label of scores: the metric's name if all tasks have the same."""
    metrics = sorted(frame.metric.unique())
    name, unit = METRIC_NAMES.get(metrics[0], metrics[0]), "× 100" if metrics[0] == "mcc" else "%"
    return f"test {name} ({unit})" if len(metrics) == 1 else "test score (%)"
