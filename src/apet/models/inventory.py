"""The sites of a model, derived from its shapes: a model on the meta device, without weights, is sufficient."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from apet.models.families import Family, ModuleSpec, blocks_of
from apet.placement.sites import Inventory, Site


def inventory_of(model: PreTrainedModel, family: Family) -> Inventory:
    """List all sites of a model. Raises ModelError if a module of the family is missing."""
    specs = family.module_specs(model)
    vocab = {id(p): p.numel() for p in _vocab_parameters(model, specs)}
    total = sum(p.numel() for p in model.parameters())
    layers = max(len(blocks_of(model, path)) for path, _ in family.blocks.values())
    return Inventory.from_sites(family.name, layers, total, total - sum(vocab.values()), _sites_of(specs, model))


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


def _sites_of(specs: list[ModuleSpec], model: PreTrainedModel) -> Iterator[Site]:
    """Yield the sites of all modules. Entries of a weight that two modules share belong to the first (a tied head)."""
    seen: set[int] = set()
    for spec in specs:
        weight = id(model.get_submodule(spec.module).weight)
        for site in _sites(spec, model):
            if site.structure != "entry" or spec.fused or weight not in seen:
                yield site
        if spec.kind != "input":
            seen.add(weight)


def _sites(spec: ModuleSpec, model: PreTrainedModel) -> Iterator[Site]:
    module = model.get_submodule(spec.module)
    shape = tuple(module.get_parameter("weight").shape)
    if spec.fused:
        shape = (shape[0] // spec.fused.parts, *shape[1:])
    if spec.kind == "input":
        yield Site(spec.name, "token", shape[1:])
        return
    is_vocab = spec.kind in ("embedding", "head")
    yield Site(spec.name, "entry", shape, samplable=not is_vocab)
    if spec.kind == "embedding":
        return
    exists = getattr(module, "bias", None) is not None
    yield Site(spec.name, "bias", shape[:1], samplable=not (is_vocab or spec.bias_cancels), exists=exists)
    if spec.kind == "linear":
        yield Site(spec.name, "lowrank", shape)
    if spec.adapter_after:
        yield Site(spec.name, "bottleneck", shape[:1])
