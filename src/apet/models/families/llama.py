"""Llama (Touvron et al. 2023) and what shares its modules: a decoder with rotary positions, gated FFN, few biases."""

from __future__ import annotations

from functools import partial

from transformers import LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM

from apet.models.families.base import Family, Place
from apet.models.families.causal import Continuation, states
from apet.models.kernels import rms_norm

BLOCK = (
    Place("attention.norm", "input_layernorm", "norm"),
    Place("attention.query", "self_attn.q_proj", "linear"),
    Place("attention.key", "self_attn.k_proj", "linear"),
    Place("attention.value", "self_attn.v_proj", "linear"),
    Place("attention.output", "self_attn.o_proj", "linear", ends_block=True),
    Place("ffn.norm", "post_attention_layernorm", "norm"),
    Place("ffn.gate", "mlp.gate_proj", "linear"),
    Place("ffn.up", "mlp.up_proj", "linear"),
    Place("ffn.down", "mlp.down_proj", "linear", ends_block=True),
)

OUTER = (
    Place("decoder.input", "model.embed_tokens", "input"),
    Place("decoder.embedding", "model.embed_tokens", "embedding"),
    Place("decoder.norm", "model.norm", "norm"),
    Place("head", "lm_head", "head"),
)


def fuse(model: LlamaForCausalLM) -> None:
    """Norms in fewer passes over memory."""
    for module in model.modules():
        if isinstance(module, type(model.model.norm)):
            module.forward = partial(rms_norm, module)


LLAMA = Family(
    name="llama",
    classes={"llama": LlamaForCausalLM, "mistral": MistralForCausalLM, "qwen2": Qwen2ForCausalLM},
    outer=OUTER,
    blocks={"decoder": ("model.layers", BLOCK)},
    states=states,
    write=Continuation,
    fuse=fuse,
)
