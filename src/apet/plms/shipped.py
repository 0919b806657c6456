"""The rungs that come with apet, pretrained once for everyone, in `ladder/`. No torch."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from apet.errors import CorruptError, ModelError
from apet.plms.files import PRETRAINING, checked_content, read_origin
from apet.plms.ladder import Recipe, Rung
from apet.provenance import whole_folder

LADDER = Path(__file__).parent.parent / "ladder"
"""A link to the repository's `ladder/`; in an installed package, a folder of its own."""


def shipped_content(rung: Rung, recipe: Recipe) -> str | None:
    """Return the content (64 hex digits) of a rung that is shipped, or None if it is not, or was pretrained otherwise.

    Args:
        rung: the rung that a study names.
        recipe: the study's recipe; only rungs that were pretrained by it are taken.

    Raises:
        CorruptError: the rung's record is damaged, or is another rung's.
    """
    record = _record(rung)
    return record["content"] if record and record["recipe"] == asdict(recipe) else None


def copy_shipped(rung: Rung, out_folder: Path) -> None:
    """Write a shipped rung to a folder.

    Raises:
        CorruptError: a file of the rung is missing or does not have the bytes that its record names.
    """
    source, record = LADDER / rung.name, _record(rung)
    if record is None:
        raise ModelError(f"{source}: no such folder. Allowed: {', '.join(shipped_names()) or 'none is shipped'}.")
    with whole_folder(out_folder) as folder:
        for name in (*record["files"], PRETRAINING):
            if not (source / name).is_file():
                raise CorruptError(f"{source / name}: missing. {_fix(rung)}")
            shutil.copyfile(source / name, folder / name)
        try:
            checked_content(folder)
        except CorruptError as error:
            text = str(error).partition(" Delete ")[0].replace(str(folder), str(source))
            raise CorruptError(f"{text} {_fix(rung)}") from None


def shipped_names() -> list[str]:
    """Return the names of the shipped rungs, smallest first."""
    found = [path.parent for path in LADDER.glob(f"*/{PRETRAINING}")]
    return [folder.name for folder in sorted(found, key=lambda f: (f.name.partition("-")[0], _weights(f)))]


def _record(rung: Rung) -> dict[str, Any] | None:
    """Return what a shipped rung's record says; None if the rung is not shipped."""
    folder = LADDER / rung.name
    if not folder.is_dir():
        return None
    try:
        record = read_origin(folder, PRETRAINING)
    except (CorruptError, ModelError) as error:
        raise CorruptError(f"{str(error).partition(' Delete ')[0]} {_fix(rung)}") from None
    if record.get("rung") != asdict(rung):
        raise CorruptError(f"{folder / PRETRAINING}: not the record of {rung.name}. {_fix(rung)}")
    return record


def _weights(folder: Path) -> int:
    return (folder / "model.safetensors").stat().st_size


def _fix(rung: Rung) -> str:
    return f"Restore it: `git checkout -- ladder/{rung.name}`, or install apet again."
