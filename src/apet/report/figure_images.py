"""The figures of a results folder as data: URIs, each with a caption and the numbers behind it."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from apet.figures import FIGURES

LARGEST_SVG = 1_500_000
"""Bytes above which a figure of very many points stands in the report as its PNG."""
LARGEST_CSV = 300_000
"""Bytes above which the numbers behind a figure are named and not held."""
TYPES = {"svg": "image/svg+xml", "png": "image/png", "csv": "text/csv"}


@dataclass(frozen=True)
class Drawing:
    """A figure. title and text: its caption. image: a data: URI of the `form` named. numbers: the same of the CSV, or
    "" where there is none to hold; csv: how large it is, or "" where there is none."""

    name: str
    title: str
    text: str
    form: str
    image: str
    numbers: str
    csv: str


def read_drawings(folder: Path) -> list[Drawing]:
    """The figures that are there, in the order of `FIGURES`."""
    return [_drawing(folder, name) for name in FIGURES if (folder / f"{name}.svg").is_file()]


def caption(name: str) -> tuple[str, str]:
    """The caption of a figure, which its module opens with: what is drawn, and the question it answers."""
    title, _, text = (import_module(f"apet.figures.{name}").__doc__ or name).partition("\n\n")
    what, colon, question = title.strip().partition(": ")
    question = question[:1].upper() + question[1:]
    return (question or what), " ".join(f"{what}. {text}".split()) if colon else " ".join(text.split())


def _drawing(folder: Path, name: str) -> Drawing:
    svg, png, csv = (folder / f"{name}.{form}" for form in TYPES)
    path = png if svg.stat().st_size > LARGEST_SVG and png.is_file() else svg
    size = csv.stat().st_size if csv.is_file() else 0
    title, text = caption(name)
    numbers = _uri(csv) if 0 < size <= LARGEST_CSV else ""
    return Drawing(name, title, text, path.suffix[1:], _uri(path), numbers, f"{size / 1000:,.0f} kB" if size else "")


def _uri(path: Path) -> str:
    return f"data:{TYPES[path.suffix[1:]]};base64,{b64encode(path.read_bytes()).decode()}"
