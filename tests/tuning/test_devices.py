"""Devices other than the CPU, represented by PyTorch's meta device.

The meta device has shapes without numbers and, like a GPU, refuses operations on tensors of several devices.
"""

from __future__ import annotations

import pytest
import torch

from apet.errors import ConfigError
from apet.models.loading import PLM
from apet.placement import MethodSizes, Plan, make_plan, own_count
from apet.training.runtime import machine_type, make_deterministic
from apet.tuning import TunedPLM, split_by_structure
from tiny import CONFIGS, WORDS, tiny_plm

IDS = torch.randint(WORDS, (3, 7), generator=torch.Generator().manual_seed(1))
LENGTHS = torch.tensor([7, 5, 6])
FEW = torch.tensor([3, 8, 9])
AWAY = torch.device("meta")


@pytest.fixture
def undecided(monkeypatch: pytest.MonkeyPatch):
    """Let transformers treat attention masks on the meta device as not empty."""
    real = torch.Tensor.__bool__
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda x: False if x.is_meta else real(x))


def away(family: str) -> tuple[PLM, torch.Tensor]:
    """Return a PLM on the meta device, and its word embeddings on the CPU."""
    plm = tiny_plm(family)
    words = plm.model.get_input_embeddings().weight.clone()
    plm.model.to(AWAY)
    return plm, words


def without_words(plan: Plan) -> Plan:
    """Remove entries of word embeddings, because finding them needs values, which meta tensors lack."""
    units = tuple(u for u in plan.units if not (u.site.structure == "entry" and "embedding" in u.site.place))
    return Plan(plan.placement, sum(u.size for u in units), plan.seed, units)


def plan_of(plm: PLM, placement: str, width: int) -> Plan:
    budget = {"uniform": 900, "prompt": 3 * width}.get(placement) or own_count(placement, plm.inventory, MethodSizes())
    return without_words(make_plan(plm.inventory, placement, budget, 3))


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize(
    "placement", ["none", "lora", "bitfit", "adapter", "prompt", "layernorm", "ia3", "prefix", "uniform", "full"]
)
def test_tuned_plm_computes_on_the_device_of_the_plm(family, placement, undecided):
    plm, words = away(family)
    plan = plan_of(plm, placement, words.shape[1])
    parts = split_by_structure(plan, torch.zeros(plan.budget))
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


def test_make_deterministic_without_a_gpu_raises_config_error():
    if torch.cuda.is_available():
        make_deterministic("cuda")
        assert machine_type("float32", torch.device("cuda"))["device"] != "cpu"
        return
    with pytest.raises(ConfigError, match="sees no GPU"):
        make_deterministic("cuda")
