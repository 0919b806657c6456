"""Split assignment: a hash of a row's own text, so that no text is in two splits, even if rows are added later.

Two texts are equal if their normalised forms are, and near-duplicates if these share their first or last EDGE_CHARS
characters (a story with a new headline, a message quoted under a new reply). Texts of the task's `group_by` columns
(a premise, a question, a document) must not occur in two splits.
"""

from __future__ import annotations

import json
import re
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from apet.core.hashing import digest, seed_for
from apet.data.schema import PRIORITY, SPLITS, Row

FRACTIONS = {"test": 0.2, "validation": 0.1}
"""Fractions of the rows that go to these splits, if the source does not have them."""
EDGE_CHARS = 200
SPLIT_OFF = "split off train"
"""Origin of a split that the source does not have."""
WORD = re.compile(r"[^\W_]+")


class Example(NamedTuple):
    """A row that is unique in its task."""

    id: str
    """Hash of its normalised texts."""
    packed: bytes
    """Its texts and references, compressed, because 50,000 long documents must fit into memory."""
    label: str | None
    """Its class, or None if it has references."""
    keys: frozenset[str]
    """The edges of its grouped texts. Examples that share a key are near-duplicates."""
    split_hash: float
    """A number in [0, 1) that determines its split, if the source does not."""

    @classmethod
    def from_texts(
        cls,
        texts: Sequence[str],
        normalised: Sequence[str],
        answer: str | tuple[str, ...],
        group: Sequence[int] | None = None,
    ) -> Example:
        """Make an example.

        Args:
            texts: The row's texts.
            normalised: Their normalised forms.
            answer: A class, or references.
            group: Indices of the texts that must not occur in two splits. None: all.

        Returns:
            The example, with its id, keys and split hash.
        """
        grouped = [normalised[i] for i in (range(len(normalised)) if group is None else group)]
        label, references = (answer, ()) if isinstance(answer, str) else (None, answer)
        keys = frozenset(edge for text in grouped for edge in edges(text))
        return cls(text_id(*normalised), _pack(texts, references), label, keys, split_hash(grouped))

    @property
    def texts(self) -> tuple[str, ...]:
        """The row's texts."""
        return tuple(json.loads(zlib.decompress(self.packed))[0])

    @property
    def references(self) -> tuple[str, ...]:
        """The row's references."""
        return tuple(json.loads(zlib.decompress(self.packed))[1])

    def with_references(self, references: Iterable[str]) -> Example:
        """Return the same example with other references."""
        return self._replace(packed=_pack(self.texts, list(references)))


class Splits(NamedTuple):
    """Examples of each split, without a meaningful order."""

    splits: dict[str, list[Example]]
    origin: dict[str, str]
    """Split -> official split of the source, or how it was made."""
    dropped: dict[str, int]
    """Reason -> number of dropped rows."""


def normalise(text: str) -> str:
    """Return a text's letters and digits: NFKC, case-folded, words separated by one space."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(WORD.findall(folded))


def text_id(*normalised: str) -> str:
    """Return the id of normalised texts (16 hex digits): the same in every task and corpus."""
    return digest("\n".join(normalised))[:16]


def edges(normalised: str) -> tuple[str, str]:
    """Return the first and the last EDGE_CHARS characters of a normalised text."""
    return normalised[:EDGE_CHARS], normalised[-EDGE_CHARS:]


def fraction(*coordinates: object) -> float:
    """Hash coordinates to a number in [0, 1)."""
    return seed_for(*coordinates) / 2**63


def split_hash(grouped: Sequence[str]) -> float:
    """Hash the grouped texts of a row to the number that determines its split.

    Only one text is hashed: the one with the smallest hash. Neither task nor seed is hashed, so a sentence of two tasks
    is in the same split of both, and no seed can move a test text into a corpus of another seed. A row's other texts
    may determine the split of other rows; `drop_cross_split_duplicates` then drops rows, so that each set of rows that
    are connected by common texts is in one split. (A hash for each set would change whenever a new row connects two.)

    Args:
        grouped: Normalised texts.

    Returns:
        A number in [0, 1).
    """
    heads = [text[:EDGE_CHARS] for text in grouped]
    chosen = heads[0] if len(heads) == 1 else min(heads, key=lambda head: fraction("named", head))
    return fraction("side", chosen)


def assign_split(hashed: float, missing: Iterable[str] = tuple(FRACTIONS)) -> str:
    """Return the split of a `split_hash`, where only `missing` splits take their fractions from train."""
    bound = 0.0
    for split, share in FRACTIONS.items():
        bound += share if split in missing else 0
        if hashed < bound:
            return split
    return "train"


def split_rows(rows: Iterable[Row], group: Sequence[int] | None = None) -> Splits:
    """Split the rows of a task, without duplicates.

    Official labeled splits are kept. Without an official test split, validation becomes test. A split that is still
    missing is taken from train by `split_hash`. Copies with one class count once; copies with several are dropped; the
    references of copies are joined. A row is dropped if it has a near-duplicate in a split of higher priority (see
    PRIORITY). Adding rows may drop a row, but moves none to another split, unless a copy of it is added to an official
    split of higher priority.

    Args:
        rows: Rows in any order.
        group: Indices of the texts that must not occur in two splits. None: all.

    Returns:
        The examples of each split, and the numbers of dropped rows.
    """
    unique, dropped = _unique(rows, group)
    official = {split for _, split in unique}
    moved: dict[str | None, str] = {"validation": "test"} if "validation" in official and "test" not in official else {}
    kept = {moved.get(split, split) for split in official}
    missing = [split for split in FRACTIONS if split not in kept]
    candidates: dict[str, list[Example]] = {split: [] for split in PRIORITY}
    for example, source_split in unique:
        split = moved.get(source_split, source_split)
        candidates[split if split in FRACTIONS else assign_split(example.split_hash, missing)].append(example)
    splits = drop_cross_split_duplicates(candidates)
    dropped["near_duplicate"] = len(unique) - sum(map(len, splits.values()))
    names = {moved.get(split, split): f"{split} of the source" for split in SPLITS if split in official}
    return Splits(splits, {split: names.get(split, SPLIT_OFF) for split in PRIORITY}, dropped)


def drop_cross_split_duplicates(candidates: Mapping[str, list[Example]]) -> dict[str, list[Example]]:
    """Drop examples that share a key with one of an earlier split."""
    taken: set[str] = set()
    kept = {}
    for split, examples in candidates.items():
        kept[split] = [example for example in examples if taken.isdisjoint(example.keys)]
        taken.update(key for example in kept[split] for key in example.keys)
    return kept


def overlaps(splits: Mapping[str, list[Example]]) -> dict[str, int]:
    """Count, for each pair of splits, the examples of the second that share a key with one of the first."""
    keys = {split: {key for example in examples for key in example.keys} for split, examples in splits.items()}
    names = list(splits)
    return {
        f"{first}/{second}": sum(not keys[first].isdisjoint(example.keys) for example in splits[second])
        for i, first in enumerate(names)
        for second in names[i + 1 :]
    }


def drop_train(splits: Splits, reason: str, is_dropped: Callable[[Example], bool]) -> Splits:
    """Drop train examples, and count them under a reason."""
    train = splits.splits["train"]
    kept = [example for example in train if not is_dropped(example)]
    dropped = {**splits.dropped, reason: len(train) - len(kept)}
    return splits._replace(splits={**splits.splits, "train": kept}, dropped=dropped)


def _pack(texts: Sequence[str], references: Sequence[str]) -> bytes:
    return zlib.compress(json.dumps([texts, references]).encode(), 1)


def _unique(rows: Iterable[Row], group: Sequence[int] | None) -> tuple[list[tuple[Example, str | None]], dict]:
    copies: dict[str, list[tuple[Example, str | None]]] = {}
    dropped = {"unlabeled": 0, "empty": 0, "conflicting": 0, "duplicate": 0}
    for row in rows:
        normalised = [normalise(text) for text in row.texts]
        if row.answer is None:
            dropped["unlabeled"] += 1
        elif not all(normalised):
            dropped["empty"] += 1
        else:
            example = Example.from_texts(row.texts, normalised, row.answer, group)
            copies.setdefault(example.id, []).append((example, row.split))
    unique = []
    for same in copies.values():
        if len(same) > 1:
            # the first of the sorted copies, so that the order of the rows does not matter
            same.sort(key=lambda copy: (copy[0].texts, copy[0].references))
        first = same[0][0]
        if len({example.label for example, _ in same}) > 1:
            dropped["conflicting"] += len(same)
            continue
        if first.label is None and len(same) > 1:
            joined = dict.fromkeys(reference for example, _ in same for reference in example.references)
            first = first.with_references(joined)
        dropped["duplicate"] += len(same) - 1
        splits = {split for _, split in same}
        unique.append((first, next((split for split in PRIORITY if split in splits), None)))
    return unique, dropped
