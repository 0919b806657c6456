"""The study's answer as one HTML file that needs nothing else: no network, no server, no other file."""

from __future__ import annotations

from pathlib import Path


def write_report(results: Path, out: Path) -> None:
    """Write the report on a folder of results, which must hold tidy.parquet and findings.json, to one HTML file.

    Figures and the tables of tasks and of costs are taken in where they are there. Equal results give equal bytes.
    Raises DataError, naming the file, for one that is missing or cannot be read.
    """
    from apet.core.atomic import write_text
    from apet.report.content import read_content
    from apet.report.page import render

    write_text(out, render(read_content(results)))
