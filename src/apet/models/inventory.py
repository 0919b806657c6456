"""The sites of a model, read off its shapes: a model on the meta device, without weights, is enough."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from apet.models.families import Family, ModuleSpec, blocks_of, family_of
from apet.placement.sites import Inventory, Site


def inventory_of(model: PreTrainedModel) -> Inventory:
    """All sites of a model of a supported family. Raises ModelError for another architecture."""
    family = family_of(model.config.model_type)
    places = family.places(model)
    sites = list(_sites_of(places, model))
    words = {id(p): p.numel() for p in _word_parameters(model, places)}
    total = sum(p.numel() for p in model.parameters())
    layers = max(len(blocks_of(model, path)) for path, _ in family.blocks.values())
    return Inventory.of(family.name, layers, total, total - sum(words.values()), sites)


def shapes_of(config: PretrainedConfig) -> PreTrainedModel:
    """A model of this configuration with shapes and no numbers (meta device)."""
    family: Family = family_of(config.model_type)
    with torch.device("meta"):
        model = family.class_of(config)(config)
        family.untie_head(model)
    return model


def _word_parameters(model: PreTrainedModel, places: list[ModuleSpec]) -> Iterator[nn.Parameter]:
    """Embeddings of words and the LM head, a tied weight once."""
    for place in places:
        if place.kind in ("embedding", "head"):
            yield from model.get_submodule(place.module).parameters(recurse=False)


def _sites_of(places: list[ModuleSpec], model: PreTrainedModel) -> Iterator[Site]:
    """Sites of all places; the entries of a weight that two places share (a tied head) belong to the first."""
    seen: set[int] = set()
    for place in places:
        weight = id(model.get_submodule(place.module).weight)
        for site in _sites(place, model):
            if site.structure != "entry" or place.fused or weight not in seen:
                yield site
        if place.kind != "input":
            seen.add(weight)


def _sites(place: ModuleSpec, model: PreTrainedModel) -> Iterator[Site]:
    module = model.get_submodule(place.module)
    shape = tuple(module.get_parameter("weight").shape)
    if place.fused:
        shape = (shape[0] // place.fused.parts, *shape[1:])
    if place.kind == "input":
        yield Site(place.name, "token", shape[1:])
        return
    words = place.kind in ("embedding", "head")
    yield Site(place.name, "entry", shape, samplable=not words)
    if place.kind == "embedding":
        return
    present = getattr(module, "bias", None) is not None
    yield Site(place.name, "bias", shape[:1], samplable=not (words or place.bias_cancels), exists=present)
    if place.kind == "linear":
        yield Site(place.name, "lowrank", shape)
    if place.adapter_after:
        yield Site(place.name, "bottleneck", shape[:1])
