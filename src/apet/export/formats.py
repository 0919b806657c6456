"""Export formats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from apet.core.atomic import atomic_dir, write_text
from apet.errors import ConfigError, unknown_name
from apet.export import merged, peft_adapters
from apet.export.delta import write_delta
from apet.export.model_card import model_card
from apet.export.tuned_model import TunedModel


@dataclass(frozen=True)
class ExportFormat:
    """A format that tuned models can be exported to."""

    description: str
    unsupported: Callable[[TunedModel], list[str]]
    """Lists the parts of a model that the format cannot represent."""
    write: Callable[[TunedModel, Path], None]
    library: str | None
    """The library that loads the format, for the hub's model index."""


FORMATS = {
    "peft": ExportFormat("a PEFT adapter", peft_adapters.unsupported, peft_adapters.write_peft, "peft"),
    "merged": ExportFormat("a Hugging Face model folder", merged.unsupported, merged.write_merged, "transformers"),
    "delta": ExportFormat("θ, plan and task", lambda model: [], write_delta, None),
}


def export_model(model: TunedModel, format: str, folder: str | Path) -> Path:
    """Write a tuned model and its model card to a folder. Equal models give equal bytes.

    Args:
        model: A tuned model, from a cell or from memory.
        format: `peft` (an adapter for PEFT), `merged` (a model folder for transformers) or `delta` (θ, plan and task).
        folder: A new or empty folder. It appears complete or not at all.

    Returns:
        The folder.

    Raises:
        ConfigError: If the format is unknown or cannot represent this model, or if the folder is not empty.
    """
    out = Path(folder)
    if format not in FORMATS:
        raise ConfigError(unknown_name("format", format, FORMATS, "export"))
    if parts := FORMATS[format].unsupported(model):
        allowed = [name for name, other in FORMATS.items() if not other.unsupported(model)]
        raise ConfigError(
            f"{model.cell or model.plan.placement}: format: {format!r} cannot represent {'; '.join(parts)}. "
            f"Allowed for this model: {', '.join(allowed)}."
        )
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise ConfigError(f"{out}: already exists. Give a new or empty folder.")
    with atomic_dir(out) as temporary:
        FORMATS[format].write(model, temporary)
        write_text(temporary / "README.md", model_card(model, format, FORMATS[format].library))
    return out
