"""Generation: loss of reference answers, and greedy decoding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from apet.evaluation.encoding import EncodedSplit
from apet.tuning import TunedPLM

GENERATION_BATCH_SIZE = 16
"""Rows in a batch. Fixed, because another size may change the last bits of a logit. Small, because a row's logits cover
the whole vocabulary."""

IGNORE_INDEX = -100
"""Target of padding, which the cross-entropy ignores."""


def answer_loss(
    tuned: TunedPLM,
    theta: Sequence[Tensor],
    ids: Tensor,
    lengths: Tensor,
    targets: Tensor,
    target_lengths: Tensor,
    reduction: str = "mean",
) -> Tensor:
    """Compute the cross-entropy of target answers over the vocabulary, given prompt and previous target tokens.

    Args:
        tuned: the tuned PLM.
        theta: θ, and the head if there is one, as consecutive tensors.
        ids: token ids of the prompts, right-padded, shape [rows, longest prompt].
        lengths: tokens of the prompts, shape [rows].
        targets: token ids of the answers, right-padded, shape [rows, longest answer].
        target_lengths: tokens of the answers, shape [rows].
        reduction: `mean` or `sum` over the answers' tokens.

    Returns:
        The loss in nats, a scalar.
    """
    labels = targets.masked_fill(torch.arange(targets.shape[1]) >= target_lengths[:, None], IGNORE_INDEX)
    if tuned.family.decoder:
        logits = tuned(theta, ids, lengths, None, targets[:, :-1], all_positions=True).flatten(0, -2)
        return F.cross_entropy(logits, labels.flatten().to(logits.device), reduction=reduction)
    # An encoder attends to later tokens too, so it needs a forward pass for each token.
    logits_by_position, labels_by_position = [], []
    for position in range(targets.shape[1]):
        rows = (target_lengths > position).nonzero().flatten()
        logits_by_position.append(tuned(theta, ids[rows], lengths[rows], None, targets[rows, :position]))
        labels_by_position.append(labels[rows, position])
    logits, labels = torch.cat(logits_by_position), torch.cat(labels_by_position)
    return F.cross_entropy(logits, labels.to(tuned.plm.device), reduction=reduction)


@torch.no_grad()
def split_loss(tuned: TunedPLM, theta: Sequence[Tensor], data: EncodedSplit) -> float:
    """Compute `answer_loss` of a split's targets, as the mean over all their tokens."""
    total = 0.0
    for rows in data.length_sorted_batches(GENERATION_BATCH_SIZE):
        total += float(answer_loss(tuned, theta, *data.batch(rows), *data.target_batch(rows), reduction="sum"))
    return total / int(data.target_lengths.sum())


@torch.no_grad()
def generate(
    tuned: TunedPLM, theta: Sequence[Tensor], data: EncodedSplit, end_id: int, max_new_tokens: int
) -> list[list[int]]:
    """Decode answers greedily. The smallest token id decides ties.

    Args:
        tuned: the tuned PLM.
        theta: θ as consecutive tensors.
        data: a split, of which only the prompts are read.
        end_id: token that ends an answer.
        max_new_tokens: most tokens of an answer, `end_id` included.

    Returns:
        Token ids of each row's answer, without `end_id`.
    """
    answers: list[list[int]] = [[] for _ in data.row_ids]
    for rows in data.length_sorted_batches(GENERATION_BATCH_SIZE):
        decoder = tuned.generate(theta, *data.batch(rows))
        for steps_left in reversed(range(max_new_tokens)):
            tokens = decoder.logits.argmax(dim=1).cpu()
            unfinished = (tokens != end_id).nonzero().flatten()
            rows, tokens = rows[unfinished], tokens[unfinished]
            for row, token in zip(rows.tolist(), tokens.tolist(), strict=True):
                answers[row].append(token)
            if not steps_left or not len(rows):
                break
            decoder.step(tokens, unfinished)
    return answers
