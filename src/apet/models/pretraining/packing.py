"""The corpus as rows of tokens: documents in a seeded order, joined end to end, and cut."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from apet.config.study_config import PretrainingConfig
from apet.core.hashing import seed_for
from apet.data.corpus import read_corpus
from apet.errors import DataError
from apet.models.ladder import END

DOCUMENTS = 500
"""Documents tokenised at one time."""

HELD_OUT = 2**16
"""Most held-out tokens that a loss is measured on: the same for every rung, and enough to tell rungs apart."""


def training_rows(corpus_folder: Path, tokenizer: PreTrainedTokenizerBase, recipe: PretrainingConfig) -> Tensor:
    """The recipe's rows [steps · batch, length + 1] of ids (int32), each predicting `length` tokens.

    Documents are drawn without replacement, in a new order each epoch; only as many as needed are tokenised. The rows
    are then mixed, because neighbours come from one document. Nothing but corpus, tokenizer and recipe decides them.
    """
    texts = list(read_corpus(corpus_folder, "train")["text"])
    if not texts:
        raise DataError(f"{corpus_folder}/train.parquet: no document.")
    wanted = recipe.steps * recipe.batch_size * (recipe.block_size + 1)
    parts, found = [], 0
    for part in _tokens(_endless(texts, recipe.seed), tokenizer):
        parts.append(part)
        found += len(part)
        if found >= wanted:
            break
    rows = _cut(np.concatenate(parts)[:wanted], recipe.block_size)
    return rows[torch.from_numpy(_order(len(rows), "rows", recipe.seed))]


def heldout_rows(corpus_folder: Path, tokenizer: PreTrainedTokenizerBase, length: int) -> Tensor:
    """Rows [k, length + 1] of ids (int32) of documents never trained on: every n-th, to stay within HELD_OUT tokens."""
    parts = list(_tokens(iter(read_corpus(corpus_folder, "heldout")["text"]), tokenizer))
    rows = _cut(np.concatenate([np.empty(0, np.int32), *parts]), length)
    rows = rows[:: -(-rows[:, 1:].numel() // HELD_OUT) or 1]
    if not len(rows):
        raise DataError(f"{corpus_folder}/heldout.parquet: fewer than the {length + 1} tokens of one row.")
    return rows


def unigram_entropy(train: Tensor, targets: Tensor, vocabulary: int) -> float:
    """Nats per predicted held-out token of `targets` under the training rows' own counts, one added to each word.

    A model that ignores the context stays on this plateau.
    """
    counts = torch.bincount(train.flatten(), minlength=vocabulary).double() + 1
    return -(counts / counts.sum()).log()[targets.long()].mean().item()


def _endless(texts: list[str], seed: int) -> Iterator[str]:
    for epoch in count():
        for number in _order(len(texts), "documents", seed, epoch):
            yield texts[number]


def _tokens(texts: Iterator[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[np.ndarray]:
    """Ids of some documents at a time, an end after each."""
    while some := list(islice(texts, DOCUMENTS)):
        encoded = tokenizer(some, add_special_tokens=False, verbose=False)["input_ids"]
        yield np.array([token for ids in encoded for token in (*ids, END)], np.int32)


def _cut(tokens: np.ndarray, length: int) -> Tensor:
    whole = len(tokens) // (length + 1)
    return torch.from_numpy(tokens[: whole * (length + 1)].reshape(whole, length + 1))


def _order(items: int, *stream: str | int) -> np.ndarray:
    return np.random.default_rng(seed_for(*stream)).permutation(items)
