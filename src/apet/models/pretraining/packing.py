"""Packing of the corpus: documents in a seeded order, concatenated and cut into rows of tokens."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count as integers
from itertools import islice
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
"""Documents that are tokenized together."""

HELD_OUT = 2**16
"""Most held-out tokens of a loss: the same for all ladder models, and enough to tell them apart."""


def training_rows(corpus_folder: Path, tokenizer: PreTrainedTokenizerBase, recipe: PretrainingConfig) -> Tensor:
    """Pack the training documents into rows of token ids.

    Documents are sampled without replacement, in a new order each epoch. Only as many as needed are tokenized. Rows are
    then shuffled, because neighbors come from the same document.

    Args:
        corpus_folder: folder of the corpus.
        tokenizer: the ladder's tokenizer.
        recipe: numbers of steps, of rows in a batch and of tokens in a row, and the seed.

    Returns:
        Token ids, int32, shape [steps · batch_size, block_size + 1].

    Raises:
        DataError: the corpus is missing or has no training document.
        CorruptError: the corpus has another checksum than in its record.
    """
    texts = list(read_corpus(corpus_folder, "train")["text"])
    if not texts:
        raise DataError(f"{corpus_folder}/train.parquet: no document. Build the corpus again.")
    needed = recipe.steps * recipe.batch_size * (recipe.block_size + 1)
    chunks, count = [], 0
    for chunk in _tokenize(_epochs(texts, recipe.seed), tokenizer):
        chunks.append(chunk)
        count += len(chunk)
        if count >= needed:
            break
    rows = _cut(np.concatenate(chunks)[:needed], recipe.block_size)
    return rows[torch.from_numpy(_permutation(len(rows), "rows", recipe.seed))]


def heldout_rows(corpus_folder: Path, tokenizer: PreTrainedTokenizerBase, length: int) -> Tensor:
    """Pack the held-out documents into rows of token ids.

    Every n-th row is taken, to stay within HELD_OUT tokens.

    Args:
        corpus_folder: folder of the corpus.
        tokenizer: the ladder's tokenizer.
        length: tokens to predict in a row.

    Returns:
        Token ids, int32, shape [k, length + 1].

    Raises:
        DataError: the corpus is missing, or its held-out documents do not fill a row.
        CorruptError: the corpus has another checksum than in its record.
    """
    chunks = list(_tokenize(iter(read_corpus(corpus_folder, "heldout")["text"]), tokenizer))
    rows = _cut(np.concatenate([np.empty(0, np.int32), *chunks]), length)
    rows = rows[:: -(-rows[:, 1:].numel() // HELD_OUT) or 1]
    if not len(rows):
        raise DataError(
            f"{corpus_folder}/heldout.parquet: fewer than the {length + 1} tokens of a row. Lower block_size."
        )
    return rows


def unigram_entropy(train: Tensor, targets: Tensor, vocab_size: int) -> float:
    """Compute the loss of a unigram model with add-one smoothing, the plateau of a model that ignores the context.

    Args:
        train: token ids to count, of any shape.
        targets: token ids to predict, shape [n].
        vocab_size: number of token ids.

    Returns:
        The loss in nats per token.
    """
    counts = torch.bincount(train.flatten(), minlength=vocab_size).double() + 1
    return -(counts / counts.sum()).log()[targets.long()].mean().item()


def _epochs(texts: list[str], seed: int) -> Iterator[str]:
    for epoch in integers():
        for number in _permutation(len(texts), "documents", seed, epoch):
            yield texts[number]


def _tokenize(texts: Iterator[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[np.ndarray]:
    """Yield ids of several documents at a time, each followed by END."""
    while batch := list(islice(texts, DOCUMENTS)):
        encoded = tokenizer(batch, add_special_tokens=False, verbose=False)["input_ids"]
        yield np.array([token for ids in encoded for token in (*ids, END)], np.int32)


def _cut(tokens: np.ndarray, length: int) -> Tensor:
    rows = len(tokens) // (length + 1)
    return torch.from_numpy(tokens[: rows * (length + 1)].reshape(rows, length + 1))


def _permutation(items: int, *stream: str | int) -> np.ndarray:
    return np.random.default_rng(seed_for(*stream)).permutation(items)
