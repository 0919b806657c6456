"""Tuning of large PLMs: bfloat16 weights with a float32 θ, memory that grows with θ, gradient checkpointing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
import torch

from apet.models.loading import PLM
from apet.placement import STRUCTURES, MethodSizes, Plan, Units, make_plan, own_count
from apet.tuning import TunedPLM, initial_theta
from apet.tuning.output_updates import linear_entries
from tiny import CONFIGS, WORDS, tiny_plm
from toy_plans import NOTHING, batch, plan_of, theta_of

torch.set_num_threads(1)
WAYS = [(f, s) for f in CONFIGS for s in (*STRUCTURES, "all")]
EVERY_WORD = torch.arange(WORDS)


@cache
def plm_of(family: str, dtype: torch.dtype = torch.float32) -> PLM:
    """Make a tiny PLM whose float32 weights fit into bfloat16, so that both dtypes hold the same PLM."""
    plm = tiny_plm(family)
    if family == "t5":  # without 1/√d its attention is all on one position, and blind to small changes
        for name, parameter in plm.model.named_parameters():
            parameter.mul_(0.25 if name.endswith(".q.weight") else 0.7)
    plm.model.to(torch.bfloat16).to(dtype)
    return plm


def run(plm: PLM, plan: Plan, theta: torch.Tensor, words=EVERY_WORD, gradient_checkpointing: bool = False):
    """Return logits of words, and the gradient of a loss over them."""
    with TunedPLM(plm, plan, gradient_checkpointing) as tuned:
        logits = tuned([theta], *batch(), words)
        (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, torch.arange(4)), theta)
    return logits.detach(), gradient


def frozen_logits(plm: PLM) -> torch.Tensor:
    with TunedPLM(plm, NOTHING) as tuned, torch.no_grad():
        return tuned([], *batch(), EVERY_WORD)


def loaded_in(family: str) -> PLM:
    return plm_of(family, torch.bfloat16)


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("placement", ["full", "lora", "bitfit", "adapter", "layernorm", "ia3"])
def test_bfloat16_step_0_is_exactly_the_frozen_plm(family, placement):
    plm = loaded_in(family)
    plan = make_plan(plm.inventory, placement, own_count(placement, plm.inventory, MethodSizes()), 3)
    theta = initial_theta(plan, 4, plm.model.get_input_embeddings().weight)
    assert theta.dtype == torch.float32
    for words in (EVERY_WORD, None):
        with TunedPLM(plm, NOTHING) as tuned, torch.no_grad():
            frozen = tuned([], *batch(), words)
        with TunedPLM(plm, plan) as tuned, torch.no_grad():
            assert torch.equal(tuned([theta], *batch(), words), frozen)
    assert frozen.dtype == torch.float32


@pytest.mark.parametrize("many", [False, True], ids=["few", "many"])
@pytest.mark.parametrize(("family", "structure"), WAYS)
def test_bfloat16_gradient_is_close_to_float32(family, structure, many):
    exact, rough = plm_of(family), loaded_in(family)
    plan = plan_of(exact, structure, many)
    theta = theta_of(plan)
    logits, gradient = run(exact, plan, theta)
    rough_logits, rough_gradient = run(rough, plan, theta)
    assert rough_gradient.dtype == torch.float32
    assert (rough_logits - logits).abs().max() < 0.1 * logits.abs().max()
    assert torch.cosine_similarity(gradient, rough_gradient, dim=0) > 0.98


@pytest.mark.parametrize("family", CONFIGS)
def test_bfloat16_single_unit_changes_logits(family):
    plm = loaded_in(family)
    frozen = frozen_logits(plm)
    plan = plan_of(plm, "all")
    for units in plan.units:
        if not units.site.samplable and units.site.structure == "bias" and "key" in units.site.place:
            continue  # cancels in the softmax
        one = Plan("test", units.size, 0, (units,))
        with TunedPLM(plm, one) as tuned, torch.no_grad():
            moved = [tuned([theta_of(one, scale)], *batch(), EVERY_WORD) for scale in (0.3, -0.3, 2.0, 20.0)]
        assert not all(torch.equal(logits, frozen) for logits in moved), units.site.name


@pytest.mark.parametrize("family", CONFIGS)
def test_bfloat16_small_change_of_large_weight_is_kept(family):
    """W + θ in bfloat16 would round each of these θ away. Beside W they change the output."""
    plm = loaded_in(family)
    site = next(s for s in plm.inventory.sites if s.structure == "entry" and s.place.endswith("0.ffn.up"))
    module = next(p.module for p in plm.family.module_specs(plm.model) if p.name == site.place)
    weight = plm.model.get_submodule(module).weight
    signs = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)).sign()
    theta = 0.0015 * signs * weight.float()
    assert torch.equal((weight + theta).bfloat16(), weight)
    plan = Plan("test", site.units, 0, (Units(site, site.units),))
    frozen = frozen_logits(plm)
    with TunedPLM(plm, plan) as tuned, torch.no_grad():
        assert not torch.equal(tuned([theta.flatten()], *batch(), EVERY_WORD), frozen)
    x = torch.randn(50, site.shape[1], generator=torch.Generator().manual_seed(2)).bfloat16()
    change = linear_entries(site.shape, None, None)(x, x.new_zeros(50, site.shape[0]), theta.flatten())
    torch.testing.assert_close(change.float(), x.float() @ theta.T, rtol=0.02, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("many", [False, True], ids=["few", "many"])
@pytest.mark.parametrize(("family", "structure"), WAYS)
def test_gradient_checkpointing_gives_equal_bits(family, structure, many, dtype):
    plm = plm_of(family, dtype)
    plan = plan_of(plm, structure, many)
    logits, gradient = run(plm, plan, theta_of(plan))
    again, recomputed = run(plm, plan, theta_of(plan), gradient_checkpointing=True)
    assert torch.equal(logits, again)
    assert torch.equal(gradient, recomputed)
    assert gradient.abs().max() > 0
    assert not [block for block in plm.family.all_blocks(plm.model) if "forward" in vars(block)]


def test_gradient_checkpointing_ignores_calls_before_backward():
    plm = plm_of("bert")
    plan = plan_of(plm, "all", many=True)
    _, expected = run(plm, plan, theta_of(plan))
    theta = theta_of(plan)
    with TunedPLM(plm, plan, gradient_checkpointing=True) as tuned:
        loss = torch.nn.functional.cross_entropy(tuned([theta], *batch(), EVERY_WORD), torch.arange(4))
        with torch.no_grad():
            tuned([theta + 1], *batch(), EVERY_WORD)
        loss.backward()
    assert torch.equal(theta.grad, expected)


def saved_bytes(plm: PLM, plan: Plan, gradient_checkpointing: bool = False, words=EVERY_WORD) -> list[int]:
    """Return sizes of the tensors that a call stores for the backward pass, without the PLM's parameters."""
    theta = theta_of(plan)
    seen = {p.untyped_storage().data_ptr() for p in (*plm.model.parameters(), theta)}
    sizes = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in seen:
            seen.add(pointer)
            kept.append(tensor)  # so that no address is used twice
            sizes.append(tensor.untyped_storage().nbytes())
        return tensor

    kept: list[torch.Tensor] = []
    with TunedPLM(plm, plan, gradient_checkpointing) as tuned:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = tuned([theta], *batch(), words).square().sum()
        loss.backward()
    return sizes


@pytest.mark.parametrize(("family", "structure"), WAYS)
def test_gradient_checkpointing_stores_less(family, structure):
    plm = plm_of(family)
    plan = plan_of(plm, structure)
    assert sum(saved_bytes(plm, plan, gradient_checkpointing=True)) < 0.6 * sum(saved_bytes(plm, plan))


def wide(family: str) -> tuple[PLM, int]:
    """Return a PLM with a large vocabulary, and the bytes of its word embeddings."""
    plm = tiny_plm(family, vocabulary=5000)
    return plm, plm.model.get_input_embeddings().weight.nbytes


@pytest.mark.parametrize("family", CONFIGS)
def test_few_embedding_entries_allocate_no_vocabulary_sized_tensor(family):
    """No such tensor is stored for the backward pass or returned by any operation."""
    plm, size = wide(family)
    sites = [s for s in plm.inventory.sites if s.structure == "entry" and max(s.shape) == 5000]
    plan = Plan("test", 3 * len(sites), 0, tuple(Units(s, 3, np.array([5, 40, 41])) for s in sites))
    largest = Largest()
    with largest:
        assert sum(saved_bytes(plm, plan, words=torch.tensor([1, 2]))) < size / 2
    assert largest.bytes < size / 2


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """A recorder of the largest new tensor of any operation."""

    bytes = 0

    def __torch_dispatch__(self, operation, types: Sequence, args=(), kwargs=None):
        output = operation(*args, **(kwargs or {}))
        view = any(r.alias_info is not None for r in operation._schema.returns)
        for tensor in output if isinstance(output, (tuple, list)) else (output,):
            if isinstance(tensor, torch.Tensor) and not view:
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return output


@pytest.mark.parametrize("placement", ["lora", "adapter", "bitfit", "prompt", "uniform"])
@pytest.mark.parametrize("family", CONFIGS)
def test_small_plan_allocates_no_weight_sized_tensor(family, placement):
    """A step of a small plan never makes a tensor as large as a map's weight, or two of them if it has many entries."""
    plm = tiny_plm(family, width=256)
    budget = own_count(placement, plm.inventory, MethodSizes(2, 2, 2)) if placement != "uniform" else 1500
    plan = make_plan(plm.inventory, placement, budget, 3, MethodSizes(2, 2, 2))
    with Largest() as largest:
        saved_bytes(plm, plan, words=torch.tensor([1, 2]))
    # All factors are in one tensor. An entry has factors of inputs + outputs numbers.
    assert largest.bytes < 256 * 256 * 4 * (2 if placement == "uniform" else 1)


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("many", [False, True], ids=["few", "all"])
def test_logits_of_vocabulary_match_logits_of_words(family, many):
    """Entries of embeddings and head in θ: logits of the vocabulary equal logits of words."""
    plm = plm_of(family)
    plan = plan_of(plm, "entry", many)
    theta = theta_of(plan, 0.3)
    (logits, gradient), (whole, other) = run(plm, plan, theta), run(plm, plan, theta, words=None)
    torch.testing.assert_close(logits, whole, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(gradient, other, atol=1e-4, rtol=1e-3)
