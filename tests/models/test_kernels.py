"""Fast kernels: values and gradients match the library's within float tolerance."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from transformers.models.bloom.modeling_bloom import BloomGelu
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

from apet.models.kernels import Gelu, rms_norm
from tiny import CONFIGS, WORDS, tiny_plm

SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=3).map(lambda outer: (*outer, 8))


def drawn(shape: tuple[int, ...], scale: float, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return (scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)).requires_grad_()


def gradients(output: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    weights = drawn(output.shape, 1.0, 7).detach().to(output.dtype)
    return torch.autograd.grad((output * weights).sum(), inputs)


@given(shape=SHAPES, scale=st.sampled_from([0.01, 1.0, 5.0, 40.0]), seed=st.integers(0, 99))
@settings(deadline=None)
def test_gelu_value_and_gradient_match_formula(shape, scale, seed):
    exact = drawn(shape, scale, seed)
    x = exact.detach().float().requires_grad_()
    right, found = F.gelu(exact, approximate="tanh"), Gelu()(x)
    torch.testing.assert_close(found.double(), right, atol=2e-6 * max(1, scale), rtol=2e-6)
    torch.testing.assert_close(gradients(found, x)[0].double(), gradients(right, exact)[0], atol=2e-5, rtol=1e-5)
    with torch.no_grad():
        assert torch.equal(Gelu()(x), found)


def test_gelu_extreme_inputs_give_finite_gradients():
    x = torch.tensor([-1e4, -80.0, -0.0, 0.0, 80.0, 1e4], requires_grad=True)
    before = x.detach().clone()
    y = Gelu()(x)
    assert y.tolist() == [0.0, 0.0, 0.0, 0.0, 80.0, 1e4]
    assert gradients(y, x)[0].isfinite().all()
    assert torch.equal(x.detach(), before)


def test_gelu_bfloat16_matches_library():
    x = drawn((4, 8), 2.0, 3, torch.bfloat16)
    assert torch.equal(Gelu()(x), F.gelu(x, approximate="tanh"))
    assert (Gelu()(x) - BloomGelu()(x)).abs().max() < 0.05


@pytest.mark.parametrize("kind", [LlamaRMSNorm, T5LayerNorm])
@given(shape=SHAPES, scale=st.sampled_from([1e-3, 1.0, 50.0]), seed=st.integers(0, 99))
@settings(deadline=None)
def test_rms_norm_value_and_gradients_match_library(kind, shape, scale, seed):
    norm = kind(8)
    norm.weight = nn.Parameter(drawn((8,), 1.0, seed + 1, torch.float32).detach())
    x = drawn(shape, scale, seed, torch.float32)
    right, found = norm(x), rms_norm(norm, x)
    torch.testing.assert_close(found, right, atol=1e-6, rtol=1e-5)
    for one, other in zip(gradients(found, x, norm.weight), gradients(right, x, norm.weight), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5 * max(1.0, 1 / scale), rtol=1e-4)
    assert torch.equal(rms_norm(norm, x.bfloat16()), norm(x.bfloat16()))


@pytest.mark.parametrize("family", CONFIGS)
def test_install_kernels_logits_match_library(family):
    ids = torch.randint(WORDS, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[1] * 9, [1] * 6 + [0] * 3, [1] * 8 + [0]])
    inputs = {"input_ids": ids, "attention_mask": mask} | ({"decoder_input_ids": ids[:, :4]} if family == "t5" else {})
    with torch.no_grad():
        fused, right = (tiny_plm(family, fused=way).model(**inputs).logits for way in (True, False))
    kept = slice(None) if family == "t5" else mask.bool()
    torch.testing.assert_close(fused[kept], right[kept], atol=2e-5, rtol=1e-5)
