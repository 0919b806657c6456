"""What decoders without an encoder share: prompt and answer are one text, read from left to right."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from apet.errors import ModelError
from apet.models.families.base import Inputs

INPUT = "decoder.input"


def states(model: PreTrainedModel, inputs: Inputs) -> Tensor:
    """Causal: what stands before the padding on the right does not see it, so no mask is needed."""
    embeddings = inputs.embed(model.get_input_embeddings(), INPUT)
    return inputs.read(model.base_model(inputs_embeds=embeddings, use_cache=False).last_hidden_state, INPUT)


class CausalDecoder:
    """Answers under way: keys and values of all that was read are kept, so that a step computes one token a row."""

    def __init__(self, model: PreTrainedModel, inputs: Inputs):
        self.model, self.cache, self.mask = model, DynamicCache(), inputs.mask(INPUT)
        embeddings = inputs.embed(model.get_input_embeddings(), INPUT)
        output = model.base_model(inputs_embeds=embeddings, cache=self.cache, use_cache=True).last_hidden_state
        self.states = inputs.read(output, INPUT)

    def step(self, tokens: Tensor) -> Tensor:
        """Say one token a row, [rows]; the states [rows, d] that the next are read from.

        Padding stands between a short prompt and its answer: it is masked, and does not count into the positions, which
        ALiBi takes from the mask and rotations are told. It would count into a sliding window of attention: ModelError
        where prompt and answer do not fit into one.
        """
        if (window := getattr(self.model.config, "sliding_window", None)) and self.mask.shape[1] >= window:
            raise ModelError(
                f"prompt and answer have more than {window} tokens, which is how many this PLM's attention sees "
                "(sliding_window). Allowed: shorter prompts; see training.length."
            )
        positions = self.mask.sum(dim=1, keepdim=True)
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
        """Go on with these rows alone."""
        self.mask = self.mask[rows]
        self.cache.batch_select_indices(rows)
