"""Commands that measure costs and write their tables."""

from __future__ import annotations

from pathlib import Path

from apet.cli.commands.results import report
from apet.cli.registry import PARAMS, RESULTS_DIR, TIDY, Device, command, study_cells, study_record

STAGE = "Measured costs: data/, models/ -> results/measured_costs/"


@command(STAGE, "apet measure --model bloom-32x2")
def measure(
    *,
    params: Path = PARAMS,
    resolved: Path | None = None,
    model: str,
    results_dir: Path = RESULTS_DIR,
    device: Device = "cpu",
    project_dir: Path = Path(),
) -> None:
    """Measure memory and times of a PLM's methods in one process, unless they are measured."""
    from apet.core.records import write_json_record
    from apet.errors import ModelError, unknown_name
    from apet.study.measurements import measurements
    from apet.study.paths import ResultPaths

    known = {measurement.model: measurement for measurement in measurements(study_cells(params, resolved, ()))}
    if model not in known:
        raise ModelError(unknown_name("model", model, known, f"{resolved or params}: models"))
    file = known[model].record_file(ResultPaths(results_dir))
    if not file.is_file():
        from apet.training import measure as measuring

        write_json_record(file, measuring.measure(known[model], project_dir, device))
    print(file)


@command(STAGE, "apet costs")
def costs(*, params: Path = PARAMS, resolved: Path | None = None, results_dir: Path = RESULTS_DIR) -> None:
    """Write tables and a figure of measured costs next to scores, and the report."""
    from apet.errors import DataError
    from apet.study.measurements import read_measurements
    from apet.study.paths import ResultPaths
    from apet.study.workdir import publishing

    paths = ResultPaths(results_dir)
    records = read_measurements(study_cells(params, resolved, ()), paths)
    from apet.analysis.claims import AnalysisInputs
    from apet.analysis.measured_costs import costs_table, with_scores
    from apet.analysis.tidy import read_tidy
    from apet.figures import score_by_cost, style
    from apet.report.cost_tables import write_cost_tables

    study, frame, out = study_record(params, resolved), read_tidy(results_dir / TIDY.name), paths.measured_costs
    if frame.attrs["study"] != study["study"]:
        raise DataError(f"{results_dir / TIDY.name}: the table of another study. Run `apet results`.")
    inputs = AnalysisInputs.from_frame(frame)
    with publishing(study, paths, out):
        table = with_scores(costs_table(records), inputs.samples)
        write_cost_tables(table, frame, out)
        style.save(*score_by_cost.draw(table, inputs), out, "score_by_cost")
    report(results_dir=results_dir)
