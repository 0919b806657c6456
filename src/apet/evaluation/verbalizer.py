"""Label words as a tree of tokens: what a PLM is asked about a label, and how sure it is of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from apet.evaluation.encoding import EncodedSplit, padded
from apet.tuning import TunedPLM

ROWS = 32
"""Rows a batch: fixed, since another number may change the last bits of a logit."""


@dataclass(frozen=True)
class TrieNode:
    """A place where label words part.

    said: the tokens before it, which its words share. words [k]: the tokens that may follow. turn [labels]: the number
    of the one that a label's word goes on with, -1 where it does not come this way.
    """

    said: tuple[int, ...]
    words: Tensor
    next_index: Tensor

    def logits(self, tuned: TunedPLM, theta: Sequence[Tensor], ids: Tensor, lengths: Tensor) -> Tensor:
        """Logits [rows, k] of the words that may follow, on the CPU."""
        said = torch.tensor(self.said).expand(len(ids), -1) if self.said else None
        return tuned(theta, ids, lengths, self.words, said).float().cpu()


@dataclass(frozen=True)
class LabelTrie:
    """Label words, none of which begins another. tokens: each one's.

    A word's probability is the product, over the forks on its way, of the softmax over the tokens that may follow
    there, so that the labels' sum to 1; a token without an alternative costs nothing and is not asked for. Words that
    differ in their first token have one fork, and need one forward pass.
    """

    tokens: tuple[tuple[int, ...], ...]
    nodes: tuple[TrieNode, ...]

    @classmethod
    def of(cls, tokens: Sequence[Sequence[int]]) -> LabelTrie:
        """Of the token ids of each label's word; of the labels' numbers, one a word, for a trained head."""
        words = tuple(map(tuple, tokens))
        shared = dict.fromkeys(word[:size] for word in words for size in range(len(word)))
        return cls(words, tuple(fork for said in shared if (fork := _fork(words, said))))

    def __len__(self) -> int:
        return len(self.tokens)

    def scores(self, tuned: TunedPLM, theta: Sequence[Tensor], ids: Tensor, lengths: Tensor) -> Tensor:
        """Log-probabilities [rows, labels], up to a number a row: with one fork they are its logits."""
        if len(self.nodes) == 1:
            return self.nodes[0].logits(tuned, theta, ids, lengths)
        found = torch.zeros(len(ids), len(self))
        for fork in self.nodes:
            passing = (fork.next_index >= 0).nonzero().flatten()
            chances = F.log_softmax(fork.logits(tuned, theta, ids, lengths), dim=1)
            found[:, passing] += chances[:, fork.next_index[passing]]
        return found

    def loss(self, tuned: TunedPLM, theta: Sequence[Tensor], ids: Tensor, lengths: Tensor, labels: Tensor) -> Tensor:
        """−log P of the right labels [rows], mean; only the forks on a row's way are computed for it."""
        total = torch.zeros(())
        for fork in self.nodes:
            turn = fork.next_index[labels]
            rows = (turn >= 0).nonzero().flatten()
            if len(rows):
                logits = fork.logits(tuned, theta, ids[rows], lengths[rows])
                total = total + F.cross_entropy(logits, turn[rows], reduction="sum")
        return total / len(labels)

    def answers(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The words of labels [rows] as tokens [rows, longest], right-padded, and their lengths [rows]."""
        return padded([self.tokens[label] for label in labels.tolist()])


@torch.no_grad()
def predict(tuned: TunedPLM, theta: Sequence[Tensor], data: EncodedSplit, labels: LabelTrie) -> Tensor:
    """`LabelTrie.scores` of every row of a split, [n, labels]."""
    found = torch.empty(len(data), len(labels))
    for rows in data.length_sorted_batches(ROWS):
        found[rows] = labels.scores(tuned, theta, *data.batch(rows))
    return found


def _fork(words: Sequence[tuple[int, ...]], said: tuple[int, ...]) -> TrieNode | None:
    """The fork behind these tokens; None where all words that share them go on alike."""
    nexts = [word[len(said)] if word[: len(said)] == said else None for word in words]
    ways = list(dict.fromkeys(token for token in nexts if token is not None))
    if len(ways) == 1:
        return None
    return TrieNode(said, torch.tensor(ways), torch.tensor([-1 if t is None else ways.index(t) for t in nexts]))
