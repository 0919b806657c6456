"""T5 v1.1 (Raffel et al. 2020; Shazeer 2020): encoder and decoder with cross-attention, gated FFN, no biases."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase, T5ForConditionalGeneration

from apet.plms.families.base import Family, Frame, Inputs, Place

SPAN = "<extra_id_0>"
"""The sentinel that stands for a span left out of the text; the decoder says it and then the span."""


def attention(name: str, number: int, module: str) -> tuple[Place, ...]:
    """The places of a block's attention sublayer, in the order of the library's layer list."""
    path = f"layer.{number}.{module}"
    return (
        Place(f"{name}.norm", f"layer.{number}.layer_norm", "norm"),
        Place(f"{name}.query", f"{path}.q", "linear"),
        Place(f"{name}.key", f"{path}.k", "linear", inert_bias=True),
        Place(f"{name}.value", f"{path}.v", "linear"),
        Place(f"{name}.output", f"{path}.o", "linear", ends_block=True),
    )


def ffn(number: int) -> tuple[Place, ...]:
    path = f"layer.{number}.DenseReluDense"
    return (
        Place("ffn.norm", f"layer.{number}.layer_norm", "norm"),
        Place("ffn.gate", f"{path}.wi_0", "linear"),
        Place("ffn.up", f"{path}.wi_1", "linear"),
        Place("ffn.down", f"{path}.wo", "linear", ends_block=True),
    )


SELF = attention("attention", 0, "SelfAttention")
CROSS = attention("cross_attention", 1, "EncDecAttention")

OUTER = (
    Place("encoder.input", "shared", "input"),
    Place("decoder.input", "shared", "input"),
    Place("embedding", "shared", "embedding"),
    Place("encoder.embedding.position", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias", "embedding"),
    Place("decoder.embedding.position", "decoder.block.0.layer.0.SelfAttention.relative_attention_bias", "embedding"),
    Place("encoder.norm", "encoder.final_layer_norm", "norm"),
    Place("decoder.norm", "decoder.final_layer_norm", "norm"),
    Place("head", "lm_head", "head"),
)


def frame(tokenizer: PreTrainedTokenizerBase) -> Frame:
    """The encoder reads prompt, sentinel, end; the decoder has said the sentinel and is asked for what follows it."""
    sentinel, start = tokenizer.convert_tokens_to_ids(SPAN), tokenizer.pad_token_id
    return Frame(after=(sentinel, tokenizer.eos_token_id), decoder=(start, sentinel))


def states(model: T5ForConditionalGeneration, inputs: Inputs) -> Tensor:
    mask = inputs.mask("encoder.input")
    encoded = model.encoder(inputs_embeds=inputs.embed(model.shared, "encoder.input"), attention_mask=mask)
    said = torch.tensor(inputs.decoder, device=mask.device).expand(len(mask), -1)
    output = model.decoder(
        inputs_embeds=inputs.embed(model.shared, "decoder.input", said),
        encoder_hidden_states=encoded.last_hidden_state,
        encoder_attention_mask=mask,
        use_cache=False,
    )
    return output.last_hidden_state[:, -1]


def logits(model: T5ForConditionalGeneration, states: Tensor, words: Tensor) -> Tensor:
    scale = model.model_dim**-0.5 if model.config.scale_decoder_outputs else 1.0
    return F.linear(states * scale, model.lm_head.weight[words])


def untie(model: T5ForConditionalGeneration) -> None:
    """The library ties every T5's head until a checkpoint brings one; v1.1 has its own, as the scale shows."""
    if not model.config.scale_decoder_outputs:
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())


T5 = Family(
    name="t5",
    classes={"t5": T5ForConditionalGeneration},
    outer=OUTER,
    blocks={"encoder": ("encoder.block", (*SELF, *ffn(1))), "decoder": ("decoder.block", (*SELF, *CROSS, *ffn(2)))},
    states=states,
    logits=logits,
    frame=frame,
    untie=untie,
)
