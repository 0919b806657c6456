"""Llama (Touvron et al. 2023), Mistral and Qwen2: decoders with rotary positions, gated FFN and few biases."""

from __future__ import annotations

from functools import partial

from transformers import LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM

from apet.models.families.base import Family, ModuleSpec
from apet.models.families.causal import CausalDecoder, special_tokens, states
from apet.models.kernels import rms_norm

BLOCK = (
    ModuleSpec("attention.norm", "input_layernorm", "norm"),
    ModuleSpec("attention.query", "self_attn.q_proj", "linear"),
    ModuleSpec("attention.key", "self_attn.k_proj", "linear"),
    ModuleSpec("attention.value", "self_attn.v_proj", "linear"),
    ModuleSpec("attention.output", "self_attn.o_proj", "linear", adapter_after=True),
    ModuleSpec("ffn.norm", "post_attention_layernorm", "norm"),
    ModuleSpec("ffn.gate", "mlp.gate_proj", "linear"),
    ModuleSpec("ffn.up", "mlp.up_proj", "linear"),
    ModuleSpec("ffn.down", "mlp.down_proj", "linear", adapter_after=True),
)

OUTER = (
    ModuleSpec("decoder.input", "model.embed_tokens", "input"),
    ModuleSpec("decoder.embedding", "model.embed_tokens", "embedding"),
    ModuleSpec("decoder.norm", "model.norm", "norm"),
    ModuleSpec("head", "lm_head", "head"),
)


def install_kernels(model: LlamaForCausalLM) -> None:
    """Install norms with fewer passes over memory."""
    for module in model.modules():
        if isinstance(module, type(model.model.norm)):
            module.forward = partial(rms_norm, module)


LLAMA = Family(
    name="llama",
    classes={"llama": LlamaForCausalLM, "mistral": MistralForCausalLM, "qwen2": Qwen2ForCausalLM},
    outer=OUTER,
    blocks={"decoder": ("model.layers", BLOCK)},
    states=states,
    decoder=CausalDecoder,
    special_tokens=special_tokens,
    install_kernels=install_kernels,
)
