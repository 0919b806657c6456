"""Pretraining objectives of the families, and a memory-saving loss over the vocabulary."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, T5ForConditionalGeneration

from apet.core.hashing import seed_for
from apet.models.families import Family, family_of
from apet.models.ladder import CLS, END, MASK, PAD, SENTINEL, SENTINELS, SEP

CHUNK = 256
"""Positions whose logits are in memory together: few enough to stay in the cache."""

MASKED = 0.3
"""Fraction of masked tokens for BERT. More than the original 0.15, as Wettig et al. (2023) recommend."""

SPAN = 3
"""Tokens in a span of T5, the mean length of Raffel et al. (2020)."""

SPAN_INTERVAL = 8
"""Tokens for each span, while there are sentinels. More spans than in the original give more training signal."""

Objective = Callable[[Any, Tensor, bool, torch.Generator], tuple[Tensor, Tensor]]
"""(model, token ids [k, length + 1], causal, generator) -> states [n, d] for the head, and the ids [n] to predict.

causal: whether the step belongs to the causal first phase. generator: decides which tokens are hidden.
"""


def masking_generator(*stream: str | int) -> torch.Generator:
    """Make the generator that hides tokens in a step; a resumed training hides the same tokens."""
    return torch.Generator().manual_seed(seed_for("hidden", *stream))


def next_token(model: PreTrainedModel, rows: Tensor, causal: bool, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Causal language modeling: predict each token from the tokens before it."""
    states = model.base_model(input_ids=rows[:, :-1], use_cache=False).last_hidden_state
    return states.flatten(0, 1), rows[:, 1:].flatten()


def masked_lm(model: PreTrainedModel, rows: Tensor, causal: bool, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Apply masked language modeling (Devlin et al. 2019) to [CLS] row [SEP].

    The last token is always masked, because a prompt asks there. In the causal phase attention is causal, and all other
    positions predict their next token: training signal at every position moves the model off the unigram plateau, on
    which masked language modeling alone stays for long.

    Args:
        model: the ladder model.
        rows: token ids, shape [k, length + 1].
        causal: whether the step belongs to the causal first phase.
        generator: decides which tokens are hidden.

    Returns:
        States [n, d] for the head, and the token ids [n] to predict.
    """
    places = masked_positions(rows, generator)
    ids = F.pad(F.pad(rows, (1, 0), value=CLS), (0, 1), value=SEP).scatter(1, places + 1, MASK)
    states = model.base_model(input_ids=ids, attention_mask=causal_mask(ids) if causal else None).last_hidden_state
    predicted, targets = _at(states, places + 1).flatten(0, 1), rows.gather(1, places).flatten()
    if causal:
        others = ids[:, :-2] != MASK
        predicted, targets = torch.cat((predicted, states[:, :-2][others])), torch.cat((targets, rows[others]))
    return _for_head(model, predicted), targets


def span_corruption(
    model: T5ForConditionalGeneration, rows: Tensor, causal: bool, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Apply span corruption (Raffel et al. 2020). One span is at the end of the row; the decoder generates it first.

    A row then has the form of a prompt: the text ends in the first sentinel, and the decoder continues after this
    sentinel. In the causal phase the encoder predicts each next token of the first half with the decoder's head, and
    the decoder continues with the second half, so that both learn from every token.

    Args:
        model: the ladder model.
        rows: token ids, shape [k, length + 1].
        causal: whether the step belongs to the causal first phase.
        generator: decides which tokens are hidden.

    Returns:
        States [n, d] for the head, and the token ids [n] to predict.
    """
    if not causal:
        text, answer, targets = corrupt_spans(rows, generator)
        encoded = model.encoder(input_ids=text).last_hidden_state
        # A sentinel predicts the first token of its span; the last token of a span would predict a sentinel.
        decoded = _decode(model, encoded, answer).unflatten(1, (-1, SPAN + 1))[:, :, :-1]
        return _for_head(model, decoded.flatten(0, 2)), targets.flatten()
    half = rows.shape[1] // 2
    first, second = rows[:, :half], rows[:, half:]
    encoded = model.encoder(input_ids=first, attention_mask=causal_mask(first)).last_hidden_state
    decoded = _decode(model, encoded, F.pad(second[:, :-1], (1, 0), value=SENTINEL))
    states = torch.cat((encoded[:, :-1], decoded), 1).flatten(0, 1)
    return _for_head(model, states), torch.cat((first[:, 1:], second), 1).flatten()


OBJECTIVES: dict[str, Objective] = {"bloom": next_token, "bert": masked_lm, "t5": span_corruption}


def causal_mask(ids: Tensor) -> Tensor:
    """Make an additive causal mask [rows, 1, length, length] for ids [rows, length]."""
    rows, length = ids.shape
    return torch.full((length, length), -math.inf).triu(1).expand(rows, 1, length, length)


def masked_positions(rows: Tensor, generator: torch.Generator) -> Tensor:
    """Choose sorted positions [k, n] to mask: the last one, and others at random."""
    priority = torch.rand(rows.shape, generator=generator)
    priority[:, -1] = 1.0
    return priority.topk(max(1, round(MASKED * rows.shape[1])), dim=1).indices.sort(dim=1).values


def corrupt_spans(rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Replace s spans of each row by sentinels, one for every SPAN_INTERVAL tokens.

    The last span is at the end of the row, and each span follows at least one token. Sentinels are numbered, and spans
    are generated, from the end.

    Args:
        rows: token ids, shape [k, length].
        generator: decides where the spans are.

    Returns:
        Token ids of the text [k, length - s (SPAN - 1) + 1], the decoder's output [k, s (SPAN + 1)] and the spans [k,
        s, SPAN].
    """
    count, length = rows.shape
    spans = min(len(SENTINELS), length // SPAN_INTERVAL)
    rest = length - spans * SPAN
    cuts = torch.rand((count, rest - 1), generator=generator).topk(spans - 1, dim=1).indices.sort(dim=1).values + 1
    before = F.pad(cuts, (0, 1), value=rest)
    starts = before + SPAN * torch.arange(spans)
    places = (starts[..., None] + torch.arange(SPAN)).flatten(1)
    sentinels = SENTINEL + torch.arange(spans).flip(0).expand(count, -1)
    removed = torch.zeros_like(rows, dtype=torch.bool).scatter(1, places, True).scatter(1, starts, False)
    text = rows.scatter(1, starts, sentinels)[~removed].view(count, -1)
    answer = torch.cat((sentinels[..., None], rows.gather(1, places).unflatten(1, (spans, SPAN))), 2).flip(1)
    return F.pad(text, (0, 1), value=END), answer.flatten(1), answer[..., 1:]


def initialize(model: PreTrainedModel, family: Family) -> None:
    """Zero the last map of each sublayer, so that every block starts as the identity, and an untied head."""
    family.untie_head(model)
    for spec in family.module_specs(model):
        if spec.adapter_after:
            nn.init.zeros_(model.get_submodule(spec.module).get_parameter("weight"))
    head = model.get_output_embeddings()
    if head.weight is not model.get_input_embeddings().weight:
        nn.init.zeros_(head.weight)


class HeadLoss(torch.autograd.Function):
    """Mean cross-entropy of states [n, d] against targets [n] under a head [vocab, d], in nats.

    Logits and their gradient are computed in chunks and dropped. The head takes most of the time of a small model, and
    writing and reading n × vocab logits takes most of the time of the head.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, head: Tensor, targets: Tensor) -> Tensor:
        """Compute the loss and both gradients."""
        states_gradient, head_gradient = torch.empty_like(states), torch.zeros_like(head)
        loss = torch.zeros(())
        for start in range(0, len(targets), CHUNK):
            chunk = slice(start, start + CHUNK)
            inputs, target = states[chunk], targets[chunk, None]
            probabilities = torch.softmax(inputs @ head.T, -1)
            right = probabilities.gather(1, target)
            loss -= right.clamp_min(torch.finfo(torch.float32).tiny).log().sum()
            logits_gradient = probabilities.scatter_(1, target, right - 1)
            torch.mm(logits_gradient, head, out=states_gradient[chunk])
            head_gradient.addmm_(logits_gradient.T, inputs)
        ctx.save_for_backward(states_gradient, head_gradient)
        ctx.count = len(targets)
        return loss / len(targets)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """Scale the gradients."""
        states_gradient, head_gradient = ctx.saved_tensors
        scale = gradient / ctx.count
        return states_gradient * scale, head_gradient * scale, None


def training_loss(model: PreTrainedModel, rows: Tensor, causal: bool, generator: torch.Generator) -> Tensor:
    """Compute the mean loss of the family's objective in nats a predicted token."""
    states, targets = OBJECTIVES[model.config.model_type](model, rows, causal, generator)
    return HeadLoss.apply(states, model.get_output_embeddings().weight, targets)


@torch.no_grad()
def heldout_loss(model: PreTrainedModel, rows: Tensor) -> tuple[float, Tensor]:
    """Compute the mean loss of the final phase on held-out rows.

    Hidden tokens depend only on the index of the batch, so that they are the same for all ladder models of a family.

    Args:
        model: the ladder model.
        rows: token ids, shape [k, length + 1].

    Returns:
        The loss in nats a predicted token, and the token ids to predict, shape [n].
    """
    total, predicted = 0.0, []
    for number, batch in enumerate(rows.split(16)):
        generator = masking_generator("heldout", number)
        states, targets = OBJECTIVES[model.config.model_type](model, batch.long(), False, generator)
        logits = F.linear(states, model.get_output_embeddings().weight)
        total += F.cross_entropy(logits, targets, reduction="sum").item()
        predicted.append(targets)
    return total / sum(map(len, predicted)), torch.cat(predicted)


def _decode(model: T5ForConditionalGeneration, encoded: Tensor, answer: Tensor) -> Tensor:
    """Compute the decoder's states after each token of the answer."""
    ids = F.pad(answer, (1, 0), value=PAD)
    return model.decoder(input_ids=ids, encoder_hidden_states=encoded, use_cache=False).last_hidden_state[:, 1:]


def _at(states: Tensor, places: Tensor) -> Tensor:
    return states.gather(1, places[..., None].expand(-1, -1, states.shape[-1]))


def _for_head(model: PreTrainedModel, states: Tensor) -> Tensor:
    return family_of(model.config.model_type).transform(model, states)
