"""Merged exports: an ordinary Hugging Face checkpoint with θ added to its weights and biases, and factors in them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from apet.export.tuned_model import TunedModel, describe_sites
from apet.tuning import ThetaSlice, layout
from apet.tuning.structures import flat_positions
from apet.tuning.tuned_plm import rows_of


def unsupported(model: TunedModel) -> list[str]:
    """List the parts of a tuned model that a checkpoint of its architecture cannot represent."""
    units = model.plan.units
    inserted = [u for u in units if u.site.structure in ("bottleneck", "token", "prefix")]
    absent = [u for u in units if u.site.structure == "bias" and not u.site.exists]
    parts = [f"{describe_sites(inserted)} (not part of the architecture)"] if inserted else []
    parts += [f"{describe_sites(absent)} (the architecture has no bias)"] if absent else []
    return parts + (["a classification head"] if model.plm.head == "classification" else [])


def write_merged(model: TunedModel, folder: Path) -> None:
    """Write float32 weights, configuration and tokenizer. A narrower dtype would round small updates away."""
    merged_model(model).save_pretrained(folder)
    model.plm.tokenizer.save_pretrained(folder)


@torch.no_grad()
def merged_model(model: TunedModel) -> PreTrainedModel:
    """Copy the PLM in float32 and add each update to its weight or bias, then multiply. The PLM itself is unchanged."""
    plm = model.plm
    modules = {spec.name: spec for spec in plm.family.module_specs(plm.model)}
    merged = copy.deepcopy(plm.model).float()
    for part in layout(model.plan):
        units = part.units
        site, spec = units.site, modules[units.site.place]
        module: Any = merged.get_submodule(spec.module)
        index = None if units.indices is None else torch.as_tensor(units.indices).to(plm.device)
        positions = flat_positions(site.shape, rows_of(spec, plm), index).to(plm.device)
        values = model.theta[part.start : part.stop].to(plm.device)
        if site.structure == "scale":
            _multiply(module, spec.name.endswith(".ffn.down"), positions, 1 + values)
            continue
        parameter = module.get_parameter("bias" if site.structure == "bias" else "weight")
        # In place, so that tied weights stay tied.
        parameter.view(-1).index_add_(0, positions, _update(part, values))
    return merged


def _multiply(module: Any, is_input: bool, positions: Tensor, factors: Tensor) -> None:
    """Multiply inputs of a linear map, or outputs together with their biases."""
    if is_input:
        module.weight[:, positions] *= factors
        return
    module.weight[positions] *= factors[:, None]
    if module.bias is not None:
        module.bias[positions] *= factors


def _update(part: ThetaSlice, values: Tensor) -> Tensor:
    """Flat update: of the chosen scalars, or of the complete weight if it is low-rank (B A)."""
    if part.units.site.structure != "lowrank":
        return values
    outputs, inputs = part.units.site.shape
    a, b = values.view(part.units.count, -1).split((inputs, outputs), dim=1)
    return (b.T @ a).flatten()
