"""Llama (Touvron et al. 2023), Mistral and Qwen2: decoders with rotary positions, gated FFN and few biases."""

from __future__ import annotations

from functools import partial

from transformers import LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM

from apet.models import layouts
from apet.models.families.base import Family
from apet.models.families.causal import CausalDecoder, special_tokens, states
from apet.models.kernels import rms_norm


def install_kernels(model: LlamaForCausalLM) -> None:
    """Install norms with fewer passes over memory."""
    for module in model.modules():
        if isinstance(module, type(model.model.norm)):
            module.forward = partial(rms_norm, module)


LLAMA = Family(
    name="llama",
    classes={"llama": LlamaForCausalLM, "mistral": MistralForCausalLM, "qwen2": Qwen2ForCausalLM},
    layout=layouts.LLAMA,
    states=states,
    decoder=CausalDecoder,
    special_tokens=special_tokens,
    install_kernels=install_kernels,
)
