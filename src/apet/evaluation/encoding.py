"""A split as tensors: tokenised and padded once, then only indexed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from apet.data.prepare import read_split
from apet.data.tokenization import encode, encode_targets, label_ids
from apet.errors import ConfigError, DataError, unknown_name
from apet.models.families import FAMILIES
from apet.models.loading import PLM


@dataclass(frozen=True)
class EncodedSplit:
    """row_ids: the rows' ids. ids [n, longest], right-padded. lengths [n]. labels [n], numbers of the label words.

    truncated: share of the rows whose texts were cut. Generation: labels is empty; references are the right answers of
    each row; targets [n, longest answer] the first of them, right-padded, target_lengths [n].
    """

    row_ids: list[str]
    ids: Tensor
    lengths: Tensor
    labels: Tensor
    truncated: float = 0.0
    references: list[list[str]] = field(default_factory=list)
    targets: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.long))
    target_lengths: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))

    def __len__(self) -> int:
        return len(self.row_ids)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids [k, longest of these] and lengths [k] of rows [k]."""
        lengths = self.lengths[rows]
        return self.ids[rows, : int(lengths.max())], lengths

    def length_sorted_batches(self, size: int) -> tuple[Tensor, ...]:
        """All row numbers in batches of a size, short rows first, so that little padding is computed."""
        return self.lengths.argsort(stable=True).split(size)

    def answers(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids [k, longest of these] and lengths [k] of the first references of rows [k]."""
        lengths = self.target_lengths[rows]
        return self.targets[rows, : int(lengths.max())], lengths

    @property
    def tokens(self) -> dict[str, float]:
        """How many tokens a row has, prompt included."""
        return {"mean": float(self.lengths.double().mean()), "longest": int(self.lengths.max())}


def encode_split(
    folder: Path, split: str, task: Mapping[str, Any], plm: PLM, length: int, end: Sequence[int] = ()
) -> EncodedSplit:
    """One prepared split in the task's prompt and the family's frame, each row cut to `length` tokens.

    end: ids that close an answer to be generated, and count into the task's target_length.
    """
    rows, frame = read_split(folder, split), plm.special_tokens
    texts = {name: rows[name].tolist() for name in task["text_columns"]}
    prompt = prompt_of(task, plm.family.name)
    tokens, cut = encode(texts, plm.tokenizer, prompt, length, before=frame.before, after=frame.after)
    ids, lengths = padded(tokens)
    names, truncated = rows["id"].tolist(), sum(map(bool, cut)) / len(cut)
    if task["type"] == "classification":
        return EncodedSplit(names, ids, lengths, torch.tensor(rows["label"].to_numpy(copy=True)), truncated)
    references = [list(targets) for targets in rows["targets"]]
    answers = encode_targets([first for first, *_ in references], plm.tokenizer, task["max_new_tokens"], end)
    return EncodedSplit(
        names, ids, lengths, torch.empty(0, dtype=torch.long), truncated, references, *padded(answers.ids)
    )


def prompt_of(task: Mapping[str, Any], family: str) -> str:
    """The task's prompt for a family: its own, or the default. ParamsError if the task names a family unknown here."""
    prompts = task.get("prompts", {})
    for name in prompts:
        if name not in FAMILIES:
            raise ConfigError(unknown_name("family", name, FAMILIES, f"task {task['task']}: prompt"))
    return prompts.get(family, task["prompt"])


def padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids [n, longest], zeros to the right, and lengths [n]."""
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.zeros(len(rows), int(lengths.max()), dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
    return ids, lengths


def label_tokens(task: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """All token ids of each label's word, in the labels' order, so that words with a common beginning can be scored.

    Raises DataError where a word is the beginning of another: it would win whatever the PLM thinks of the other's end.
    """
    words = list(task["verbalizer"].values())
    found = label_ids(tokenizer, words)
    for number, ids in enumerate(found):
        for other, longer in enumerate(found):
            if other != number and longer[: len(ids)] == ids:
                raise DataError(
                    f"task {task['task']}: label word {words[number]!r} is the beginning of {words[other]!r} in this "
                    "PLM's tokenizer: choose words of which none begins another."
                )
    return found
