"""The supported families of PLMs. A new one is a file beside this, named in `FAMILIES`."""

from __future__ import annotations

from apet.errors import ModelError, unknown_name
from apet.models.families.base import Family, FusedSlice, Inputs, ModuleSpec, SpecialTokens, blocks_of
from apet.models.families.bert import BERT
from apet.models.families.bloom import BLOOM
from apet.models.families.gpt_neox import GPT_NEOX
from apet.models.families.llama import LLAMA
from apet.models.families.t5 import T5

FAMILIES: dict[str, Family] = {family.name: family for family in (BERT, BLOOM, T5, GPT_NEOX, LLAMA)}

__all__ = ["FAMILIES", "Family", "FusedSlice", "Inputs", "ModuleSpec", "SpecialTokens", "blocks_of", "family_of"]


def family_of(model_type: str) -> Family:
    """The family of a Hugging Face `model_type`. Raises ModelError naming the supported ones."""
    known = {model_type: family for family in FAMILIES.values() for model_type in family.classes}
    if model_type not in known:
        raise ModelError(unknown_name("architecture", model_type, known))
    return known[model_type]
