"""Split assignment: a hash of a row's own text, so that no text is in two splits, even if rows are added later.

Two texts are equal if their `exact` forms are. They are near-duplicates if their normalised forms, which are coarser,
share their first or last EDGE_CHARS characters (another punctuation, a story with a new headline, a message quoted
under a new reply). Only equal rows are merged; near-duplicates are different rows that must not be in two splits. The
same holds for texts of the task's `group_by` columns (a premise, a question, a document).
"""

from __future__ import annotations

import json
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from apet.core.hashing import digest, seed_for
from apet.data.schema import PRIORITY, SPLITS, Row
from apet.data.unicode_words import words

FRACTIONS = {"test": 0.2, "validation": 0.1}
"""Fractions of the rows that go to these splits, if the source does not have them."""
REASONS = ("drop_rows", "unlabeled", "empty", "conflicting", "duplicate", "near_duplicate")
"""Reasons for which rows are dropped."""
ALL = "all"
"""Stands for the split of rows without an official one."""
EDGE_CHARS = 200
SPLIT_OFF = "split off train"
"""Origin of a split that the source does not have."""
WITHOUT_MARKS = re.compile(r"[^\W_]+")
MARK = re.compile(r"[^\w ]")


class Example(NamedTuple):
    """A row that is unique in its task."""

    id: str
    """From `text_id`."""
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
        identity: str = "",
        whole_row: bool = False,
    ) -> Example:
        """Make an example.

        Args:
            texts: The row's texts.
            normalised: Their normalised forms.
            answer: A class, or references.
            group: Indices of the texts that must not occur in two splits. None: all.
            identity: Its id. Default: that of its exact texts.
            whole_row: Hash all of its texts for the split. False: only the beginning of a grouped one.

        Returns:
            The example, with its id, keys and split hash.
        """
        grouped = [normalised[i] for i in (range(len(normalised)) if group is None else group)]
        label, references = (answer, ()) if isinstance(answer, str) else (None, answer)
        keys = frozenset(edge for text in grouped for edge in edges(text))
        identity = identity or text_id(*map(exact, texts))
        hashed = fraction("side", "\n".join(normalised)) if whole_row else split_hash(grouped)
        return cls(identity, _pack(texts, references), label, keys, hashed)

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
    read: dict[str, int]
    """Official split, or `all`, -> number of rows of the source."""
    dropped_by_split: dict[str, dict[str, int]]
    """Official split, or `all`, -> reason -> number of dropped rows."""
    overlap_before: dict[str, int]
    """`first/second` -> rows of the second split that equal or nearly equal one of the first, before drops."""

    @property
    def dropped(self) -> dict[str, int]:
        """Reason -> number of dropped rows."""
        reasons = dict.fromkeys(reason for counts in self.dropped_by_split.values() for reason in counts)
        return {reason: sum(counts.get(reason, 0) for counts in self.dropped_by_split.values()) for reason in reasons}


def exact(text: str) -> str:
    """Return the form in which equal texts are the same: NFC, with single spaces as white space.

    NFC unifies only different encodings of the same characters. NFKC would also unify 2² and 22, or ½ and 1⁄2.

    Args:
        text: A text of a row.

    Returns:
        The form that decides whether rows are duplicates.
    """
    return " ".join(unicodedata.normalize("NFC", text).split())


def normalise(text: str) -> str:
    """Return the form in which near-copies are the same, so that they get into one split.

    Args:
        text: Any text.

    Returns:
        Its words (letters, digits and combining marks) in NFKC, case-folded, separated by one space. Its `exact` form
        if it has no words, as `:)` or an emoji. Empty if it has no visible characters.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(words(folded)) or ("" if _is_invisible(text) else exact(text))


def text_id(*forms: str) -> str:
    """Return the id (16 hex digits) of texts in their exact form, or of a document in its normalised form."""
    return digest("\n".join(forms))[:16]


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
    The hash reads combining marks as spaces, as all versions of this code did, so that no text changes its split.

    Args:
        grouped: Normalised texts.

    Returns:
        A number in [0, 1).
    """
    heads = [_marks_as_spaces(text[:EDGE_CHARS]) for text in grouped]
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


def split_rows(rows: Iterable[Row], group: Sequence[int] | None = None, keep_near_duplicates: bool = False) -> Splits:
    """Split the rows of a task, without duplicates.

    Official labeled splits are kept. Without an official test split, validation becomes test. A split that is still
    missing is taken from train by `split_hash`. Copies with one class count once; copies with several are dropped; the
    references of copies are joined. A row is dropped if it has a near-duplicate in a split of higher priority (see
    PRIORITY). Adding rows may drop a row, but moves none to another split, unless a copy of it is added to an official
    split of higher priority.

    Args:
        rows: Rows in any order.
        group: Indices of the texts that must not occur in two splits. None: all.
        keep_near_duplicates: Drop only equal rows, and assign splits by a hash of all texts of a row.

    Returns:
        The examples of each split, and the numbers of dropped rows.
    """
    counts = _Counts()
    unique = _unique(rows, group, keep_near_duplicates, counts)
    official = {split for _, split in unique}
    moved: dict[str | None, str] = {"validation": "test"} if "validation" in official and "test" not in official else {}
    kept = {moved.get(split, split) for split in official}
    missing = [split for split in FRACTIONS if split not in kept]
    candidates: dict[str, list[Example]] = {split: [] for split in PRIORITY}
    for example, source_split in unique:
        split = moved.get(source_split, source_split)
        candidates[split if split in FRACTIONS else assign_split(example.split_hash, missing)].append(example)
    overlap = overlaps(candidates)
    for (first, second), count in counts.copies.items():
        overlap[f"{moved.get(first, first)}/{moved.get(second, second)}"] += count
    splits = candidates if keep_near_duplicates else drop_cross_split_duplicates(candidates)
    kept_ids = {example.id for examples in splits.values() for example in examples}
    for example, source_split in unique:
        counts.add(source_split, "near_duplicate", example.id not in kept_ids)
    names = {moved.get(split, split): f"{split} of the source" for split in SPLITS if split in official}
    origin = {split: names.get(split, SPLIT_OFF) for split in PRIORITY}
    return Splits(splits, origin, dict(sorted(counts.read.items())), dict(sorted(counts.dropped.items())), overlap)


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
    official = "train" if "train" in splits.read else ALL
    counts = {**splits.dropped_by_split.get(official, {}), reason: len(train) - len(kept)}
    dropped = {**splits.dropped_by_split, official: counts}
    return splits._replace(splits={**splits.splits, "train": kept}, dropped_by_split=dropped)


def _marks_as_spaces(head: str) -> str:
    return (" ".join(WITHOUT_MARKS.findall(head)) if MARK.search(head) else head) or head


def _is_invisible(text: str) -> bool:
    return all(unicodedata.category(char) in ("Cc", "Cf", "Zl", "Zp", "Zs") for char in text)


def _pack(texts: Sequence[str], references: Sequence[str]) -> bytes:
    return zlib.compress(json.dumps([texts, references]).encode(), 1)


class _Counts:
    """Rows that were read and dropped, by official split."""

    def __init__(self) -> None:
        self.read: Counter[str] = Counter()
        self.dropped: dict[str, dict[str, int]] = {}
        self.copies: Counter[tuple[str, str]] = Counter()
        """(first, second) -> rows of the second official split that equal one of the first."""

    def add(self, split: str | None, reason: str, count: int = 1) -> None:
        self.dropped.setdefault(split or ALL, dict.fromkeys(REASONS, 0))[reason] += count


def _unique(
    rows: Iterable[Row], group: Sequence[int] | None, whole_row: bool, counts: _Counts
) -> list[tuple[Example, str | None]]:
    copies: dict[str, list[tuple[Example, str | None]]] = {}
    for row in rows:
        normalised = [normalise(text) for text in row.texts]
        counts.read[row.split or ALL] += 1
        if row.is_dropped:
            counts.add(row.split, "drop_rows")
        elif row.answer is None:
            counts.add(row.split, "unlabeled")
        elif not all(normalised):
            counts.add(row.split, "empty")
        else:
            example = Example.from_texts(row.texts, normalised, row.answer, group, whole_row=whole_row)
            copies.setdefault(example.id, []).append((example, row.split))
    unique = []
    for same in copies.values():
        if len({example.label for example, _ in same}) > 1:
            for _, split in same:
                counts.add(split, "conflicting")
        else:
            unique.append(_merged(same, counts))
    return unique


def _merged(same: list[tuple[Example, str | None]], counts: _Counts) -> tuple[Example, str | None]:
    """Merge equal rows into one, in their split of highest priority."""
    if len(same) == 1:
        return same[0]
    # the first of the sorted copies, so that the order of the rows does not matter
    same.sort(key=lambda copy: (copy[0].texts, copy[0].references))
    first = same[0][0]
    if first.label is None:
        first = first.with_references(dict.fromkeys(answer for example, _ in same for answer in example.references))
    splits = [split for _, split in same]
    chosen = next((split for split in PRIORITY if split in splits), None)
    splits.remove(chosen)
    for split in splits:
        counts.add(split, "duplicate")
        if chosen and split and split != chosen:
            counts.copies[chosen, split] += 1
    return first, chosen
