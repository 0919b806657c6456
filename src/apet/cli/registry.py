"""The register of commands, and what commands share: types, defaults, and how a study is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from apet.study.cells import Cell
    from apet.study.grid import Grid


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


def study_grid(params: Path) -> Grid:
    """Read a study file."""
    from apet.study.grid import load_grid

    return load_grid(params)


def study_record(params: Path, resolved: Path | None) -> dict[str, Any]:
    """Return the record of a study: from a file of `apet resolve`, or else from the study file."""
    from apet.study.resolved import read_resolved

    return read_resolved(resolved) if resolved else study_grid(params).record()


def study_cells(params: Path, resolved: Path | None, names: Sequence[str]) -> list[Cell]:
    """Return the named cells of a study, or all of them without names."""
    record = study_record(params, resolved)
    from apet.study.resolve import select_cells

    return select_cells(record, names, resolved or params)
