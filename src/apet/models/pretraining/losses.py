"""What a family is pretrained to do, and the loss over the vocabulary at the price of a small model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, T5ForConditionalGeneration

from apet.core.hashing import seed_for
from apet.models.families import family_of
from apet.models.ladder import CLS, END, MASK, PAD, SENTINEL, SENTINELS, SEP

CHUNK = 256
"""Positions whose scores over the vocabulary stand in memory at one time: few enough to stay in the cache."""

MASKED = 0.3
"""Share of a row's tokens that BERT must name. More than the 0.15 of its authors, as Wettig et al. (2023) advise."""

SPAN = 3
"""Tokens of a span left out of T5's text, the mean length of its authors."""

EVERY = 8
"""One span for so many tokens, while there are sentinels: more than its authors left out, as every one is a lesson."""

Objective = Callable[[Any, Tensor, bool, torch.Generator], tuple[Tensor, Tensor]]
"""(model, rows [k, length + 1] of ids, causal, draws) -> states [n, d] for the head, and the ids [n] they must name.

causal: whether the step belongs to the causal first phase. draws: decides what is hidden.
"""


def draws_for(*stream: str | int) -> torch.Generator:
    """What is hidden in a batch: a function of the recipe's seed and the step, so that it survives a kill."""
    return torch.Generator().manual_seed(seed_for("hidden", *stream))


def next_token(model: PreTrainedModel, rows: Tensor, causal: bool, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Causal LM: each token from those before it."""
    states = model.base_model(input_ids=rows[:, :-1], use_cache=False).last_hidden_state
    return states.flatten(0, 1), rows[:, 1:].flatten()


def masked(model: PreTrainedModel, rows: Tensor, causal: bool, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Masked LM (Devlin et al. 2019) over [CLS] row [SEP]: tokens shown as [MASK], from all others on both sides.

    The last token is always among them, because a prompt asks there. In the causal phase nothing sees what stands
    behind it, and the other positions name their next token: a lesson at every position leads the model off the unigram
    plateau, where masked LM alone stays long.
    """
    places = hidden_places(rows, draws)
    shown = F.pad(F.pad(rows, (1, 0), value=CLS), (0, 1), value=SEP).scatter(1, places + 1, MASK)
    states = model.base_model(input_ids=shown, attention_mask=no_future(shown) if causal else None).last_hidden_state
    named, targets = _at(states, places + 1).flatten(0, 1), rows.gather(1, places).flatten()
    if causal:
        others = shown[:, :-2] != MASK
        named, targets = torch.cat((named, states[:, :-2][others])), torch.cat((targets, rows[others]))
    return _for_head(model, named), targets


def spans(
    model: T5ForConditionalGeneration, rows: Tensor, causal: bool, draws: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Span corruption (Raffel et al. 2020), with one span at the row's end, which the decoder says first.

    So a row is what a prompt is: the text ends in the first sentinel, the decoder has said it and goes on. In the
    causal phase the encoder reads the first half of a row and names each next token by the decoder's head, and the
    decoder goes on with the second half: both learn from every token, and the encoder before it has a reader.
    """
    if not causal:
        shown, said, wanted = leave_out(rows, draws)
        encoded = model.encoder(input_ids=shown).last_hidden_state
        # The state of a sentinel names its span's first token; that of a span's last token would name a sentinel.
        decoded = _decode(model, encoded, said).unflatten(1, (-1, SPAN + 1))[:, :, :-1]
        return _for_head(model, decoded.flatten(0, 2)), wanted.flatten()
    half = rows.shape[1] // 2
    first, second = rows[:, :half], rows[:, half:]
    encoded = model.encoder(input_ids=first, attention_mask=no_future(first)).last_hidden_state
    decoded = _decode(model, encoded, F.pad(second[:, :-1], (1, 0), value=SENTINEL))
    states = torch.cat((encoded[:, :-1], decoded), 1).flatten(0, 1)
    return _for_head(model, states), torch.cat((first[:, 1:], second), 1).flatten()


OBJECTIVES: dict[str, Objective] = {"bloom": next_token, "bert": masked, "t5": spans}


def no_future(ids: Tensor) -> Tensor:
    """A causal mask [rows, 1, length, length] for ids [rows, length], to be added to attention scores."""
    rows, length = ids.shape
    return torch.full((length, length), -math.inf).triu(1).expand(rows, 1, length, length)


def hidden_places(rows: Tensor, draws: torch.Generator) -> Tensor:
    """Places [k, n] of the tokens to mask, in order: the last, and others by chance."""
    chance = torch.rand(rows.shape, generator=draws)
    chance[:, -1] = 1.0
    return chance.topk(max(1, round(MASKED * rows.shape[1])), dim=1).indices.sort(dim=1).values


def leave_out(rows: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Rows [k, length] without s spans, one for every EVERY tokens: the text shown, what the decoder says, the spans.

    The last stands at the row's end, at least one token before each; they are numbered and said from the end.
    Shapes [k, length - s (SPAN - 1) + 1], [k, s (SPAN + 1)], [k, s, SPAN].
    """
    count, length = rows.shape
    spans = min(len(SENTINELS), length // EVERY)
    left = length - spans * SPAN
    cuts = torch.rand((count, left - 1), generator=draws).topk(spans - 1, dim=1).indices.sort(dim=1).values + 1
    before = F.pad(cuts, (0, 1), value=left)
    starts = before + SPAN * torch.arange(spans)
    places = (starts[..., None] + torch.arange(SPAN)).flatten(1)
    sentinels = SENTINEL + torch.arange(spans).flip(0).expand(count, -1)
    gone = torch.zeros_like(rows, dtype=torch.bool).scatter(1, places, True).scatter(1, starts, False)
    shown = rows.scatter(1, starts, sentinels)[~gone].view(count, -1)
    left_out = torch.cat((sentinels[..., None], rows.gather(1, places).unflatten(1, (spans, SPAN))), 2).flip(1)
    return F.pad(shown, (0, 1), value=END), left_out.flatten(1), left_out[..., 1:]


def initialise(model: PreTrainedModel) -> None:
    """Zero the maps that end a block: every block is the identity at first, and learns what to add.

    A head of its own starts at zero too, with every word equally likely.
    """
    family = family_of(model.config.model_type)
    family.untie_head(model)
    for place in family.places(model):
        if place.adapter_after:
            nn.init.zeros_(model.get_submodule(place.module).get_parameter("weight"))
    head = model.get_output_embeddings()
    if head.weight is not model.get_input_embeddings().weight:
        nn.init.zeros_(head.weight)


class HeadLoss(torch.autograd.Function):
    """Mean cross-entropy of states [n, d] against targets [n] under a head of words [vocabulary, d], in nats.

    Scores and their gradient are made chunk by chunk and dropped. The head is most of a small rung's work, and
    n × vocabulary scores written to memory and read back are most of the head's.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, words: Tensor, targets: Tensor) -> Tensor:
        by_states, by_words = torch.empty_like(states), torch.zeros_like(words)
        loss = torch.zeros(())
        for start in range(0, len(targets), CHUNK):
            chunk = slice(start, start + CHUNK)
            inputs, target = states[chunk], targets[chunk, None]
            shares = torch.softmax(inputs @ words.T, -1)
            right = shares.gather(1, target)
            loss -= right.clamp_min(torch.finfo(torch.float32).tiny).log().sum()
            by_scores = shares.scatter_(1, target, right - 1)
            torch.mm(by_scores, words, out=by_states[chunk])
            by_words.addmm_(by_scores.T, inputs)
        ctx.save_for_backward(by_states, by_words)
        ctx.count = len(targets)
        return loss / len(targets)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        by_states, by_words = ctx.saved_tensors
        share = gradient / ctx.count
        return by_states * share, by_words * share, None


def training_loss(model: PreTrainedModel, rows: Tensor, causal: bool, draws: torch.Generator) -> Tensor:
    """The objective's mean loss in nats per predicted token."""
    states, targets = OBJECTIVES[model.config.model_type](model, rows, causal, draws)
    return HeadLoss.apply(states, model.get_output_embeddings().weight, targets)


@torch.no_grad()
def heldout_loss(model: PreTrainedModel, rows: Tensor) -> tuple[float, Tensor]:
    """The same of the final phase over any number of rows, and the ids [n] that were to be named.

    What is hidden depends on the rows' number alone, so that it is the same for every rung of a family.
    """
    total, named = 0.0, []
    for number, part in enumerate(rows.split(16)):
        states, targets = OBJECTIVES[model.config.model_type](model, part.long(), False, draws_for("heldout", number))
        scores = F.linear(states, model.get_output_embeddings().weight)
        total += F.cross_entropy(scores, targets, reduction="sum").item()
        named.append(targets)
    return total / sum(map(len, named)), torch.cat(named)


def _decode(model: T5ForConditionalGeneration, encoded: Tensor, said: Tensor) -> Tensor:
    """The decoder's states after each of `said`, its start in front."""
    ids = F.pad(said, (1, 0), value=PAD)
    return model.decoder(input_ids=ids, encoder_hidden_states=encoded, use_cache=False).last_hidden_state[:, 1:]


def _at(states: Tensor, places: Tensor) -> Tensor:
    return states.gather(1, places[..., None].expand(-1, -1, states.shape[-1]))


def _for_head(model: PreTrainedModel, states: Tensor) -> Tensor:
    return family_of(model.config.model_type).transform(model, states)
