"""Training away from the CPU, on PyTorch's meta device: it has shapes and no numbers, and, as a GPU would, refuses an
operation on tensors of which some are elsewhere. What a real GPU computes is not tested here.
"""

from __future__ import annotations

import pytest
import torch

from apet.errors import ConfigError
from apet.models.loading import PLM
from apet.placement import MethodSizes, Plan, make_plan, own_count
from apet.training.runtime import machine_class, make_deterministic
from apet.tuning import TunedPLM, initial_theta, split_by_structure
from tiny import CONFIGS, WORDS, tiny_plm

IDS = torch.randint(WORDS, (3, 7), generator=torch.Generator().manual_seed(1))
LENGTHS = torch.tensor([7, 5, 6])
FEW = torch.tensor([3, 8, 9])
AWAY = torch.device("meta")


@pytest.fixture
def undecided(monkeypatch: pytest.MonkeyPatch):
    """The library asks masks whether they hide anything; here they always may."""
    real = torch.Tensor.__bool__
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda x: False if x.is_meta else real(x))


def away(family: str) -> tuple[PLM, torch.Tensor]:
    """A PLM whose weights are away, and its word embeddings, which are not."""
    plm = tiny_plm(family)
    words = plm.model.get_input_embeddings().weight.clone()
    plm.model.to(AWAY)
    return plm, words


def without_words(plan: Plan) -> Plan:
    """Entries of word embeddings are found by their values, which meta tensors have not."""
    units = tuple(u for u in plan.units if not (u.site.structure == "entry" and "embedding" in u.site.place))
    return Plan(plan.placement, sum(u.size for u in units), plan.seed, units)


def plan_of(plm: PLM, placement: str, width: int) -> Plan:
    budget = {"uniform": 900, "prompt": 3 * width}.get(placement) or own_count(placement, plm.inventory, MethodSizes())
    return without_words(make_plan(plm.inventory, placement, budget, 3))


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("placement", ["none", "lora", "bitfit", "adapter", "prompt", "uniform", "full"])
def test_theta_and_all_that_is_computed_of_it_are_where_the_plm_is(family, placement, undecided):
    plm, words = away(family)
    plan = plan_of(plm, placement, words.shape[1])
    parts = split_by_structure(plan, initial_theta(plan, 1, words))
    with TunedPLM(plm, plan) as tuned:
        leaves = tuned.leaves(parts)
        logits = tuned(list(leaves.values()), IDS, LENGTHS, FEW)
        assert logits.device == AWAY and logits.shape == (3, 3)
        if parts:
            torch.nn.functional.cross_entropy(logits, torch.zeros(3, dtype=torch.long, device=AWAY)).backward()
        assert all(leaf.grad.device == AWAY for leaf in leaves.values())
        whole = tuned.distribute(list(parts.values()))
        with torch.no_grad(), tuned.merged_for_inference(whole):
            assert tuned(whole, IDS, LENGTHS, None).shape == (3, WORDS)


def test_a_gpu_that_is_not_there_is_one_clear_error():
    if torch.cuda.is_available():
        make_deterministic("cuda")
        assert machine_class("float32", torch.device("cuda"))["device"] != "cpu"
        return
    with pytest.raises(ConfigError, match="sees no GPU"):
        make_deterministic("cuda")
