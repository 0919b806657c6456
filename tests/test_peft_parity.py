"""Low-rank units and virtual tokens against PEFT: the same values, the same logits and gradients, in every family.

A failure names the largest differences that the family shows, relative to the largest value of its kind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, TaskType, get_peft_model

from apet.placement import Plan, Units
from apet.tuning import TunedPLM, layout
from tiny import CONFIGS, DECODER, WORDS, tiny_plm

RANK = 2
EVERY_WORD = torch.arange(WORDS)
HEADS = 2


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(WORDS, (3, 7), generator=generator), torch.tensor([7, 7, 7])


@pytest.mark.parametrize("family", CONFIGS)
def test_lowrank_units_are_peft_lora(family):
    """At every linear map that is a separate module."""
    places = {p.name: p for p in tiny_plm(family).family.module_specs(tiny_plm(family).model)}
    _compare(family, [name for name, place in places.items() if place.kind == "linear" and not place.fused], RANK)


@pytest.mark.parametrize("family", ["bloom", "gpt_neox"])
def test_lowrank_units_inside_a_fused_map_are_peft_lora_on_all_of_it(family):
    """Ranks of query and value are ranks of the fused map with B zero outside their rows."""
    _compare(family, [f"decoder.{i}.attention.{part}" for i in range(2) for part in ("query", "value")], 2 * RANK)


def _compare(family: str, names: list[str], rank: int) -> None:
    """Compare units at these places with PEFT's LoRA of a rank on their modules."""
    plm, (ids, lengths) = tiny_plm(family), rows()
    places = {p.name: p for p in plm.family.module_specs(plm.model)}
    sites = [s for s in plm.inventory.sites if s.structure == "lowrank" and s.place in names]
    assert len(sites) == len(names)
    plan = Plan("test", sum(RANK * s.cost for s in sites), 0, tuple(Units(s, RANK) for s in sites))
    theta = 0.2 * torch.randn(plan.budget, generator=torch.Generator().manual_seed(2))
    ours = theta.clone().requires_grad_()
    with TunedPLM(plm, plan) as tuned:
        logits = tuned([ours], ids, lengths, EVERY_WORD)
        logits.square().sum().backward()

    modules = sorted({places[s.place].module for s in sites})
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=modules, lora_dropout=0.0)
    wrapped = get_peft_model(tiny_plm(family, fused=False).model, config).eval()
    seats, expected = list(_seats(plan, places, wrapped.base_model.model)), torch.zeros_like(theta)
    with torch.no_grad():
        for _, layer, _, _ in seats:
            layer.lora_B["default"].weight.zero_()
        for theta_slice, layer, ranks, owned in seats:
            a, b = _factors(theta_slice, theta)
            layer.lora_A["default"].weight[ranks] = a
            layer.lora_B["default"].weight[owned, ranks] = b.T
    theirs = _read(family, wrapped, ids, plm.family.answer_offset)
    theirs.square().sum().backward()
    for theta_slice, layer, ranks, owned in seats:
        a, b = _factors(theta_slice, expected)
        a.copy_(layer.lora_A["default"].weight.grad[ranks])
        b.copy_(layer.lora_B["default"].weight.grad[owned, ranks].T)
    logits, theirs = logits.detach(), theirs.detach()
    errors = {
        "logits": float((logits - theirs).abs().max() / theirs.abs().max()),
        "gradients": float((ours.grad - expected).abs().max() / expected.abs().max()),
    }
    assert max(errors.values()) < 2e-5, f"{family}: largest differences from PEFT, relative: {errors}"


def _seats(plan: Plan, places: dict, model) -> Iterator[tuple]:
    """Return (slice, PEFT's layer, its ranks, its output rows) of each site."""
    used = Counter()
    for theta_slice in layout(plan):
        place = places[theta_slice.units.site.place]
        layer = model.get_submodule(place.module)
        ranks = slice(used[place.module], used[place.module] + RANK)
        used[place.module] += RANK
        owned = torch.arange(layer.out_features)
        if place.fused:  # head by head: its query, its key, its value
            part = ("query", "key", "value").index(place.name.rpartition(".")[2])
            owned = owned.view(HEADS, 3, -1)[:, part].flatten()
        yield theta_slice, layer, ranks, owned.view(-1)


def _factors(theta_slice, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A [rank, d_in] and B [rank, d_out] of a slice of θ or of its gradient."""
    outputs, inputs = theta_slice.units.site.shape
    return values[theta_slice.start : theta_slice.stop].view(RANK, inputs + outputs).split((inputs, outputs), dim=1)


def _read(family: str, model, ids: torch.Tensor, theta_slice: int) -> torch.Tensor:
    if family == "t5":
        return model(input_ids=ids, decoder_input_ids=torch.tensor([DECODER]).expand(len(ids), -1)).logits[:, -1]
    return model(input_ids=ids).logits[:, ids.shape[1] - theta_slice]


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
