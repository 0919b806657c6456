"""Figures of a results folder as data: URIs, with captions and the numbers behind them."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from apet.figures import FIGURES

LARGEST_SVG = 1_500_000
"""Bytes above which a figure is embedded as PNG instead of SVG."""
LARGEST_CSV = 300_000
"""Bytes above which the numbers behind a figure are not embedded."""
MEDIA_TYPES = {"svg": "image/svg+xml", "png": "image/png", "csv": "text/csv"}


@dataclass(frozen=True)
class FigureImage:
    """A figure with its caption."""

    name: str
    title: str
    text: str
    form: str
    """svg or png."""
    image: str
    """data: URI."""
    numbers: str
    """data: URI of the CSV file, empty if it is missing or too large."""
    csv_size: str
    """Size of the CSV file, empty if it is missing."""


def read_figures(folder: Path) -> list[FigureImage]:
    """Read the figures in a folder that draw something, in the order of `FIGURES`."""
    return [read_figure(folder, name) for name in FIGURES if has_figure(folder, name)]


def has_figure(folder: Path, name: str) -> bool:
    """Return whether a folder has a figure that draws something."""
    return (folder / f"{name}.svg").is_file() and _has_rows(folder, name)


def _has_rows(folder: Path, name: str) -> bool:
    """Return whether a figure has numbers, or no file of them. The study may contain nothing that it can show."""
    path = folder / f"{name}.csv"
    return not path.is_file() or path.read_bytes().count(b"\n") > 1


def caption(name: str) -> tuple[str, str]:
    """Return title and text of a figure's caption, from its module's docstring: "description: question?" and text."""
    title, _, text = (import_module(f"apet.figures.{name}").__doc__ or name).partition("\n\n")
    description, colon, question = title.strip().partition(": ")
    question = question[:1].upper() + question[1:]
    return question or description, " ".join(f"{description}. {text}".split()) if colon else " ".join(text.split())


def read_figure(folder: Path, name: str) -> FigureImage:
    """Read a figure with the caption of its module."""
    svg, png, csv = (folder / f"{name}.{form}" for form in MEDIA_TYPES)
    path = png if svg.stat().st_size > LARGEST_SVG and png.is_file() else svg
    size = csv.stat().st_size if csv.is_file() else 0
    title, text = caption(name)
    numbers = _uri(csv) if 0 < size <= LARGEST_CSV else ""
    csv_size = f"{size / 1000:,.0f} kB" if size else ""
    return FigureImage(name, title, text, path.suffix[1:], _uri(path), numbers, csv_size)


def _uri(path: Path) -> str:
    return f"data:{MEDIA_TYPES[path.suffix[1:]]};base64,{b64encode(path.read_bytes()).decode()}"
