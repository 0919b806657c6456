"""The study's figures, each drawn from the tidy table alone."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from apet.analysis.claims import AnalysisInputs

# Names alone until one is drawn: the DAG asks for them on every dry run, and the drawing library is slow to load.
NAMES = (
    "methods_by_scale",
    "positions_by_scale",
    "score_by_budget",
    "thresholds_by_scale",
    "where_it_helps",
    "noise_floor",
)


def _drawing(name: str) -> Callable[[AnalysisInputs], tuple[Figure, pd.DataFrame]]:
    return lambda evidence: import_module(f"apet.figures.{name}").draw(evidence)


FIGURES = {name: _drawing(name) for name in NAMES}
"""Name -> drawing: a study's evidence to the figure and its numbers. The caption is its module's docstring."""


def draw_all(tidy_path: Path, folder: Path) -> None:
    """Draw every figure of `FIGURES` from a tidy parquet file into `folder`, as svg, png and csv."""
    from apet.analysis.claims import AnalysisInputs
    from apet.analysis.resampling import sample_means
    from apet.analysis.tidy import read_tidy
    from apet.figures import style

    tidy = read_tidy(tidy_path)
    evidence = AnalysisInputs(tidy, sample_means(tidy), tidy.attrs["margins"])
    for name, draw in FIGURES.items():
        fig, data = draw(evidence)
        style.save(fig, data, folder, name)
