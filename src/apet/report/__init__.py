"""The report: all results of a study in one HTML file that works offline."""

from __future__ import annotations

from pathlib import Path


def write_report(results: Path, out: Path) -> None:
    """Write the report of a results folder. Equal results give equal bytes.

    Args:
        results: folder with tidy.parquet and findings.json; figures and the tables of tasks and costs are included if
            they are present.
        out: the HTML file.

    Raises:
        DataError: missing or unreadable file, or findings of another table.
        CorruptError: tidy.parquet or findings.json does not match its checksum.
    """
    from apet.core.atomic import write_text
    from apet.report.content import read_content
    from apet.report.page import render

    write_text(out, render(read_content(results)))
