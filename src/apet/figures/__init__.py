"""Figures of the study, drawn from the tidy table only."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from apet.analysis.claims import AnalysisInputs

# Modules are imported when a figure is drawn: every dry run reads the names, and matplotlib is slow to import.
FIGURE_NAMES = (
    "methods_by_scale",
    "positions_by_scale",
    "score_by_budget",
    "thresholds_by_scale",
    "where_it_helps",
    "noise_floor",
)


def _drawing(name: str) -> Callable[[AnalysisInputs], tuple[Figure, pd.DataFrame]]:
    return lambda inputs: import_module(f"apet.figures.{name}").draw(inputs)


FIGURES = {name: _drawing(name) for name in FIGURE_NAMES}
"""Name -> function that returns the figure and its numbers. The caption is the module's docstring."""


def draw_all(tidy_path: Path, folder: Path) -> None:
    """Draw every figure of `FIGURES`.

    Args:
        tidy_path: tidy.parquet.
        folder: destination of an svg, png and csv file per figure.
    """
    from apet.analysis.claims import AnalysisInputs
    from apet.analysis.tidy import read_tidy
    from apet.figures import style

    inputs = AnalysisInputs.from_frame(read_tidy(tidy_path))
    for name, draw in FIGURES.items():
        fig, data = draw(inputs)
        style.save(fig, data, folder, name)
