"""BLOOM (BigScience 2022): a decoder with ALiBi positions, fused query, key and value, and a tied LM head."""

from __future__ import annotations

from torch import nn
from transformers import BloomForCausalLM
from transformers.models.bloom.modeling_bloom import BloomGelu

from apet.plms.families.base import Family, Fused, Place
from apet.plms.families.causal import Continuation, states

QKV = "self_attention.query_key_value"

BLOCK = (
    Place("attention.norm", "input_layernorm", "norm"),
    Place("attention.query", QKV, "linear", Fused(0)),
    Place("attention.key", QKV, "linear", Fused(1), inert_bias=True),
    Place("attention.value", QKV, "linear", Fused(2)),
    Place("attention.output", "self_attention.dense", "linear", ends_block=True),
    Place("ffn.norm", "post_attention_layernorm", "norm"),
    Place("ffn.up", "mlp.dense_h_to_4h", "linear"),
    Place("ffn.down", "mlp.dense_4h_to_h", "linear", ends_block=True),
)

OUTER = (
    Place("decoder.input", "transformer.word_embeddings", "input"),
    Place("decoder.embedding", "transformer.word_embeddings", "embedding"),
    Place("decoder.embedding.norm", "transformer.word_embeddings_layernorm", "norm"),
    Place("decoder.norm", "transformer.ln_f", "norm"),
)


def fuse(model: BloomForCausalLM) -> None:
    """The library's GELU makes many passes over memory; PyTorch's kernel for the same formula makes one."""
    for module in list(model.modules()):
        if isinstance(getattr(module, "gelu_impl", None), BloomGelu):
            module.gelu_impl = nn.GELU(approximate="tanh")


BLOOM = Family(
    name="bloom",
    classes={"bloom": BloomForCausalLM},
    outer=OUTER,
    blocks={"decoder": ("transformer.h", BLOCK)},
    states=states,
    write=Continuation,
    narrow=lambda config: f"transformer.h.{config.num_hidden_layers - 1}.self_attention",
    fuse=fuse,
)
