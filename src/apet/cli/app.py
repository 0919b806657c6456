"""The `apet` program: parses the command line, runs one command, and turns errors into exit statuses."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Literal

import shtab

from apet.cli import commands  # noqa: F401  (importing them registers them)
from apet.cli.arguments import add_arguments
from apet.cli.registry import COMMANDS, command
from apet.cli.terminal import replace_missing_characters
from apet.core import arithmetic
from apet.core.signals import SignalHandler
from apet.errors import ApetError, Interrupted, storage_error

EXITS = {
    0: "success",
    1: "`apet verify`: a retrained cell differs from the recorded one",
    2: "invalid input, or cells failed: standard error names the cause",
    75: "interrupted by SIGTERM or Ctrl-C: rerun the same command to resume",
    141: "broken pipe: the reader of standard output, such as `head`, closed it",
}
"""Exit status -> meaning. (An uncaught exception is a bug in apet; Python's exit status for it is 1.)"""


class TopParser(argparse.ArgumentParser):
    """The parser of `apet` itself, with a help text that groups the commands by stage."""

    def format_help(self) -> str:
        lines = ["usage: apet COMMAND …      apet COMMAND --help      apet --version", "", self.description or ""]
        stage = ""
        for name, entry in COMMANDS.items():
            lines += ["", entry.stage] if entry.stage != stage else []
            lines.append(f"  {name:15}  {entry.summary}")
            stage = entry.stage
        return "\n".join([*lines, "", "Exit status", *(f"  {code:<15}  {text}" for code, text in EXITS.items()), ""])


def parser() -> argparse.ArgumentParser:
    """Build the parser of the whole command line.

    Returns:
        The parser. A parsed namespace has the name of the command in `command` and, under their names, the parameters
        of its function.
    """
    top = TopParser(prog="apet", description="Reproducible study of where and how many parameters to tune in a PLM.")
    top.add_argument("--version", action="version", version=f"apet {version('apet')}")
    subparsers = top.add_subparsers(
        required=True, dest="command", metavar="COMMAND", parser_class=argparse.ArgumentParser
    )
    for name, entry in COMMANDS.items():
        sub = subparsers.add_parser(
            name,
            help=entry.summary,
            description=entry.summary,
            epilog="\n".join(["examples:", *(f"  {line}" for line in entry.examples)]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add_arguments(sub, entry.function)
    return top


@command("Shell", 'eval "$(apet completion bash)"', "apet completion zsh > ~/.zfunc/_apet")
def completion(shell: Literal["bash", "zsh", "tcsh", "fish", "powershell"]) -> None:
    """Print a script that completes commands, options and cells in a shell."""
    print(shtab.complete(parser(), shell))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Words of the command line after the program's name; by default those of the process.

    Returns:
        The exit status, a key of `EXITS`.
    """
    replace_missing_characters()
    # The linear algebra libraries read these when they are loaded, so set them before a command imports one.
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    options = vars(parser().parse_args(arguments))
    entry = COMMANDS[options.pop("command")]
    if not entry.online:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        arithmetic.mode()
        with SignalHandler().install():
            entry.function(**options)
            sys.stdout.flush()
    except (ApetError, Interrupted) as error:
        print(f"apet: {error}", file=sys.stderr)
        return error.status
    except BrokenPipeError:  # redirect the rest of the output, or Python fails again when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        if not (failure := storage_error(error)):
            raise
        print(f"apet: {failure}", file=sys.stderr)
        return failure.status
    return 0


if __name__ == "__main__":
    sys.exit(main())
