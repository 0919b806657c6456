"""BLOOM (BigScience 2022): a decoder with ALiBi positions, fused query, key and value, and a tied LM head."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import BloomForCausalLM, DynamicCache
from transformers.models.bloom.modeling_bloom import BloomAttention, BloomGelu, build_alibi_tensor

from apet.models import layouts
from apet.models.families.base import Family, at
from apet.models.families.causal import CausalDecoder, special_tokens, states
from apet.models.kernels import Gelu


def install_kernels(model: BloomForCausalLM) -> None:
    """Install a GELU with fewer passes over memory, and an attention that copies query, key and value once."""
    blocks: Iterable[Any] = model.transformer.h
    for block in blocks:
        if isinstance(block.mlp.gelu_impl, BloomGelu):
            block.mlp.gelu_impl = Gelu()
        block.self_attention.forward = partial(attend, block.self_attention)


def attend(
    attention: BloomAttention,
    hidden: Tensor,
    residual: Tensor,
    alibi: Tensor,
    attention_mask: Tensor | None = None,
    layer_past: DynamicCache | None = None,
    query_positions: Tensor | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Compute the library's attention sublayer on normalized states and add the residual.

    Args:
        attention: the library's module.
        hidden: normalized states, shape [rows, n, d].
        residual: states to add, shape [rows, n, d].
        alibi: biases of the attention scores, shape [rows × heads, 1, keys].
        attention_mask: mask to add to the scores.
        layer_past: cache of keys and values, which is extended.
        query_positions: positions at which states are returned, shape [rows, k]. None: all.

    Returns:
        States [rows, n or k, d], and None in place of the attention weights.
    """
    rows, heads = len(hidden), attention.num_heads
    fused = attention.query_key_value(hidden)
    # [3, rows, heads, n, d of a head], so that each of the three is a contiguous batch of matrices.
    query, key, value = fused.view(rows, -1, heads, 3, attention.head_dim).permute(3, 0, 2, 1, 4).contiguous().unbind()
    if layer_past is not None and attention.layer_idx is not None:
        key, value = layer_past.update(key, value, attention.layer_idx)
    bias = alibi.view(rows, heads, 1, -1)
    if attention_mask is not None:
        bias = bias + attention_mask
    if query_positions is not None:
        query = at(query.transpose(1, 2), query_positions).transpose(1, 2)
        residual = at(residual, query_positions)
        bias = at(bias.expand(rows, heads, fused.shape[1], -1).transpose(1, 2), query_positions).transpose(1, 2)
    query, key, value, bias = (x.flatten(0, 1) for x in (query, key, value, bias))
    scores = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=attention.inv_norm_factor)
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(scores.dtype)
    output = torch.bmm(weights, value).view(rows, heads, -1, attention.head_dim).transpose(1, 2).flatten(2)
    return residual + attention.dense(output), None


def extend_positions(attention: BloomAttention, forward: Callable, count: int, longest: int) -> Callable:
    """Extend ALiBi's biases by pairs in front of the text, at the positions -count, …, -1."""

    def extended(hidden: Tensor, residual: Tensor, *, alibi: Tensor, **kwargs: Any) -> tuple[Tensor, None]:
        ones = torch.ones(1, count + 1, device=alibi.device)
        bias = build_alibi_tensor(ones, attention.num_heads, torch.float32)
        before = (bias[..., :count] - bias[..., count:]).to(alibi.dtype).repeat(len(hidden), 1, 1)
        return forward(hidden, residual, alibi=torch.cat((before, alibi), dim=-1), **kwargs)

    return extended


BLOOM = Family(
    name="bloom",
    classes={"bloom": BloomForCausalLM},
    layout=layouts.BLOOM,
    states=states,
    decoder=CausalDecoder,
    special_tokens=special_tokens,
    last_attention=lambda config: f"transformer.h.{config.num_hidden_layers - 1}.self_attention",
    install_kernels=install_kernels,
    extend_positions=extend_positions,
)
