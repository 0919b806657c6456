"""Methods against PEFT's: the same values, the same logits and gradients, in every family.

A failure names the largest differences that the family shows, relative to the largest value of its kind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from peft import (
    IA3Config,
    LNTuningConfig,
    LoraConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    TaskType,
    get_peft_model,
)

from apet.models.loading import PLM
from apet.placement import MethodSizes, Plan, Units, make_plan, own_count
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
    plm, (ids, _) = tiny_plm(family), rows()
    places = {p.name: p for p in plm.family.module_specs(plm.model)}
    sites = [s for s in plm.inventory.sites if s.structure == "lowrank" and s.place in names]
    assert len(sites) == len(names)
    plan = Plan("test", sum(RANK * s.cost for s in sites), 0, tuple(Units(s, RANK) for s in sites))
    theta = 0.2 * torch.randn(plan.budget, generator=torch.Generator().manual_seed(2))
    logits, gradient = _ours(plm, plan, theta)

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
    _check_equal(family, (logits, gradient), (theirs, expected))


def _ours(plm: PLM, plan: Plan, theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits, and the gradient of their squares with respect to θ."""
    theta = theta.clone().requires_grad_()
    with TunedPLM(plm, plan) as tuned:
        logits = tuned([theta], *rows(), EVERY_WORD)
        logits.square().sum().backward()
    return logits, theta.grad


def _check_equal(family: str, ours: tuple, theirs: tuple) -> None:
    """Compare logits and gradients, relative to the largest."""
    errors = {
        name: float((a - b).abs().max() / b.abs().max())
        for name, a, b in zip(("logits", "gradients"), ours, theirs, strict=True)
    }
    assert max(errors.values()) < 2e-5, f"{family}: largest differences from PEFT, relative: {errors}"


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("placement", ["layernorm", "ia3"])
def test_norms_and_factors_are_peft_ln_tuning_and_ia3(family, placement):
    plm, (ids, _) = tiny_plm(family), rows()
    places = {p.name: p for p in plm.family.module_specs(plm.model)}
    plan = make_plan(plm.inventory, placement, own_count(placement, plm.inventory, MethodSizes()), 1)
    theta = 0.2 * torch.randn(plan.budget, generator=torch.Generator().manual_seed(2))
    modules = sorted({places[units.site.place].module for units in plan.units})
    down = sorted(place.module for place in places.values() if place.name.endswith(".ffn.down"))
    config = LNTuningConfig(target_modules=modules)
    if placement == "ia3":
        config = IA3Config(target_modules=modules, feedforward_modules=down)
    wrapped = get_peft_model(tiny_plm(family, fused=False).model, config).eval()
    slices = []
    for theta_slice in layout(plan):
        site = theta_slice.units.site
        place, layer = places[site.place], wrapped.base_model.model.get_submodule(places[site.place].module)
        name = {"scale": "ia3_l.default", "entry": "ln_tuning_layers.default.weight"}.get(site.structure)
        parameter = layer.get_parameter(name or "ln_tuning_layers.default.bias")
        owned = place.fused.rows(len(parameter), HEADS) if place.fused else torch.arange(parameter.numel())
        slices.append((parameter, owned))
        parameter.data.view(-1)[owned] += theta[theta_slice.start : theta_slice.stop]
    theirs = _read(family, wrapped, ids, plm.family.answer_offset)
    theirs.square().sum().backward()
    expected = torch.cat([parameter.grad.view(-1)[owned] for parameter, owned in slices])
    _check_equal(family, _ours(plm, plan, theta), (theirs, expected))


TASKS = {"t5": TaskType.SEQ_2_SEQ_LM, "bert": TaskType.FEATURE_EXTRACTION}


@pytest.mark.parametrize("family", CONFIGS)
def test_prefix_is_peft_prefix_tuning(family):
    """PEFT gives a T5 with two blocks in the decoder the same pairs in both."""
    plm, (ids, _) = tiny_plm(family), rows()
    plan = make_plan(plm.inventory, "prefix", own_count("prefix", plm.inventory, MethodSizes(prefix_length=3)), 1)
    width, heads = plan.units[0].site.shape[0], 1 if family == "llama" else HEADS
    sizes = {"num_virtual_tokens": 3, "token_dim": width, "num_attention_heads": heads, "num_layers": 2}
    config = PrefixTuningConfig(task_type=TASKS.get(family, TaskType.CAUSAL_LM), **sizes)
    wrapped = get_peft_model(tiny_plm(family, fused=False).model, config).eval()
    weight = wrapped.prompt_encoder["default"].embedding.weight
    assert weight.shape == (3, 4 * width)
    weight.data = 0.5 * torch.randn(3, 4 * width, generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    if family == "t5":
        begun = torch.tensor([DECODER]).expand(len(ids), -1)
        theirs = wrapped(input_ids=ids, attention_mask=mask, decoder_input_ids=begun).logits[:, -1]
    else:
        theirs = wrapped(input_ids=ids, attention_mask=mask).logits[:, ids.shape[1] - plm.family.answer_offset]
    theirs.square().sum().backward()

    pairs = weight.detach().clone().requires_grad_()
    blocks = pairs.view(3, 2, 2 * width)[:, [0, 0] if family == "t5" else [0, 1]]
    with TunedPLM(plm, plan) as tuned:
        logits = tuned([blocks.transpose(0, 1).flatten()], *rows(), EVERY_WORD)
        logits.square().sum().backward()
    _check_equal(family, (logits, pairs.grad), (theirs, weight.grad))


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
