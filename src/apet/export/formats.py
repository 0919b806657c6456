"""The forms of an export, each with what it cannot hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from apet.errors import ParamsError, unknown
from apet.export import adapters, merged
from apet.export.card import card
from apet.export.delta import write_delta
from apet.export.model import TunedModel
from apet.provenance import whole_folder, write_text


@dataclass(frozen=True)
class Format:
    """what: in a few words. obstacles: what of a model it cannot hold. write: into a folder. library: reads it."""

    what: str
    obstacles: Callable[[TunedModel], list[str]]
    write: Callable[[TunedModel, Path], None]
    library: str | None


FORMATS = {
    "peft": Format("an adapter of PEFT's", adapters.obstacles, adapters.write_peft, "peft"),
    "merged": Format("a checkpoint", merged.obstacles, merged.write_merged, "transformers"),
    "delta": Format("θ, plan and task", lambda model: [], write_delta, None),
}


def export(model: TunedModel, to: str, out: Path) -> Path:
    """Write a tuned model as a folder with a model card, whole or not at all; equal models give equal bytes.

    Raises ParamsError for an unknown form, for one that cannot hold this model, naming what and which form can, and for
    a folder that is not empty.
    """
    if to not in FORMATS:
        raise ParamsError(unknown("form", to, FORMATS, "export"))
    if why := FORMATS[to].obstacles(model):
        instead = [name for name, form in FORMATS.items() if not form.obstacles(model)]
        raise ParamsError(
            f"{model.cell or model.plan.placement}: {FORMATS[to].what} ({to}) has no counterpart for "
            f"{'; '.join(why)}. Allowed for this model: {', '.join(instead)}."
        )
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ParamsError(f"{out}: is there already. Give an export a folder of its own, empty or new.")
    with whole_folder(out) as folder:
        FORMATS[to].write(model, folder)
        write_text(folder / "README.md", card(model, to, FORMATS[to].library))
    return out
