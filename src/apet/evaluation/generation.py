"""Answers in words: how well a tuned PLM foretells given ones, and what it writes itself, greedily."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from apet.evaluation.encoding import EncodedSplit
from apet.tuning import TunedPLM

ROWS = 16
"""Rows a batch: fixed, as another number may change the last bits of a logit; few, as each holds a whole vocabulary."""

NO_TOKEN = -100
"""Among targets: padding, which the cross-entropy leaves out."""


def answer_loss(
    tuned: TunedPLM,
    theta: Sequence[Tensor],
    ids: Tensor,
    lengths: Tensor,
    answers: Tensor,
    sizes: Tensor,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy over all words, in nats, of every token of answers [rows, longest] of sizes [rows], each given
    those before it; the mean over tokens, or their sum.
    """
    targets = answers.masked_fill(torch.arange(answers.shape[1]) >= sizes[:, None], NO_TOKEN)
    if tuned.family.decoder:
        logits = tuned(theta, ids, lengths, None, answers[:, :-1], all_positions=True).flatten(0, -2)
        return F.cross_entropy(logits, targets.flatten().to(logits.device), reduction=reduction)
    # An encoder sees both sides, so it is asked for one token at a time.
    found, asked = [], []
    for place in range(answers.shape[1]):
        rows = (sizes > place).nonzero().flatten()
        found.append(tuned(theta, ids[rows], lengths[rows], None, answers[rows, :place]))
        asked.append(targets[rows, place])
    return F.cross_entropy(torch.cat(found), torch.cat(asked).to(tuned.plm.device), reduction=reduction)


@torch.no_grad()
def split_loss(tuned: TunedPLM, theta: Sequence[Tensor], data: EncodedSplit) -> float:
    """`answer_loss` of a split's first references, mean over all their tokens."""
    total = 0.0
    for rows in data.length_sorted_batches(ROWS):
        total += float(answer_loss(tuned, theta, *data.batch(rows), *data.answers(rows), reduction="sum"))
    return total / int(data.target_lengths.sum())


@torch.no_grad()
def generate(tuned: TunedPLM, theta: Sequence[Tensor], data: EncodedSplit, end: int, longest: int) -> list[list[int]]:
    """Greedy answers to every row of a split: token ids up to the token `end`, at most `longest` with it.

    The first of equally likely tokens is said. A row that has ended leaves its batch.
    """
    answers: list[list[int]] = [[] for _ in data.row_ids]
    for rows in data.length_sorted_batches(ROWS):
        written = tuned.generate(theta, *data.batch(rows))
        for left in reversed(range(longest)):
            tokens = written.logits.argmax(dim=1).cpu()
            going = (tokens != end).nonzero().flatten()
            rows, tokens = rows[going], tokens[going]
            for row, token in zip(rows.tolist(), tokens.tolist(), strict=True):
                answers[row].append(token)
            if not left or not len(rows):
                break
            written.step(tokens, going)
    return answers
