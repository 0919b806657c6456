"""Forward passes that decoder-only families share: prompt and answer are one text."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from apet.errors import ModelError
from apet.models.families.base import Inputs, SpecialTokens, template_of

INPUT = "decoder.input"


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> SpecialTokens:
    """Return the tokens with which the tokenizer begins a text. It gets no end, because the answer follows."""
    before, _ = template_of(tokenizer)
    return SpecialTokens(before=before)


def states(model: PreTrainedModel, inputs: Inputs) -> Tensor:
    """Compute the states that are read. Causal attention does not see padding on the right, so it needs no mask."""
    embeddings = inputs.embed(model.get_input_embeddings(), INPUT)
    position_ids = inputs.position_ids(embeddings)
    output = model.base_model(inputs_embeds=embeddings, position_ids=position_ids, use_cache=False)
    return inputs.read(output.last_hidden_state, INPUT)


class CausalDecoder:
    """Answers in generation with cached keys and values, so that a step computes one token a row."""

    def __init__(self, model: PreTrainedModel, inputs: Inputs):
        self.model, self.cache, self.mask = model, DynamicCache(), inputs.mask(INPUT)
        self.first_position = inputs.first_position
        embeddings = inputs.embed(model.get_input_embeddings(), INPUT)
        position_ids = inputs.position_ids(embeddings)
        output = model.base_model(inputs_embeds=embeddings, position_ids=position_ids, cache=self.cache, use_cache=True)
        self.states = inputs.read(output.last_hidden_state, INPUT)

    def step(self, tokens: Tensor) -> Tensor:
        """Append a token to each row.

        Padding between a short prompt and its answer is masked and does not count as a position: ALiBi takes positions
        from the mask, and rotary embeddings get them as an argument. It would count in a sliding window, so prompt and
        answer must fit into one.

        Args:
            tokens: token ids, shape [rows].

        Returns:
            The states from which the next token is read, shape [rows, d].

        Raises:
            ModelError: prompt and answer are longer than the PLM's attention window.
        """
        if (window := getattr(self.model.config, "sliding_window", None)) and self.mask.shape[1] >= window:
            raise ModelError(
                f"prompt and answer: more than {window} tokens, the attention window of this PLM (sliding_window). "
                "Lower training.max_length."
            )
        positions = self.first_position + self.mask.sum(dim=1, keepdim=True)
        self.mask = torch.cat((self.mask, self.mask.new_ones(len(tokens), 1)), dim=1)
        output = self.model.base_model(
            inputs_embeds=self.model.get_input_embeddings()(tokens[:, None]),
            attention_mask=self.mask,
            position_ids=positions,
            cache=self.cache,
            use_cache=True,
        )
        return output.last_hidden_state[:, 0]

    def keep(self, rows: Tensor) -> None:
        """Drop all rows except the given ones."""
        self.mask = self.mask[rows]
        self.cache.batch_select_indices(rows)
