"""Commands that read the study file only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from apet.cli.registry import PARAMS, command, study_grid

STAGE = "Study: params.yaml"


@command(STAGE, "apet resolve", "apet resolve --params params.yaml --out-file results/study.json")
def resolve(*, params: Path = PARAMS, out_file: Path | None = None) -> None:
    """Check a study and resolve its names, budgets and cells (with --out-file into a file)."""
    from apet.cli.study_summary import resolve_lines
    from apet.study.resolve import resolve_study

    grid, record = resolve_study(params, out_file)
    print(*resolve_lines(grid, record["plms"]), *(("", f"written to {out_file}") if out_file else ()), sep="\n")


@command(STAGE, "apet digest-inputs --out-file results/inputs.json")
def digest_inputs(*, params: Path = PARAMS, out_file: Path) -> None:
    """Write the digests of a study's tasks and PLMs, on which the stages of DVC depend."""
    from apet.study.inputs import write_inputs

    write_inputs(study_grid(params), out_file)


@command(STAGE, "apet estimate", "apet estimate --params studies/paper.yaml --gpu-min-params 1e7 --json")
def estimate(
    *,
    params: Path = PARAMS,
    cpu_flops: float = 5e10,
    gpu_flops: float = 1e14,
    gpu_min_params: float | None = None,
    json: bool = False,
) -> None:
    """Estimate a study's jobs, tokens, FLOPs, hours and bytes."""
    from json import dumps

    from apet.cli.study_summary import estimate_lines
    from apet.study.cost_estimate import CostEstimate
    from apet.study.resources import Speed, local_speed

    here = local_speed(cpu_flops, gpu_flops)
    costs = CostEstimate(study_grid(params), Speed(cpu_flops, gpu_flops, gpu_min_params) if gpu_min_params else here)
    print(dumps(costs.record(), indent=2) if json else "\n".join(estimate_lines(costs)))


@command(
    STAGE,
    "apet power --pilot results/tidy.parquet",
    "apet power --params studies/families.yaml --studies 20 --effects 1 0",
)
def power(
    *,
    params: Path = PARAMS,
    pilot: Path | None = None,
    studies: int = 100,
    effects: Sequence[float] = (1.0, 0.5, 0.0),
    seed: int = 1,
) -> None:
    """Simulate a study with the variances of a pilot, and count the verdicts on each claim."""
    grid = study_grid(params)
    from apet.analysis.pilot import Assumptions, estimate_assumptions
    from apet.analysis.power import Simulation, design_of, run_studies, summarize
    from apet.analysis.tidy import read_tidy
    from apet.cli.power_summary import assumption_lines, power_lines
    from apet.core.progress import StudyProgress

    design, margins = design_of(grid), asdict(grid.study.analysis)
    assumptions = estimate_assumptions(read_tidy(pilot)) if pilot else Assumptions()
    print(*assumption_lines(design, assumptions, pilot), "", sep="\n", flush=True)
    rows = []
    with StudyProgress("power", len(set(effects)) * studies) as progress:
        for study in run_studies(Simulation(design, assumptions, margins, seed), effects, studies):
            rows += study
            progress.end()
    print(*power_lines(summarize(rows)), sep="\n")
