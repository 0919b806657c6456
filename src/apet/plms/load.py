"""Loading a frozen PLM from a Hugging Face folder: safetensors only, no remote code, the dtype said."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from apet.errors import ModelError
from apet.placement.sites import Inventory
from apet.plms.families import Family, Frame, family_of
from apet.plms.inventory import inventory_of, shapes_of
from apet.provenance import digest, file_digest


@dataclass
class PLM:
    """A frozen PLM: `content` is the SHA-256 over its weights, configuration and tokenizer."""

    name: str
    family: Family
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    content: str
    frame: Frame = field(default_factory=Frame)

    @cached_property
    def inventory(self) -> Inventory:
        return inventory_of(self.model)


def load_plm(folder: Path, name: str, dtype: torch.dtype = torch.float32) -> PLM:
    """The PLM in a folder, in evaluation mode, without gradients, with the family's fast kernels in place.

    Raises ModelError for a folder that lacks a file or whose architecture is not supported.
    """
    for needed in ("config.json", "model.safetensors"):
        if not (folder / needed).is_file():
            raise ModelError(f"{folder}: no {needed}, which a PLM's folder holds beside its tokenizer.")
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    family = family_of(config.model_type)
    model = family.class_of(config).from_pretrained(
        folder, dtype=dtype, use_safetensors=True, trust_remote_code=False, attn_implementation="eager"
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model.requires_grad_(False).eval()
    family.fuse(model)
    return PLM(name, family, model, tokenizer, content_of(folder), family.frame(tokenizer))


def content_of(folder: Path) -> str:
    """SHA-256 over the files that decide what the PLM computes: weights, configuration, tokenizer."""
    names = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    return digest({n: file_digest(folder / n) for n in names if (folder / n).is_file()})


def inventory_of_config(values: dict) -> Inventory:
    """The inventory of a configuration given as the mapping of a config.json, without weights."""
    family_of(str(values.get("model_type")))
    return inventory_of(shapes_of(AutoConfig.for_model(**values)))


def read_config(folder: Path) -> dict:
    """The mapping in a folder's config.json. Raises ModelError where there is none."""
    try:
        return json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / 'config.json'}: cannot be read ({error}).") from None
