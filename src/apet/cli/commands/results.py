"""Commands that write tables, findings, figures and the report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from apet.cli.registry import PARAMS, RESULTS_DIR, TIDY, command, study_record

if TYPE_CHECKING:
    from apet.study.paths import ResultPaths

STAGE = "Results: results/cells/ -> results/"


@command(STAGE, "apet results")
def results(
    *,
    params: Path = PARAMS,
    resolved: Path | None = None,
    results_dir: Path = RESULTS_DIR,
    allow_missing: bool = False,
    out_dir: Path | None = None,
) -> None:
    """Run aggregate, findings, figures and report in one process."""
    from apet.study.paths import ResultPaths
    from apet.study.workdir import publishing

    out, paths = out_dir or results_dir, ResultPaths(results_dir)
    study = study_record(params, resolved)
    with publishing(study, paths, out):
        _aggregate(study, paths, allow_missing, out)
        findings(tidy=out / TIDY.name)
        figures(tidy=out / TIDY.name)
        report(results_dir=out)


@command(STAGE, "apet aggregate", "apet aggregate --allow-missing --out-dir my-tables")
def aggregate(
    *,
    params: Path = PARAMS,
    resolved: Path | None = None,
    results_dir: Path = RESULTS_DIR,
    allow_missing: bool = False,
    out_dir: Path | None = None,
) -> None:
    """Write the tidy table of the cells."""
    from apet.study.paths import ResultPaths

    _aggregate(study_record(params, resolved), ResultPaths(results_dir), allow_missing, out_dir or results_dir)


def _aggregate(study: dict[str, Any], paths: ResultPaths, allow_missing: bool, out: Path) -> None:
    from apet.analysis import aggregate as tables
    from apet.study.workdir import unpublish

    unpublish(out)
    tables.aggregate(study, paths, out, allow_missing)


@command(STAGE, "apet findings", "apet findings --tidy my-tables/tidy.parquet")
def findings(*, tidy: Path = TIDY, out_dir: Path | None = None) -> None:
    """Write claims with estimates and verdicts, and tables of means and differences."""
    from apet.analysis.resampling import sample_means
    from apet.analysis.tidy import read_tidy
    from apet.report.result_tables import write_differences, write_findings, write_methods

    frame, out = read_tidy(tidy), out_dir or tidy.parent
    samples = sample_means(frame)
    write_methods(frame, out / "tables", samples)
    write_differences(frame, out / "tables", samples)
    write_findings(frame, out, samples)


@command(STAGE, "apet figures")
def figures(*, tidy: Path = TIDY, out_dir: Path | None = None) -> None:
    """Draw the figures."""
    from apet.figures import draw_all

    draw_all(tidy, out_dir or tidy.parent / "figures")


@command(STAGE, "apet report")
def report(*, results_dir: Path = RESULTS_DIR, out_file: Path | None = None) -> None:
    """Write all tables, findings and figures to one HTML file."""
    from apet.report import write_report

    write_report(results_dir, out_file or results_dir / "report.html")
