"""The study's figures, each drawn from the tidy table alone."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

# Names alone until one is drawn: the DAG asks for them on every dry run, and the drawing library is slow to load.


def _drawing(name: str) -> Callable[[pd.DataFrame], tuple[Figure, pd.DataFrame]]:
    return lambda tidy: import_module(f"apet.figures.{name}").draw(tidy)


FIGURES = {name: _drawing(name) for name in ("methods_by_scale", "positions_by_scale", "score_by_budget")}
"""Name -> drawing: from the tidy table to the figure, and the numbers in it."""


def draw_all(tidy_path: Path, folder: Path) -> None:
    """Draw every figure of `FIGURES` from a tidy parquet file into `folder`, as svg, png and csv."""
    from apet.analysis.tidy import read_tidy
    from apet.figures import style

    tidy = read_tidy(tidy_path)
    for name, draw in FIGURES.items():
        fig, data = draw(tidy)
        style.save(fig, data, folder, name)
