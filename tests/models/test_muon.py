"""Muon in float32: its iterations against exact arithmetic, and its steps against torch.optim.Muon."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from apet.models.pretraining.muon import COEFFICIENTS, Muon, orthogonalize


@settings(max_examples=30)
@given(st.integers(1, 24), st.integers(1, 24), st.integers(0, 10**6))
def test_iterations_apply_the_quintic_to_singular_values_only(rows: int, columns: int, seed: int) -> None:
    matrices = torch.randn(2, rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    u, values, v = torch.linalg.svd(matrices, full_matrices=False)
    x = values / values.norm(dim=1, keepdim=True)
    a, b, c = COEFFICIENTS
    for _ in range(3):
        x = a * x + b * x**3 + c * x**5
    wanted = u @ torch.diag_embed(x) @ v
    assert torch.allclose(orthogonalize(matrices, 3), wanted, atol=1e-9)
    single = orthogonalize(matrices.float(), 3)
    assert single.dtype == torch.float32 and torch.allclose(single.double(), wanted, atol=1e-4)


def test_five_iterations_bring_singular_values_near_one() -> None:
    matrix = torch.randn(1, 48, 32, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonalize(matrix, 5))
    assert values.min() > 0.6 and values.max() < 1.3


def test_matrix_of_zeros_stays_zero() -> None:
    assert torch.equal(orthogonalize(torch.zeros(2, 3, 5), 3), torch.zeros(2, 3, 5))


@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (16, 16)])
def test_steps_are_those_of_torchs_muon_to_bfloat16(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(2)
    start = torch.randn(shape, generator=generator)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    mine = Muon([{"params": [ours]}], lr=0.02)
    reference = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.0, ns_steps=3)
    for _ in range(5):
        gradient = torch.randn(shape, generator=generator)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        mine.step()
        reference.step()
    moved = (theirs - start).norm()
    assert moved > 0.1 and (ours - theirs).norm() < 0.02 * moved


def test_matrices_updated_together_are_updated_as_alone() -> None:
    generator = torch.Generator().manual_seed(3)
    together = [nn.Parameter(torch.randn(6, 4, generator=generator)) for _ in range(3)]
    alone = [nn.Parameter(p.detach().clone()) for p in together]
    gradients = [torch.randn(6, 4, generator=generator) for _ in together]
    for parameter, other, gradient in zip(together, alone, gradients, strict=True):
        parameter.grad, other.grad = gradient, gradient.clone()
    Muon([{"params": together}], lr=0.1).step()
    for other in alone:
        Muon([{"params": [other]}], lr=0.1).step()
    for parameter, other in zip(together, alone, strict=True):
        assert torch.allclose(parameter, other, atol=1e-6)
