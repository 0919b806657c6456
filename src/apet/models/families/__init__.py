"""Supported families of PLMs. To add one, write a module in this package and list it in `FAMILIES`."""

from __future__ import annotations

from apet.errors import ModelError, unknown_name
from apet.models.families.base import Family, Inputs, SpecialTokens, blocks_of, template_of
from apet.models.families.bert import BERT
from apet.models.families.bloom import BLOOM
from apet.models.families.gpt_neox import GPT_NEOX
from apet.models.families.llama import LLAMA
from apet.models.families.t5 import T5
from apet.models.layouts import FusedSlice, ModuleSpec

FAMILIES: dict[str, Family] = {family.name: family for family in (BERT, BLOOM, T5, GPT_NEOX, LLAMA)}

__all__ = [
    "FAMILIES", "Family", "FusedSlice", "Inputs", "ModuleSpec", "SpecialTokens", "blocks_of", "family_of",
    "template_of",
]  # fmt: skip


def family_of(model_type: str) -> Family:
    """Find the family of a Hugging Face `model_type`.

    Args:
        model_type: The `model_type` of a config.json.

    Returns:
        The family.

    Raises:
        ModelError: The architecture is not supported.
    """
    known = {model_type: family for family in FAMILIES.values() for model_type in family.classes}
    if model_type not in known:
        raise ModelError(unknown_name("architecture", model_type, known))
    return known[model_type]
