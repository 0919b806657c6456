"""GPT-NeoX (Black et al. 2022; Pythia): a decoder with rotary positions, fused query, key and value, parallel FFN."""

from __future__ import annotations

from transformers import GPTNeoXForCausalLM

from apet.models.families.base import Family, FusedSlice, ModuleSpec
from apet.models.families.causal import CausalDecoder, special_tokens, states

QKV = "attention.query_key_value"

BLOCK = (
    ModuleSpec("attention.norm", "input_layernorm", "norm"),
    ModuleSpec("attention.query", QKV, "linear", FusedSlice(0)),
    # Only a part of each head is rotated. The softmax cancels the bias of the rest.
    ModuleSpec("attention.key", QKV, "linear", FusedSlice(1), bias_cancels=True),
    ModuleSpec("attention.value", QKV, "linear", FusedSlice(2)),
    ModuleSpec("attention.output", "attention.dense", "linear", adapter_after=True),
    ModuleSpec("ffn.norm", "post_attention_layernorm", "norm"),
    ModuleSpec("ffn.up", "mlp.dense_h_to_4h", "linear"),
    ModuleSpec("ffn.down", "mlp.dense_4h_to_h", "linear", adapter_after=True),
)

OUTER = (
    ModuleSpec("decoder.input", "gpt_neox.embed_in", "input"),
    ModuleSpec("decoder.embedding", "gpt_neox.embed_in", "embedding"),
    ModuleSpec("decoder.norm", "gpt_neox.final_layer_norm", "norm"),
    ModuleSpec("head", "lm_head", "head"),
)


GPT_NEOX = Family(
    name="gpt_neox",
    classes={"gpt_neox": GPTNeoXForCausalLM},
    outer=OUTER,
    blocks={"decoder": ("gpt_neox.layers", BLOCK)},
    states=states,
    decoder=CausalDecoder,
    special_tokens=special_tokens,
)
