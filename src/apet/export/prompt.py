"""A prompt that PEFT has tuned, as units of virtual tokens: a part of the way in, see `lora`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from apet.errors import CorruptError, ModelError, ParamsError, shown
from apet.placement import Site
from apet.plms.load import PLM

TENSOR = "prompt_embeddings"


def prompt_tokens(config: Mapping[str, Any], path: Path, plm: PLM) -> dict[Site, Tensor]:
    """Site -> its virtual tokens [n, d], float32, from the weights of a PROMPT_TUNING adapter (Lester et al. 2021).

    For T5, PEFT saves as many tokens again for the decoder and never uses them (two submodules): they are left out.
    Raises ParamsError for tokens that have no site in this PLM, ModelError for a wrong configuration, CorruptError for
    weights that cannot be read or are not those of the configuration.
    """
    count, parts = config.get("num_virtual_tokens"), config.get("num_transformer_submodules") or 1
    if type(count) is not int or count < 1 or parts not in (1, 2):
        said = f"num_virtual_tokens is {shown(count)}, num_transformer_submodules {shown(parts)}"
        raise ModelError(f"{path.parent}: {said}. Allowed: at least 1, and 1 or 2.")
    tokens = _tokens(path)
    if len(tokens) != count * parts:
        raise CorruptError(f"{path}: holds {len(tokens)} virtual tokens; its configuration says {parts} × {count}.")
    (site,) = (s for s in plm.inventory.sites if s.structure == "token" and s.place == plm.family.input)
    if tokens.shape[1] != site.cost or count > site.units:
        raise ParamsError(
            f"{path}: {count} virtual tokens of width {tokens.shape[1]}. {plm.name} ({plm.family.name}) has room for "
            f"{site.units} of width {site.cost}."
        )
    return {site: tokens[:count]}


def _tokens(path: Path) -> Tensor:
    """The prompt [tokens, d] that a file of PEFT's holds."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CorruptError(f"{path}: cannot be read as safetensors ({error}).") from None
    if set(tensors) != {TENSOR} or tensors[TENSOR].dim() != 2:
        raise CorruptError(f"{path}: holds {', '.join(sorted(tensors))[:200]}; a tuned prompt is one matrix, {TENSOR}.")
    return tensors[TENSOR].float()
