"""GPT-NeoX (Black et al. 2022; Pythia): a decoder with rotary positions, fused query, key and value, parallel FFN."""

from __future__ import annotations

from transformers import GPTNeoXForCausalLM

from apet.models.families.base import Family, Fused, Place
from apet.models.families.causal import Continuation, states

QKV = "attention.query_key_value"

BLOCK = (
    Place("attention.norm", "input_layernorm", "norm"),
    Place("attention.query", QKV, "linear", Fused(0)),
    # Only a part of each head is rotated; the softmax cancels the bias of the rest.
    Place("attention.key", QKV, "linear", Fused(1), inert_bias=True),
    Place("attention.value", QKV, "linear", Fused(2)),
    Place("attention.output", "attention.dense", "linear", ends_block=True),
    Place("ffn.norm", "post_attention_layernorm", "norm"),
    Place("ffn.up", "mlp.dense_h_to_4h", "linear"),
    Place("ffn.down", "mlp.dense_4h_to_h", "linear", ends_block=True),
)

OUTER = (
    Place("decoder.input", "gpt_neox.embed_in", "input"),
    Place("decoder.embedding", "gpt_neox.embed_in", "embedding"),
    Place("decoder.norm", "gpt_neox.final_layer_norm", "norm"),
    Place("head", "lm_head", "head"),
)


GPT_NEOX = Family(
    name="gpt_neox",
    classes={"gpt_neox": GPTNeoXForCausalLM},
    outer=OUTER,
    blocks={"decoder": ("gpt_neox.layers", BLOCK)},
    states=states,
    write=Continuation,
)
