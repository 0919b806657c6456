"""Splits as tensors, tokenized and padded once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from apet.data.prepared_files import read_split
from apet.data.tokenization import encode, encode_targets, label_ids
from apet.errors import ConfigError, unknown_name
from apet.models.families import FAMILIES
from apet.models.loading import PLM


@dataclass(frozen=True)
class EncodedSplit:
    """A tokenized split of n rows. Classification rows have labels, generation rows have references and targets."""

    row_ids: list[str]
    """Id of each row."""
    ids: Tensor
    """Token ids of the prompts, right-padded with 0, shape [n, longest prompt]."""
    lengths: Tensor
    """Tokens of each prompt, shape [n]."""
    labels: Tensor
    """Label number of each row, shape [n]. Empty for generation."""
    truncated: float = 0.0
    """Share of rows whose texts were truncated."""
    references: list[list[str]] = field(default_factory=list)
    """Correct answers of each row."""
    targets: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.long))
    """Token ids of each row's first reference, right-padded with 0, shape [n, longest target]."""
    target_lengths: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    """Tokens of each target, shape [n]."""

    def __len__(self) -> int:
        return len(self.row_ids)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the token ids [k, longest prompt] and lengths [k] of rows [k]."""
        lengths = self.lengths[rows]
        return self.ids[rows, : int(lengths.max())], lengths

    def target_batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the target token ids [k, longest target] and target lengths [k] of rows [k]."""
        lengths = self.target_lengths[rows]
        return self.targets[rows, : int(lengths.max())], lengths

    def length_sorted_batches(self, batch_size: int) -> tuple[Tensor, ...]:
        """Return all row numbers in batches, sorted by length to reduce padding."""
        return self.lengths.argsort(stable=True).split(batch_size)

    @property
    def tokens(self) -> dict[str, float]:
        """Mean and largest number of tokens of a row, prompt included."""
        return {"mean": float(self.lengths.double().mean()), "longest": int(self.lengths.max())}


def encode_split(
    folder: Path, split: str, task: Mapping[str, Any], plm: PLM, max_length: int, end_ids: Sequence[int] = ()
) -> EncodedSplit:
    """Tokenize a prepared split with the task's prompt and the PLM's special tokens.

    Args:
        folder: folder of the prepared task.
        split: `train`, `validation` or `test`.
        task: record of the prepared task.
        plm: the PLM.
        max_length: most tokens of a row. Longer texts are truncated.
        end_ids: token ids that end a generated answer. They count toward the task's `max_new_tokens`.

    Returns:
        All rows of the split, in their order in the prepared folder.

    Raises:
        ConfigError: the task has a prompt for an unknown family.
        DataError: the split is missing or is not the split of the record.
    """
    rows, special = read_split(folder, split), plm.special_tokens
    texts = {name: rows[name].tolist() for name in task["text_columns"]}
    prompt = prompt_of(task, plm.family.name)
    token_ids, cut = encode(texts, plm.tokenizer, prompt, max_length, before=special.before, after=special.after)
    ids, lengths = padded(token_ids)
    row_ids, truncated = rows["id"].tolist(), sum(cut) / len(cut)
    if task["type"] == "classification":
        return EncodedSplit(row_ids, ids, lengths, torch.tensor(rows["label"].to_numpy(copy=True)), truncated)
    references = [list(targets) for targets in rows["targets"]]
    targets = encode_targets([first for first, *_ in references], plm.tokenizer, task["max_new_tokens"], end_ids)
    no_labels = torch.empty(0, dtype=torch.long)
    return EncodedSplit(row_ids, ids, lengths, no_labels, truncated, references, *padded(targets.ids))


def prompt_of(task: Mapping[str, Any], family: str) -> str:
    """Return the task's prompt for a family, by default the prompt for all families.

    Args:
        task: record of the prepared task.
        family: name of the family.

    Returns:
        A template with the task's text columns in braces.

    Raises:
        ConfigError: the task has a prompt for an unknown family.
    """
    prompts = task.get("prompts", {})
    for name in prompts:
        if name not in FAMILIES:
            raise ConfigError(unknown_name("family", name, FAMILIES, f"task {task['task']}: prompt"))
    return prompts.get(family, task["prompt"])


def padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return token ids as one tensor [n, longest], right-padded with 0, and lengths [n]."""
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
    return ids, lengths


def label_tokens(task: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Tokenize the label words.

    Args:
        task: record of the prepared task.
        tokenizer: the PLM's tokenizer.

    Returns:
        Token ids of each word, in the order of the labels.

    Raises:
        DataError: a label word has no tokens, or two words have the same.
    """
    return label_ids(tokenizer, list(task["verbalizer"].values()))
