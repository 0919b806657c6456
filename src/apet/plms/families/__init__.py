"""The supported families of PLMs. A new one is a file beside this, named in `FAMILIES`."""

from __future__ import annotations

from apet.errors import ModelError, unknown
from apet.plms.families.base import Family, Fused, Place
from apet.plms.families.bloom import BLOOM

FAMILIES: dict[str, Family] = {family.name: family for family in (BLOOM,)}

__all__ = ["FAMILIES", "Family", "Fused", "Place", "family_of"]


def family_of(model_type: str) -> Family:
    """The family of a Hugging Face `model_type`. Raises ModelError naming the supported ones."""
    for family in FAMILIES.values():
        if model_type == family.model_type:
            return family
    raise ModelError(unknown("architecture", model_type, [f.model_type for f in FAMILIES.values()]))
