"""Commands that plan, train, verify, count, move and pack cells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from apet.cli.registry import (
    EXAMPLE,
    PARAMS,
    RESULTS_DIR,
    Device,
    Logger,
    command,
    study_cells,
    study_grid,
    study_record,
)

STAGE = "Cells: data/, models/ -> results/cells/"


@command(
    STAGE,
    "apet plan --model bloom-64x4 --placement uniform --budget @lora",
    "apet plan --model google/t5-v1_1-xxl --placement lora",
)
def plan(*, params: Path = PARAMS, model: str, placement: str, budget: str = "@own", seed: int = 1) -> None:
    """Print the units that a placement selects in a PLM at a budget."""
    import json

    from apet.config.study_config import PretrainingConfig, load_study
    from apet.errors import BudgetError, error_context
    from apet.models.registry import parse_model
    from apet.placement import PLACEMENTS, Budget, MethodSizes, make_plan
    from apet.placement import resolve as resolve_budget
    from apet.study.resolve import planned_inventory

    # Without a study, sizes are the published ones. Only a file that is named must exist.
    study = load_study(params) if params != PARAMS or params.exists() else None
    methods, recipe = (study.methods, study.pretraining) if study else (MethodSizes(), PretrainingConfig())
    with error_context(f"{params}: models"):
        known = {source.name: source for source in map(parse_model, study.models if study else ())}
    source = known.get(model) or parse_model(model, is_argument=True)
    if budget == "@own" and placement in PLACEMENTS.random:
        raise BudgetError(f"{placement} has no fixed size. Pass --budget, such as 4096, 0.01% or @lora.")
    parsed = Budget.parse(budget)
    inventory = planned_inventory(source, recipe)
    count = resolve_budget(parsed, placement, inventory, methods)
    print(json.dumps(make_plan(inventory, placement, count, seed, methods).record(), indent=2))


@command(
    STAGE,
    f"apet train '{EXAMPLE}'",
    f"apet train '{EXAMPLE}' --model-dir my-plm --data-dir data/tasks/bbc_topics-* --results-dir my-results",
)
def train(
    cell: Sequence[str],
    *,
    params: Path = PARAMS,
    resolved: Path | None = None,
    model_dir: Path | None = None,
    data_dir: Sequence[Path] = (),
    results_dir: Path = RESULTS_DIR,
    device: Device = "cpu",
    checkpoint_interval: float = 60.0,
    logger: Logger | None = None,
) -> None:
    """Train and test cells of one PLM; skips finished cells and resumes interrupted ones."""
    from apet.core.text import plural
    from apet.study.paths import ResultPaths

    cells = study_cells(params, resolved, cell)
    plm, tasks = model_dir or Path(cells[0].plm_folder), data_dir or sorted({Path(c.data_folder) for c in cells})
    from apet.models.sharding import is_main_process, world_size
    from apet.training.distributed import train_distributed
    from apet.training.job import JobOptions, train_job

    paths, options = ResultPaths(results_dir), JobOptions(checkpoint_interval, logger)
    if world_size() == 1:
        count = train_job(cells, plm, tasks, paths, options, device)
    else:
        count = train_distributed(cells, plm, tasks, paths, options)
    if is_main_process():
        print(f"trained {count:,} of {plural(len(cells), 'cell')}")


@command(STAGE, "apet verify --num-cells 1", f"apet verify '{EXAMPLE}'")
def verify(
    cell: Sequence[str] = (),
    *,
    params: Path = PARAMS,
    resolved: Path | None = None,
    results_dir: Path = RESULTS_DIR,
    device: Device = "cpu",
    project_dir: Path = Path(),
    num_cells: int = 5,
    seed: int = 1,
    tolerance: float | None = None,
    work_dir: Path | None = None,
) -> None:
    """Retrain finished cells in a temporary folder and compare them byte for byte."""
    import tempfile

    from apet.core.text import plural
    from apet.errors import MismatchError, renamed_in_errors
    from apet.study.paths import ResultPaths

    cells, paths = study_cells(params, resolved, cell), ResultPaths(results_dir)
    from apet.training.verify import sample_cells, verify_cells

    chosen = cells if cell else sample_cells(cells, paths, num_cells, seed)
    equal = close = 0
    if work_dir:
        work_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work_dir) as folder, renamed_in_errors(folder, results_dir):
        for verdict in verify_cells(chosen, project_dir, paths, Path(folder), device):
            equal += verdict.equal
            close += not verdict.equal and verdict.within(tolerance)
            print(verdict.line(tolerance), flush=True)
    if different := len(chosen) - equal - close:
        verb = "differs" if different == 1 else "differ"
        raise MismatchError(f"{different} of {plural(len(chosen), 'cell')} {verb} from the record.")
    others = f"; {close} of another machine type with test scores within {tolerance} points" if close else ""
    print(f"{plural(len(chosen), 'cell')} retrained: {f'{equal} equal' if close else 'all bytes are equal'}{others}")


@command(STAGE, "apet status", "apet status --failed")
def status(
    *, params: Path = PARAMS, resolved: Path | None = None, results_dir: Path = RESULTS_DIR, failed: bool = False
) -> None:
    """Print how many cells are done, failed, in progress and pending, and the estimated completion time."""
    import time

    from apet.cli.status_summary import failure_lines, status_lines
    from apet.errors import DataError
    from apet.study.paths import ResultPaths
    from apet.study.resolved import training_steps
    from apet.study.status import read_status

    # A study that has not started has no results folder. Any other folder must exist.
    if results_dir != RESULTS_DIR and not results_dir.is_dir():
        raise DataError(f"--results-dir {results_dir}: no such folder. Give the results folder of the study.")
    now = time.time()
    study = study_record(params, resolved)
    state = read_status(study["cells"], ResultPaths(results_dir), now, training_steps(study))
    print("\n".join(failure_lines(state) if failed else status_lines(state, now)))


@command(STAGE, "apet archive")
def archive(*, params: Path = PARAMS, digest_index: Path | None = None) -> None:
    """Move data, PLMs and cells of other studies to .archive/."""
    from apet.study.archive import prune, write_index

    grid = study_grid(params)
    for entry in prune(grid):
        print(f"moved to .archive: {entry}")
    if digest_index:
        write_index(grid, digest_index)


@command(STAGE, "apet pack --out-dir my-cells")
def pack(
    *, out_dir: Path, params: Path = PARAMS, resolved: Path | None = None, results_dir: Path = RESULTS_DIR
) -> None:
    """Write the finished cells without θ to archives for publication, one per PLM."""
    from apet.core.text import plural
    from apet.study import cell_archives
    from apet.study.paths import ResultPaths

    cells = study_record(params, resolved)["cells"]
    for archive, count in cell_archives.pack(cells, ResultPaths(results_dir), out_dir).items():
        print(f"{archive}: {plural(count, 'cell')}, {archive.stat().st_size:,} bytes")


@command(STAGE, "apet unpack my-cells")
def unpack(archives_dir: Path, *, results_dir: Path = RESULTS_DIR) -> None:
    """Write the cells of such archives to the results, unless they are there."""
    from apet.core.text import plural
    from apet.study import cell_archives
    from apet.study.paths import ResultPaths

    written = cell_archives.unpack(archives_dir, ResultPaths(results_dir))
    print(f"{results_dir}: {plural(len(written), 'cell')} written")
