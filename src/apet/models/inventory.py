"""The sites of a model, derived from its shapes: a model on the meta device, without weights, is sufficient."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from apet.errors import ModelError, error_context, first_line, truncated_repr
from apet.models.families import Family, blocks_of, family_of
from apet.models.layouts import ModuleShape, ModuleSpec, check_config_sizes, sites_of
from apet.placement.sites import Inventory


def inventory_of(model: PreTrainedModel, family: Family) -> Inventory:
    """List all sites of a model. Raises ModelError if a module of the family is missing."""
    specs = family.module_specs(model)
    vocab = {id(p): p.numel() for p in _vocab_parameters(model, specs)}
    total = sum(p.numel() for p in model.parameters())
    layers = max(len(blocks_of(model, path)) for path, _ in family.layout.blocks.values())
    sites = sites_of(specs, partial(_shape_of, model))
    return Inventory.from_sites(family.name, layers, total, total - sum(vocab.values()), sites)


def empty_model(config: PretrainedConfig, family: Family, head: str = "lm") -> PreTrainedModel:
    """Make a model with shapes and without values (meta device); `classification` drops its LM head."""
    with torch.device("meta"):
        model = family.class_of(config)(config)
        family.untie_head(model)
    if head == "classification":
        family.drop_lm_head(model)
    return model


def _vocab_parameters(model: PreTrainedModel, specs: list[ModuleSpec]) -> Iterator[nn.Parameter]:
    """Yield the parameters of embeddings and of the LM head."""
    for spec in specs:
        if spec.kind in ("embedding", "head"):
            yield from model.get_submodule(spec.module).parameters(recurse=False)


def _shape_of(model: PreTrainedModel, path: str) -> ModuleShape:
    module = model.get_submodule(path)
    weight = module.get_parameter("weight")
    return ModuleShape(tuple(weight.shape), getattr(module, "bias", None) is not None, id(weight))


def inventory_of_config(values: Mapping[str, Any], head: str = "lm") -> Inventory:
    """Make the inventory of a configuration, without weights.

    Args:
        values: The mapping in a config.json.
        head: See `PLM`.

    Returns:
        The inventory.

    Raises:
        ModelError: The architecture is not supported, or no PLM has such a configuration.
    """
    return _inventory(values, family_of(str(values.get("model_type"))), head)


def _inventory(values: Mapping[str, Any], family: Family, head: str) -> Inventory:
    check_config_sizes(values, family.layout)
    if quantization := values.get("quantization_config"):
        raise ModelError(
            f"config.json: quantization_config is {truncated_repr(quantization)}. Use weights that are not quantised."
        )
    try:
        return inventory_of(empty_model(AutoConfig.for_model(**values), family, head), family)
    except Exception as error:  # the library checks little, and it or PyTorch may fail in any way
        shapes = truncated_repr(dict(values))
        raise ModelError(f"config.json: no PLM has the shapes of {shapes} ({first_line(error)}).") from None


def check_size(values: Mapping[str, Any], family: Family, num_bytes: int, location: object) -> Inventory:
    """Refuse a configuration with more parameters than the weights have bits, and return its inventory.

    The library would otherwise allocate all parameters before it notices that the weights are missing.

    Args:
        values: content of config.json.
        family: family of the PLM.
        num_bytes: size of the weights.
        location: file or folder, for messages.

    Returns:
        The inventory of the PLM with its LM head.

    Raises:
        ModelError: the configuration asks for too many parameters, has quantised weights, or is invalid.
    """
    with error_context(location):
        inventory = _inventory(values, family, "lm")
    if inventory.num_params > 8 * num_bytes:
        raise ModelError(
            f"{location}: config.json asks for {inventory.num_params:,} parameters, and the weights hold at most "
            f"{8 * num_bytes:,}."
        )
    return inventory
