"""Merged: an ordinary Hugging Face checkpoint whose weights have θ in them, for structures that add to weights."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from apet.export.tuned_model import TunedModel, sites_said
from apet.tuning import ThetaSlice, layout
from apet.tuning.structures import Scatter
from apet.tuning.tuned_plm import rows_of


def obstacles(model: TunedModel) -> list[str]:
    """What of a tuned model a checkpoint of its architecture has no place for."""
    units = model.plan.units
    blocks = [u for u in units if u.site.structure in ("bottleneck", "token")]
    absent = [u for u in units if u.site.structure == "bias" and not u.site.exists]
    found = [f"{sites_said(blocks)}, which the architecture has no part for"] if blocks else []
    found += [f"{sites_said(absent)}, where the architecture has no bias"] if absent else []
    return found + (["a trained head, whose outputs are labels"] if model.plm.head == "classification" else [])


def write_merged(model: TunedModel, folder: Path) -> None:
    """Weights in float32, where θ's digits survive, with configuration and tokenizer."""
    merged(model).save_pretrained(folder)
    model.plm.tokenizer.save_pretrained(folder)


@torch.no_grad()
def merged(model: TunedModel) -> PreTrainedModel:
    """A copy of the PLM in float32, every update added to the weight or bias it is of; the PLM stays as it is."""
    plm, slots = model.plm, layout(model.plan)
    places = {place.name: place for place in plm.family.module_specs(plm.model)}
    found = copy.deepcopy(plm.model).float()
    for slot in slots:
        site, place = slot.units.site, places[slot.units.site.place]
        parameter = found.get_submodule(place.module).get_parameter("bias" if site.structure == "bias" else "weight")
        index = None if slot.units.indices is None else torch.as_tensor(slot.units.indices).to(plm.device)
        scatter = Scatter(site.shape, rows_of(place, plm), index)
        # In place, so that what is tied stays tied.
        parameter.copy_(scatter(parameter, _update(slot, model.theta[slot.start : slot.stop].to(plm.device))))
    return found


def _update(slot: ThetaSlice, values: Tensor) -> Tensor:
    """Of the chosen scalars, flat; of all scalars of a map where its update is of low rank."""
    if slot.units.site.structure != "lowrank":
        return values
    outputs, inputs = slot.units.site.shape
    a, b = values.view(slot.units.count, -1).split((inputs, outputs), dim=1)
    return (b.T @ a).flatten()
