"""T5 (Raffel et al. 2020; v1.1: Shazeer 2020): an encoder and a decoder with cross-attention, without biases."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn
from transformers import DynamicCache, EncoderDecoderCache, PreTrainedTokenizerBase, T5ForConditionalGeneration
from transformers.activations import NewGELUActivation
from transformers.models.t5.modeling_t5 import T5Attention

from apet.models import layouts
from apet.models.families.base import Family, Inputs, SpecialTokens
from apet.models.kernels import Gelu, rms_norm

SPAN = "<extra_id_0>"
"""The sentinel that replaces a span of the text. The decoder generates the sentinel, then the span."""


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> SpecialTokens:
    """Return the tokens of prompt, sentinel, end for the encoder, and of start, sentinel for the decoder."""
    sentinel: Any = tokenizer.get_vocab().get(SPAN)  # `convert_tokens_to_ids` would return the unknown token
    start = tokenizer.pad_token_id
    return SpecialTokens(after=(sentinel, tokenizer.eos_token_id), decoder=(start, sentinel))


def states(model: T5ForConditionalGeneration, inputs: Inputs) -> Tensor:
    """Compute the states that are read."""
    return T5Decoder(model, inputs, cached=False).states


class T5Decoder:
    """Answers in generation: the text is encoded once, and the decoder caches keys and values."""

    def __init__(self, model: T5ForConditionalGeneration, inputs: Inputs, cached: bool = True):
        self.model, self.mask = model, inputs.mask("encoder.input")
        self.cache = EncoderDecoderCache(DynamicCache(), DynamicCache()) if cached else None
        text = inputs.embed(model.shared, "encoder.input")
        self.encoded = model.encoder(inputs_embeds=text, attention_mask=self.mask).last_hidden_state
        states = self._decode(inputs.embed(model.shared, "decoder.input", inputs.decoder_ids))
        self.states = states[:, -1] if inputs.num_positions == 1 else states[:, -inputs.num_positions :]

    def step(self, tokens: Tensor) -> Tensor:
        """Append a token [rows] to each row, and return the states [rows, d] from which the next token is read."""
        return self._decode(self.model.shared(tokens[:, None]))[:, 0]

    def keep(self, rows: Tensor) -> None:
        """Drop all rows except the given ones."""
        self.mask, self.encoded = self.mask[rows], self.encoded[rows]
        if self.cache is not None:
            self.cache.batch_select_indices(rows)

    def _decode(self, embeddings: Tensor) -> Tensor:
        output = self.model.decoder(
            inputs_embeds=embeddings,
            encoder_hidden_states=self.encoded,
            encoder_attention_mask=self.mask,
            cache=self.cache,
            use_cache=self.cache is not None,
        )
        return output.last_hidden_state


def transform(model: T5ForConditionalGeneration, states: Tensor) -> Tensor:
    """Scale the states for a head that is tied to the embeddings (v1.0)."""
    return states * model.config.d_model**-0.5 if model.config.scale_decoder_outputs else states


def untie_head(model: T5ForConditionalGeneration) -> None:
    """Give v1.1 its separate head, because the library ties every T5's head until it loads a checkpoint."""
    if not model.config.scale_decoder_outputs:
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())


def install_kernels(model: T5ForConditionalGeneration) -> None:
    """Install norms and a GELU with fewer passes over memory."""
    for module in model.modules():
        if isinstance(module, type(model.encoder.final_layer_norm)):
            module.forward = partial(rms_norm, module)  # type: ignore[method-assign]  # only of this norm
        elif isinstance(getattr(module, "act", None), NewGELUActivation):
            module.act = Gelu()


def extend_positions(attention: T5Attention, forward: Callable, count: int, longest: int) -> Callable:
    """Extend the biases of relative positions by pairs in front of the text.

    The first block computes the biases of a stack. The others get them with those of `longest` pairs.

    Args:
        attention: A self-attention.
        forward: Its forward method.
        count: Pairs of this attention.
        longest: The largest number of pairs of an attention.

    Returns:
        The forward method of the attention with its pairs.
    """

    def extended(
        hidden: Tensor, *, position_bias: Tensor | None = None, cache: Any = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor, Any]:
        if position_bias is None:
            start = longest + (0 if cache is None else cache.get_seq_length(attention.layer_idx))
            size = hidden.shape[1]
            position_bias = attention.compute_bias(size, start + size, hidden.device, past_seen_tokens=start)
        own = position_bias[..., longest - count :]
        output, _, weights = forward(hidden, position_bias=own, cache=cache, **kwargs)
        return output, position_bias, weights

    return extended


T5 = Family(
    name="t5",
    classes={"t5": T5ForConditionalGeneration},
    layout=layouts.T5,
    states=states,
    decoder=T5Decoder,
    transform=transform,
    special_tokens=special_tokens,
    install_kernels=install_kernels,
    extend_positions=extend_positions,
    untie_head=untie_head,
)
