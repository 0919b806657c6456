"""Label words as a trie of tokens: scores and loss of labels with words of one or more tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from apet.evaluation.encoding import EncodedSplit, padded
from apet.evaluation.generation import answer_loss
from apet.tuning import TunedPLM

LABEL_BATCH_SIZE = 32
"""Rows in a batch. Fixed, because another size may change the last bits of a logit."""


@dataclass(frozen=True)
class TrieNode:
    """A branching node of the label-word trie."""

    prefix: tuple[int, ...]
    """Token ids from the root to the node."""
    tokens: Tensor
    """Token ids of the branches."""
    next_index: Tensor
    """Branch taken by each label, from 0 to k − 1, or −1 if the label is not below this node. Shape [labels]."""
    has_end: bool = False
    """True if a label's word ends here. Its branch, the last one, stands for all tokens that are not in `tokens`."""

    def logits(self, tuned: TunedPLM, theta: Sequence[Tensor], ids: Tensor, lengths: Tensor) -> Tensor:
        """Compute the logits of the branches after each prompt and the prefix, on the CPU, shape [rows, k]."""
        prefix = torch.tensor(self.prefix).expand(len(ids), -1) if self.prefix else None
        if not self.has_end:
            return tuned(theta, ids, lengths, self.tokens, prefix).float().cpu()
        logits = tuned(theta, ids, lengths, None, prefix).float()
        tokens = self.tokens.to(logits.device)
        end = logits.index_fill(1, tokens, -torch.inf).logsumexp(dim=1, keepdim=True)
        return torch.cat((logits[:, tokens], end), dim=1).cpu()


@dataclass(frozen=True)
class LabelTrie:
    """Label words.

    The probability of a word is the product, over the branching nodes on its path, of the softmax over the node's
    branches. So the labels' probabilities sum to 1, and tokens without an alternative need no forward pass. Words that
    differ in their first token have one node, and need one forward pass.

    If a word is the beginning of another (card, card arrival), it is scored as the word followed by any token that does
    not continue towards another label. This needs the logits of the whole vocabulary at its end.
    """

    tokens: tuple[tuple[int, ...], ...]
    """Token ids of each label's word."""
    nodes: tuple[TrieNode, ...]
    """Branching nodes, each before those below it."""

    @classmethod
    def from_tokens(cls, tokens: Sequence[Sequence[int]]) -> LabelTrie:
        """Build the trie of label words.

        Args:
            tokens: token ids of each label's word. For a classification head, the label's number.

        Returns:
            The trie, with a node wherever words branch.
        """
        words = tuple(map(tuple, tokens))
        prefixes = dict.fromkeys(word[:size] for word in words for size in range(len(word)))
        return cls(words, tuple(node for prefix in prefixes if (node := _node(words, prefix))))

    def __len__(self) -> int:
        return len(self.tokens)

    def scores(self, tuned: TunedPLM, theta: Sequence[Tensor], ids: Tensor, lengths: Tensor) -> Tensor:
        """Compute the log-probabilities of all labels, up to a constant in each row: with one node, its logits.

        Args:
            tuned: the tuned PLM.
            theta: θ, and the head if there is one, as consecutive tensors.
            ids: token ids of the prompts, right-padded, shape [rows, longest prompt].
            lengths: tokens of the prompts, shape [rows].

        Returns:
            Scores, shape [rows, labels], on the CPU.
        """
        if len(self.nodes) == 1:
            return self.nodes[0].logits(tuned, theta, ids, lengths)[:, self.nodes[0].next_index]
        scores = torch.zeros(len(ids), len(self))
        for node in self.nodes:
            below = (node.next_index >= 0).nonzero().flatten()
            log_probs = F.log_softmax(node.logits(tuned, theta, ids, lengths), dim=1)
            scores[:, below] += log_probs[:, node.next_index[below]]
        return scores

    def loss(self, tuned: TunedPLM, theta: Sequence[Tensor], ids: Tensor, lengths: Tensor, labels: Tensor) -> Tensor:
        """Compute the mean of −log P over the correct labels.

        Only nodes on the path of a row's label are computed for the row.

        Args:
            tuned: the tuned PLM.
            theta: θ, and the head if there is one, as consecutive tensors.
            ids: token ids of the prompts, right-padded, shape [rows, longest prompt].
            lengths: tokens of the prompts, shape [rows].
            labels: numbers of the correct labels, shape [rows].

        Returns:
            The loss in nats, a scalar.
        """
        total = torch.zeros(())
        for node in self.nodes:
            next_index = node.next_index[labels]
            rows = (next_index >= 0).nonzero().flatten()
            if len(rows):
                logits = node.logits(tuned, theta, ids[rows], lengths[rows])
                total = total + F.cross_entropy(logits, next_index[rows], reduction="sum")
        return total / len(labels)

    def full_vocab_loss(
        self, tuned: TunedPLM, theta: Sequence[Tensor], ids: Tensor, lengths: Tensor, labels: Tensor
    ) -> Tensor:
        """Compute the mean of −log P over the tokens of the correct labels' words, P over the whole vocabulary.

        The end of a word that another one continues counts as a token, with the probability that it has in `scores`.
        Otherwise nothing would teach the PLM to end there.

        Args:
            tuned: the tuned PLM.
            theta: θ as consecutive tensors.
            ids: token ids of the prompts, right-padded, shape [rows, longest prompt].
            lengths: tokens of the prompts, shape [rows].
            labels: numbers of the correct labels, shape [rows].

        Returns:
            The loss in nats, a scalar.
        """
        words, sizes = self.target_batch(labels)
        ends = [(node, labels == self.tokens.index(node.prefix)) for node in self.nodes if node.has_end]
        if not any(here.any() for _, here in ends):
            return answer_loss(tuned, theta, ids, lengths, words, sizes)
        total, count = answer_loss(tuned, theta, ids, lengths, words, sizes, "sum").cpu(), int(sizes.sum())
        for node, here in ends:
            if rows := here.nonzero().flatten().tolist():
                logits = node.logits(tuned, theta, ids[rows], lengths[rows])
                total = total - F.log_softmax(logits, dim=1)[:, -1].sum()
                count += len(rows)
        return total / count

    def target_batch(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the words of labels [rows] as right-padded token ids [rows, longest word] and lengths [rows]."""
        return padded([self.tokens[label] for label in labels.tolist()])


@torch.no_grad()
def predict(tuned: TunedPLM, theta: Sequence[Tensor], data: EncodedSplit, labels: LabelTrie) -> Tensor:
    """Compute the scores of all labels for all rows of a split.

    Args:
        tuned: the tuned PLM.
        theta: θ, and the head if there is one, as consecutive tensors.
        data: the split, of n rows.
        labels: the trie of the label words.

    Returns:
        Log-probabilities up to a constant in each row, as `LabelTrie.scores`, shape [n, labels], on the CPU.
    """
    scores = torch.empty(len(data), len(labels))
    for rows in data.length_sorted_batches(LABEL_BATCH_SIZE):
        scores[rows] = labels.scores(tuned, theta, *data.batch(rows))
    return scores


def _node(words: Sequence[tuple[int, ...]], prefix: tuple[int, ...]) -> TrieNode | None:
    """Return the branching node after a prefix. None if all words with the prefix have the same next token."""
    below = [word[: len(prefix)] == prefix for word in words]
    nexts = [(*word, None)[len(prefix)] if here else None for word, here in zip(words, below, strict=True)]
    tokens = list(dict.fromkeys(token for token in nexts if token is not None))
    has_end = prefix in words
    if len(tokens) + has_end == 1:
        return None
    branches = [*tokens, None]
    next_index = [branches.index(token) if here else -1 for token, here in zip(nexts, below, strict=True)]
    return TrieNode(prefix, torch.tensor(tokens), torch.tensor(next_index), has_end)
