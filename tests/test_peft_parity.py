"""Low-rank units and virtual tokens against PEFT: the same values, the same logits and gradients, in every family."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, TaskType, get_peft_model

from apet.placement import Plan, Units
from apet.tuning import TunedPLM, layout
from tiny import CONFIGS, DECODER, WORDS, tiny_plm

RANK = 2
EVERY_WORD = torch.arange(WORDS)


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(WORDS, (3, 7), generator=generator), torch.tensor([7, 7, 7])


@pytest.mark.parametrize("family", CONFIGS)
def test_lowrank_units_are_peft_lora(family):
    """At every linear map that is a module of its own (PEFT adapts a fused query, key and value as one)."""
    plm, (ids, lengths) = tiny_plm(family), rows()
    places = {p.name: p for p in plm.family.places(plm.model)}
    sites = [s for s in plm.inventory.sites if s.structure == "lowrank" and not places[s.place].fused]
    plan = Plan("test", sum(RANK * s.cost for s in sites), 0, tuple(Units(s, RANK) for s in sites))
    theta = 0.2 * torch.randn(plan.budget, generator=torch.Generator().manual_seed(2))

    ours = theta.clone().requires_grad_()
    with TunedPLM(plm, plan) as tuned:
        logits = tuned([ours], ids, lengths, EVERY_WORD)
        logits.square().sum().backward()

    modules = [places[s.place].module for s in sites]
    wrapped = get_peft_model(
        tiny_plm(family, fused=False).model,
        LoraConfig(r=RANK, lora_alpha=RANK, target_modules=modules, lora_dropout=0.0),
    ).eval()
    layers = [wrapped.base_model.model.get_submodule(module) for module in modules]
    with torch.no_grad():
        for slot, layer in zip(layout(plan), layers, strict=True):
            a, b = _factors(slot, theta)
            layer.lora_A["default"].weight.copy_(a)
            layer.lora_B["default"].weight.copy_(b.T)
    theirs = _read(family, wrapped, ids, plm.family.slot)
    theirs.square().sum().backward()

    torch.testing.assert_close(logits, theirs, atol=1e-4, rtol=1e-4)
    for slot, layer in zip(layout(plan), layers, strict=True):
        a, b = _factors(slot, ours.grad)
        torch.testing.assert_close(a, layer.lora_A["default"].weight.grad, atol=1e-2, rtol=1e-3)
        torch.testing.assert_close(b.T, layer.lora_B["default"].weight.grad, atol=1e-2, rtol=1e-3)


def _factors(slot, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A [rank, d_in] and B [rank, d_out] of a slot's part of θ or of its gradient."""
    outputs, inputs = slot.units.site.shape
    return values[slot.start : slot.stop].view(RANK, inputs + outputs).split((inputs, outputs), dim=1)


def _read(family: str, model, ids: torch.Tensor, slot: int) -> torch.Tensor:
    if family == "t5":
        return model(input_ids=ids, decoder_input_ids=torch.tensor([DECODER]).expand(len(ids), -1)).logits[:, -1]
    return model(input_ids=ids).logits[:, ids.shape[1] - slot]


@pytest.mark.parametrize("family", ["bloom", "gpt_neox", "llama"])
def test_tokens_are_peft_prompt_tuning(family):
    plm, (ids, lengths) = tiny_plm(family), rows()
    site = next(s for s in plm.inventory.sites if s.structure == "token")
    plan = Plan("test", 3 * site.cost, 0, (Units(site, 3),))
    theta = 0.5 * torch.randn(plan.budget, generator=torch.Generator().manual_seed(2))
    ours = theta.clone().requires_grad_()
    with TunedPLM(plm, plan) as tuned:
        logits = tuned([ours], ids, lengths, EVERY_WORD)
        logits.square().sum().backward()

    config = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=3)
    wrapped = get_peft_model(tiny_plm(family, fused=False).model, config).eval()
    weight = wrapped.prompt_encoder["default"].embedding.weight
    with torch.no_grad():
        weight.copy_(theta.view(3, -1))
    theirs = wrapped(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, -1]
    theirs.square().sum().backward()
    torch.testing.assert_close(logits, theirs, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours.grad.view(3, -1), weight.grad, atol=1e-2, rtol=1e-3)
