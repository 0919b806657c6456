"""Independence of memory addresses: the same bytes wherever the frozen weights and θ begin, for every structure.

Measured on AMD Zen 4 with PyTorch 2.13.0 by `MKL_CBWR= pytest tests/tuning/test_alignment.py`, which leaves MKL without
its reproducible mode: 18 of the 100 cases differ. Moved weights change the bytes of one row in bloom and bert (every
structure but entry), moved θ those of bottleneck in every family; the offsets are 4, 8, 40 and 56, never a multiple of
16. No test demands that, for the kernels of another CPU may differ less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain

import numpy as np
import pytest
import torch

from apet.core.arithmetic import cpu_flags, instruction_sets
from apet.models.loading import PLM
from apet.placement import STRUCTURES, Plan, Units
from apet.placement.sites import SCALARS
from apet.training.runtime import make_deterministic
from apet.tuning import TunedPLM
from tiny import CONFIGS, WORDS, tiny_plm

make_deterministic()
pytestmark = pytest.mark.skipif(
    not {"avx2", "fma"} <= cpu_flags(), reason="apet pins nothing on a CPU without AVX2, and promises nothing there"
)
LINE = 64
"""Bytes of a cache line, at whose start PyTorch's own tensors begin."""
OFFSETS = (0, 4, 8, 16, 32, 40, 56)
"""Bytes behind the start of a line."""
PLMS = {family: tiny_plm(family) for family in CONFIGS}
Found = tuple[torch.Tensor, torch.Tensor]


def moved(tensor: torch.Tensor, offset: int) -> torch.Tensor:
    """Copy a tensor to an address so many bytes behind the start of a line."""
    size = tensor.element_size()
    room = torch.empty(tensor.numel() + 2 * LINE // size, dtype=tensor.dtype)
    first = (-room.data_ptr() % LINE + offset) // size
    copy = room[first : first + tensor.numel()].view(tensor.shape).copy_(tensor)
    assert copy.data_ptr() % LINE == offset
    return copy


@contextmanager
def weights_at(plm: PLM, offset: int) -> Iterator[None]:
    """Move all weights and buffers of a PLM, and put them back afterwards."""
    frozen = list(chain(plm.model.parameters(), plm.model.buffers()))
    before = [tensor.data for tensor in frozen]
    for tensor in frozen:
        tensor.data = moved(tensor.data, offset if tensor.is_floating_point() else 0)
    try:
        yield
    finally:
        for tensor, data in zip(frozen, before, strict=True):
            tensor.data = data


def plan_of(plm: PLM, structure: str) -> Plan:
    """Build a plan with one to three units at every site of a structure; of scalars, the first seven."""
    sites = [site for site in plm.inventory.sites if site.structure == structure]
    if structure in SCALARS:
        units = [Units(site, 7, np.arange(7)) for site in sites]
    else:
        units = [Units(site, 1 + number % 3) for number, site in enumerate(sites)]
    return Plan("test", sum(u.size for u in units), 0, tuple(units))


def logits_and_gradient(plm: PLM, plan: Plan, rows: int, offset: int = 0) -> Found:
    """Compute the logits of a padded batch and θ's gradient, with θ at an offset."""
    draw = torch.Generator().manual_seed(1)
    ids, lengths = torch.randint(WORDS, (3, 9), generator=draw)[:rows], torch.tensor([9, 6, 8])[:rows]
    theta = moved(0.2 * torch.randn(plan.budget, generator=draw), offset).requires_grad_()
    with TunedPLM(plm, plan) as tuned:
        logits = tuned([theta], ids, lengths, torch.arange(WORDS))
        logits.square().mean().backward()
    assert logits.isfinite().all() and theta.grad.count_nonzero() > 0
    return logits.detach(), theta.grad


def differing(found: Callable[[int], Found]) -> list[int]:
    """List the offsets at which logits or gradient differ from those at the first."""
    first, *others = map(found, OFFSETS)
    return [n for n, other in zip(OFFSETS[1:], others, strict=True) if not all(map(torch.equal, other, first))]


def test_mkl_in_the_process_of_the_tests_is_in_its_reproducible_mode():
    """Ask MKL itself: a variable that is set after its first operation has no effect."""
    assert not instruction_sets()["blas"].startswith("MKL none")


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("rows", [1, 3])
def test_logits_and_gradient_with_moved_weights_are_bit_identical(family, structure, rows):
    plm = PLMS[family]
    plan = plan_of(plm, structure)

    def at(offset: int) -> Found:
        with weights_at(plm, offset):
            return logits_and_gradient(plm, plan, rows)

    assert differing(at) == []


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("rows", [1, 3])
def test_logits_and_gradient_with_moved_theta_are_bit_identical(family, structure, rows):
    plm = PLMS[family]
    plan = plan_of(plm, structure)
    assert differing(lambda offset: logits_and_gradient(plm, plan, rows, offset)) == []
