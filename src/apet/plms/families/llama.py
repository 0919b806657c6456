"""Llama (Touvron et al. 2023) and what shares its modules: a decoder with rotary positions, gated FFN, few biases."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaForCausalLM, MistralForCausalLM, PreTrainedModel, Qwen2ForCausalLM

from apet.plms.families.base import Family, Inputs, Place

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


def states(model: PreTrainedModel, inputs: Inputs) -> Tensor:
    embeddings = inputs.embed(model.model.embed_tokens, "decoder.input")
    return inputs.read(model.model(inputs_embeds=embeddings, use_cache=False).last_hidden_state, "decoder.input")


def logits(model: PreTrainedModel, states: Tensor, words: Tensor) -> Tensor:
    return F.linear(states, model.lm_head.weight[words])


LLAMA = Family(
    name="llama",
    classes={"llama": LlamaForCausalLM, "mistral": MistralForCausalLM, "qwen2": Qwen2ForCausalLM},
    outer=OUTER,
    blocks={"decoder": ("model.layers", BLOCK)},
    states=states,
    logits=logits,
)
