"""A split as tensors: tokenised and padded once, then only indexed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from apet.data.batches import encode, label_ids
from apet.data.prepare import read_split
from apet.errors import DataError
from apet.plms.load import PLM


@dataclass(frozen=True)
class Encoded:
    """names: the rows' ids. ids [n, longest], right-padded. lengths [n]. labels [n], numbers of the label words."""

    names: list[str]
    ids: Tensor
    lengths: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.names)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids [k, longest of these] and lengths [k] of rows [k]."""
        lengths = self.lengths[rows]
        return self.ids[rows, : int(lengths.max())], lengths


def encode_split(folder: Path, split: str, task: Mapping[str, Any], plm: PLM, length: int) -> Encoded:
    """One prepared split in the task's prompt and the family's frame, each row cut to `length` tokens."""
    rows, frame = read_split(folder, split), plm.frame
    texts = rows["text"].tolist()
    tokens = encode(texts, plm.tokenizer, task["prompt"], length, before=frame.before, after=frame.after)
    lengths = torch.tensor([len(t) for t in tokens])
    ids = torch.zeros(len(tokens), int(lengths.max()), dtype=torch.long)
    for row, t in enumerate(tokens):
        ids[row, : len(t)] = torch.tensor(t)
    return Encoded(rows["id"].tolist(), ids, lengths, torch.tensor(rows["label"].to_numpy(copy=True)))


def label_words(task: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """The token that stands for each label: the first of its word, shape [labels].

    Raises DataError where two label words share their first token, which could not be told apart at one position.
    """
    words = list(task["labels"].values())
    first = [ids[0] for ids in label_ids(tokenizer, words)]
    for number, token in enumerate(first):
        if token in first[:number]:
            other = words[first.index(token)]
            raise DataError(
                f"task {task['task']}: label words {other!r} and {words[number]!r} share their first token "
                f"{tokenizer.convert_ids_to_tokens(token)!r} in this PLM's tokenizer: choose words that differ there."
            )
    return torch.tensor(first)
