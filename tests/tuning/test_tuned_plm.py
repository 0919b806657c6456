"""Tuned PLMs, for every family, structure and site: step 0 is the frozen PLM, every unit acts, nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from apet.models.loading import PLM
from apet.placement import STRUCTURES, MethodSizes, Plan, Units, make_plan, own_count, random_sites
from apet.placement.sites import SCALARS, capacity
from apet.tuning import TunedPLM, initial_theta, initial_theta_by_structure, layout, split_by_structure
from apet.tuning.low_rank_updates import updated_linear
from apet.tuning.output_updates import adapter
from tiny import CONFIGS, DECODER, WORDS, tiny_plm

torch.set_num_threads(1)
PLMS = {family: tiny_plm(family) for family in CONFIGS}
SITES = [(family, site) for family, plm in PLMS.items() for site in plm.inventory.sites]
EVERY_WORD = torch.arange(WORDS)


def batch(rows: int = 3, length: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(WORDS, (rows, length), generator=generator)
    return ids, torch.tensor([length, length - 2, length - 1])[:rows]


def read(family: str, plm: PLM, ids: torch.Tensor, length: torch.Tensor) -> torch.Tensor:
    """Return the library's logits [vocab] at the answer of one row, without padding."""
    with torch.no_grad():
        if family == "t5":
            return plm.model(input_ids=ids[None, :length], decoder_input_ids=torch.tensor([DECODER])).logits[0, -1]
        return plm.model(ids[None, :length]).logits[0, length - plm.family.answer_offset]


def library_logits(family: str, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Return logits of the library's unchanged model for a batch, row by row."""
    plm = tiny_plm(family, fused=False)
    return torch.stack([read(family, plm, row, length) for row, length in zip(ids, lengths, strict=True)])


def embeddings(family: str) -> torch.Tensor:
    return PLMS[family].model.get_input_embeddings().weight


def one_unit(site) -> Plan:
    """Make a plan with one unit of a site; of an embedding, in the row of a word of the batch."""
    index = None
    if site.structure in SCALARS:
        row = int(batch()[0][0, 0]) if site.place.endswith("embedding") else 0
        index = np.array([row * (site.shape[1] if len(site.shape) > 1 else 0) + 1])
    return Plan("test", site.cost, 0, (Units(site, 1, index),))


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("placement", ["none", "full", "lora", "bitfit", "adapter", "layernorm", "ia3"])
def test_named_method_at_step_0_is_the_frozen_plm(family, placement):
    plm, (ids, lengths) = PLMS[family], batch()
    plan = make_plan(plm.inventory, placement, own_count(placement, plm.inventory, MethodSizes()), 3)
    theta = initial_theta(plan, 4, embeddings(family))
    with TunedPLM(plm, plan) as tuned, torch.no_grad():
        logits = tuned([theta], ids, lengths, EVERY_WORD)
    torch.testing.assert_close(logits, library_logits(family, ids, lengths), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("structure", [name for name in STRUCTURES if name not in ("token", "prefix")])
def test_structure_at_step_0_is_the_frozen_plm(family, structure):
    plm, (ids, lengths) = PLMS[family], batch()
    budget = min(200, capacity(random_sites(plm.inventory, f"{structure}_only", MethodSizes())))
    plan = make_plan(plm.inventory, f"{structure}_only", budget, 3)
    assert plan.structures[structure] > budget / 2
    with TunedPLM(plm, plan) as tuned, torch.no_grad():
        logits = tuned([initial_theta(plan, 4, embeddings(family))], ids, lengths, EVERY_WORD)
    torch.testing.assert_close(logits, library_logits(family, ids, lengths), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("family", CONFIGS)
def test_prompt_at_step_0_is_the_frozen_plm_on_a_longer_text(family):
    plm, (ids, lengths) = PLMS[family], batch()
    words = torch.tensor([5, 9, 2])
    plan = make_plan(plm.inventory, "prompt", 3 * embeddings(family).shape[1], 3)
    with TunedPLM(plm, plan) as tuned, torch.no_grad():
        logits = tuned([embeddings(family)[words].flatten()], ids, lengths, EVERY_WORD)
    longer = torch.cat([words.expand(len(ids), -1), ids], dim=1)
    torch.testing.assert_close(logits, library_logits(family, longer, lengths + 3), atol=2e-5, rtol=1e-5)
    start = initial_theta(plan, 4, embeddings(family)).view(3, -1)
    assert all((embeddings(family) == row).all(dim=1).any() for row in start)


@pytest.mark.parametrize("family", ["bloom", "gpt_neox", "llama"])
def test_prefix_at_step_0_is_the_frozen_plm_on_a_longer_text(family):
    """With equally many pairs in all blocks. With fewer in a block, these are the pairs of the last words."""
    plm, (ids, lengths) = PLMS[family], batch()
    plan = make_plan(plm.inventory, "prefix", own_count("prefix", plm.inventory, MethodSizes()), 3)
    theta = initial_theta_by_structure(plm, plan, 4)["prefix"]
    with TunedPLM(plm, plan) as tuned, torch.no_grad():
        logits = tuned([theta], ids, lengths, EVERY_WORD)
    words = torch.randint(WORDS, (1, 10), generator=torch.Generator().manual_seed(4))
    longer = torch.cat([words.expand(len(ids), -1), ids], dim=1)
    torch.testing.assert_close(logits, library_logits(family, longer, lengths + 10), atol=2e-5, rtol=1e-5)
    first, second = (units.site for units in plan.units)
    uneven = Plan("test", 13 * first.cost, 0, (Units(first, 10), Units(second, 3)))
    expected = torch.cat((theta[: 10 * first.cost], theta[-3 * second.cost :]))
    assert torch.equal(initial_theta_by_structure(plm, uneven, 4)["prefix"], expected)


@pytest.mark.parametrize(("family", "site"), SITES, ids=[f"{f}-{s.name}" for f, s in SITES])
def test_single_unit_changes_logits_and_has_the_only_gradient(family, site):
    plm, (ids, lengths) = PLMS[family], batch()
    plan = one_unit(site)
    theta = (0.3 * torch.randn(site.cost, generator=torch.Generator().manual_seed(2))).requires_grad_()
    frozen = library_logits(family, ids, lengths)
    with TunedPLM(plm, plan) as tuned:
        logits = tuned([theta], ids, lengths, EVERY_WORD)
        logits.square().sum().backward()
    moved = (logits.detach() - frozen).abs().max()
    key_bias = site.place.endswith("attention.key") and site.structure == "bias"
    if key_bias and family in ("bert", "bloom", "t5"):  # it adds the same number to all scores of a query
        assert moved < 1e-4
        assert not site.samplable
    else:
        assert moved > 1e-4
        assert (theta.grad.abs() > 1e-6).all()
    assert all(p.grad is None for p in plm.model.parameters())


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("placement", ["full", "uniform", "adapter"])
def test_training_changes_theta_and_no_bit_of_the_plm(family, placement):
    plm, (ids, lengths) = PLMS[family], batch()
    before = {name: p.clone() for name, p in plm.model.state_dict().items()}
    budget = 700 if placement == "uniform" else own_count(placement, plm.inventory, MethodSizes())
    plan = make_plan(plm.inventory, placement, budget, 3)
    theta = initial_theta(plan, 4, embeddings(family))
    assert theta.shape == (budget,)
    leaf = theta.clone().requires_grad_()
    optimizer = torch.optim.SGD([leaf], lr=0.1)
    with TunedPLM(plm, plan) as tuned:
        for _ in range(2):
            tuned([leaf], ids, lengths, EVERY_WORD).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        trained = tuned([leaf], ids, lengths, EVERY_WORD).detach()
    assert not torch.equal(leaf.detach(), theta)
    assert not torch.allclose(trained, library_logits(family, ids, lengths), atol=1e-3)
    assert all(torch.equal(p, before[name]) for name, p in plm.model.state_dict().items())


@pytest.mark.parametrize("family", CONFIGS)
def test_tuned_plm_exit_removes_hooks(family):
    plm, (ids, lengths) = PLMS[family], batch()
    none = Plan("none", 0, 0, ())
    plan = make_plan(plm.inventory, "uniform", 900, 1)
    with TunedPLM(plm, none) as tuned, torch.no_grad():
        before = tuned([], ids, lengths, EVERY_WORD)
    with TunedPLM(plm, plan) as tuned, torch.no_grad():
        tuned([torch.randn(900)], ids, lengths, EVERY_WORD)
    with TunedPLM(plm, none) as tuned, torch.no_grad():
        assert torch.equal(tuned([], ids, lengths, EVERY_WORD), before)


@pytest.mark.parametrize("family", CONFIGS)
def test_full_matches_plm_with_theta_added_to_weights(family):
    """Full fine-tuning gives the library's logits with θ added to its parameters."""
    plm, (ids, lengths) = PLMS[family], batch()
    plan = make_plan(plm.inventory, "full", plm.inventory.num_params, 3)
    theta = 0.05 * torch.randn(plan.budget, generator=torch.Generator().manual_seed(2))
    with TunedPLM(plm, plan) as tuned, torch.no_grad():
        logits = tuned([theta], ids, lengths, EVERY_WORD)
    # The sum of squares of all changes is θ's own: nothing is left out and nothing is counted twice.
    other = tiny_plm(family)
    places = {p.name: p for p in plm.family.module_specs(plm.model)}
    with torch.no_grad():
        for theta_slice in layout(plan):
            site, place = theta_slice.units.site, places[theta_slice.units.site.place]
            parameter = other.model.get_submodule(place.module).get_parameter(
                "bias" if site.structure == "bias" else "weight"
            )
            rows = slice(None)
            if place.fused:
                rows = place.fused.rows(len(parameter), plm.model.config.num_attention_heads)
            parameter[rows] += theta[theta_slice.start : theta_slice.stop].view(site.shape)
        pairs = zip(other.model.parameters(), plm.model.parameters(), strict=True)
        changed = sum((a - b).square().sum() for a, b in pairs)
    expected = torch.stack([read(family, other, i, n) for i, n in zip(ids, lengths, strict=True)])
    torch.testing.assert_close(changed, theta.square().sum(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_layout_orders_theta_by_structure_site_and_unit():
    plan = make_plan(PLMS["bloom"].inventory, "uniform", 3000, 8)
    slots = layout(plan)
    assert [s.start for s in slots] == [0, *[s.stop for s in slots[:-1]]]
    assert slots[-1].stop == 3000
    theta = initial_theta(plan, 1, embeddings("bloom"))
    parts = split_by_structure(plan, theta)
    assert torch.equal(torch.cat(list(parts.values())), theta)
    assert {name: len(part) for name, part in parts.items()} == {n: c for n, c in plan.structures.items() if c}


def test_theta_split_by_structure_gives_equal_logits():
    plm, (ids, lengths) = PLMS["bloom"], batch()
    plan = make_plan(plm.inventory, "uniform", 3000, 8)
    theta = torch.randn(3000, generator=torch.Generator().manual_seed(2)) * 0.1
    with TunedPLM(plm, plan) as tuned, torch.no_grad():
        whole = tuned([theta], ids, lengths, EVERY_WORD)
        parts = tuned(list(split_by_structure(plan, theta).values()), ids, lengths, EVERY_WORD)
    assert torch.equal(whole, parts)


def test_initial_theta_depends_only_on_seed():
    plan = make_plan(PLMS["bloom"].inventory, "uniform", 3000, 8)
    starts = [initial_theta(plan, seed, embeddings("bloom")) for seed in (1, 1, 2)]
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


@pytest.mark.parametrize(("width", "factored"), [(16, False), (128, True)], ids=["merged", "factored"])
@pytest.mark.parametrize("family", CONFIGS)
def test_low_rank_updates_match_map_with_updated_weight(family, width, factored):
    """Low-rank units and a few entries, in fused and plain maps, equal W + Σ b aᵀ + entries."""
    plm, (ids, lengths) = tiny_plm(family, width=width), batch()
    places = {p.name: p for p in plm.family.module_specs(plm.model)}
    wanted = [
        s for s in plm.inventory.sites if places[s.place].kind == "linear" and s.structure in ("lowrank", "entry")
    ]
    units = [Units(s, 2, np.array([1, 17]) if s.structure == "entry" else None) for s in wanted]
    plan = Plan("test", sum(u.size for u in units), 0, tuple(units))
    theta = 16 / width * 0.2 * torch.randn(plan.budget, generator=torch.Generator().manual_seed(2))
    with TunedPLM(plm, plan) as tuned, torch.no_grad():
        assert bool(tuned.factored_maps) == factored
        logits = tuned([theta], ids, lengths, EVERY_WORD)
    other = tiny_plm(family, width=width)
    with torch.no_grad():
        for theta_slice in layout(plan):
            site, place = theta_slice.units.site, places[theta_slice.units.site.place]
            weight = other.model.get_submodule(place.module).weight
            rows = place.fused.rows(len(weight), 2) if place.fused else torch.arange(len(weight))
            values, (outputs, inputs) = theta[theta_slice.start : theta_slice.stop], site.shape
            if site.structure == "entry":
                update = torch.zeros(outputs * inputs).index_add(0, torch.tensor([1, 17]), values).view(site.shape)
            else:
                update = sum(torch.outer(unit[inputs:], unit[:inputs]) for unit in values.view(2, -1))
            weight[rows] += update
    expected = torch.stack([read(family, other, i, n) for i, n in zip(ids, lengths, strict=True)])
    tolerance = 1e-4 if width == 16 else 1e-3
    torch.testing.assert_close(logits, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("function", [updated_linear, adapter])
def test_gradient_of_thin_products_matches_finite_differences(function):
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()  # noqa: E731
    x, a, u = draw(2, 3, 5), draw(2, 5), draw(2, 4)
    arguments = (x, draw(4, 5).detach(), draw(4), a, u) if function is updated_linear else (None, x, a, draw(2, 1), a)
    assert torch.autograd.gradcheck(function, arguments)


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("placement", ["full", "lora", "uniform", "prompt", "ia3", "prefix"])
def test_merged_for_inference_gives_same_logits(family, placement):
    plm, (ids, lengths) = PLMS[family], batch()
    width = embeddings(family).shape[1]
    budget = {"uniform": 900, "prompt": 3 * width}.get(placement) or own_count(placement, plm.inventory, MethodSizes())
    plan = make_plan(plm.inventory, placement, budget, 3)
    theta = 0.2 * torch.randn(budget, generator=torch.Generator().manual_seed(2))
    with TunedPLM(plm, plan) as tuned, torch.no_grad():
        before = tuned([theta], ids, lengths, EVERY_WORD)
        with tuned.merged_for_inference([theta]):
            settled = tuned([theta], ids, lengths, EVERY_WORD)
            again = tuned([theta], ids[:1], lengths[:1], EVERY_WORD)
        after = tuned([theta], ids, lengths, EVERY_WORD)
    assert (before - library_logits(family, ids, lengths)).abs().max() > 1e-2
    torch.testing.assert_close(settled, before, atol=3e-5, rtol=1e-4)
    torch.testing.assert_close(again, before[:1], atol=3e-5, rtol=1e-4)
    assert torch.equal(after, before)
