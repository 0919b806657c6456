"""The study's figures, each drawn from the tidy table alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from apet.analysis.tidy import read_tidy
from apet.figures import methods_by_scale, positions_by_scale, score_by_budget, style

FIGURES: dict[str, Callable[[pd.DataFrame], tuple[Figure, pd.DataFrame]]] = {
    "methods_by_scale": methods_by_scale.draw,
    "positions_by_scale": positions_by_scale.draw,
    "score_by_budget": score_by_budget.draw,
}


def draw_all(tidy_path: Path, folder: Path) -> None:
    """Draw every figure of `FIGURES` from a tidy parquet file into `folder`, as svg, png and csv."""
    tidy = read_tidy(tidy_path)
    for name, draw in FIGURES.items():
        fig, data = draw(tidy)
        style.save(fig, data, folder, name)
