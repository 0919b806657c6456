"""What a family is pretrained to do, and the loss over the vocabulary at the price of a small model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from apet.plms.families import family_of

CHUNK = 256
"""Positions whose scores over the vocabulary stand in memory at one time: few enough to stay in the cache."""

Objective = Callable[[PreTrainedModel, Tensor], tuple[Tensor, Tensor]]


def next_token(model: PreTrainedModel, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Causal LM. rows [k, length + 1] of ids -> states [k · length, d], and the ids [k · length] they must predict."""
    states = model.base_model(input_ids=rows[:, :-1], use_cache=False).last_hidden_state
    return states.flatten(0, 1), rows[:, 1:].flatten()


OBJECTIVES: dict[str, Objective] = {"bloom": next_token}


def initialise(model: PreTrainedModel) -> None:
    """Zero the maps that end a block: every block is the identity at first, and learns what to add."""
    for place in family_of(model.config.model_type).places(model):
        if place.ends_block:
            nn.init.zeros_(model.get_submodule(place.module).weight)


class TiedHeadLoss(torch.autograd.Function):
    """Mean cross-entropy of states [n, d] against targets [n] under a head of words [vocabulary, d], in nats.

    Scores and their gradient are made chunk by chunk and dropped, in `dtype`; sums over chunks are float32. The head
    is most of a small rung's work, and n × vocabulary scores written to memory and read back are most of the head's.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, words: Tensor, targets: Tensor, dtype: torch.dtype) -> Tensor:
        narrow = words.to(dtype)
        by_states, by_words = torch.empty_like(states), torch.zeros_like(words)
        loss = torch.zeros(())
        for start in range(0, len(targets), CHUNK):
            chunk = slice(start, start + CHUNK)
            inputs, target = states[chunk].to(dtype), targets[chunk, None]
            shares = torch.softmax(inputs @ narrow.T, -1)
            right = shares.gather(1, target)
            loss -= right.float().clamp_min(torch.finfo(torch.float32).tiny).log().sum()
            by_scores = shares.scatter_(1, target, right - 1)
            by_states[chunk] = by_scores @ narrow
            by_words += by_scores.T @ inputs
        ctx.save_for_backward(by_states, by_words)
        ctx.count = len(targets)
        return loss / len(targets)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        by_states, by_words = ctx.saved_tensors
        share = gradient / ctx.count
        return by_states * share, by_words * share, None, None


def training_loss(model: PreTrainedModel, rows: Tensor, dtype: torch.dtype) -> Tensor:
    """The objective's mean loss in nats per predicted token, with products of matrices in `dtype`."""
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        states, targets = OBJECTIVES[model.config.model_type](model, rows)
        return TiedHeadLoss.apply(states, model.get_input_embeddings().weight, targets, dtype)


@torch.no_grad()
def heldout_loss(model: PreTrainedModel, rows: Tensor) -> float:
    """The same in float32 over any number of rows."""
    total, count = 0.0, 0
    for part in rows.split(16):
        states, targets = OBJECTIVES[model.config.model_type](model, part.long())
        scores = F.linear(states, model.get_output_embeddings().weight)
        total += F.cross_entropy(scores, targets, reduction="sum").item()
        count += len(targets)
    return total / count
