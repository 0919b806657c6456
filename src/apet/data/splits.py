"""Which side a text is on: decided by the text itself, so that no text is on two sides, now or after more are added.

Two texts are the same if their normalised forms are, and near-duplicates if those share their first or their last EDGE
characters (a story with a new headline, a message quoted under a new reply).
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from apet.data.readers import Row
from apet.provenance import seed_for

SHARES = {"test": 0.2, "validation": 0.1}
SIDES = ("test", "validation", "train")  # a text that two sides claim stays on the first of them
EDGE = 200
WORD = re.compile(r"[^\W_]+")


class Example(NamedTuple):
    """A row that is unique in its task, with its normalised text."""

    text: str
    normal: str
    label: str


class Splits(NamedTuple):
    """Examples of each side, in no order that means anything, and how many rows were dropped for which reason."""

    sides: dict[str, list[Example]]
    dropped: dict[str, int]


def normalise(text: str) -> str:
    """The text's letters and digits: NFKC, case folded, words parted by one space."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(WORD.findall(folded))


def edges(normal: str) -> tuple[str, str]:
    """First and last EDGE characters of a normalised text; of a shorter one, all of it."""
    return normal[:EDGE], normal[-EDGE:]


def fraction(*coordinates: object) -> float:
    """A number in [0, 1) that is a hash of its coordinates."""
    return seed_for(*coordinates) / 2**63


def split_rows(rows: Iterable[Row]) -> Splits:
    """Unique examples of each side. Official sides are kept; where one is missing it is drawn out of train by hash.

    The hash is of the text's first EDGE characters and knows neither task nor seed: a sentence that two tasks share is
    on the same side of both, and no choice of seed can move a test text into a corpus made with another seed.
    Copies with one label count once, copies with several labels not at all. A text goes if it is a near-duplicate of
    one on a stronger side (see SIDES). Adding rows may drop a text, but moves none to another side, unless what is
    added is a copy of it in a stronger official side.
    """
    rows = list(rows)
    official = {row.split for row in rows}
    unique, dropped = _unique(rows)
    claims: dict[str, list[Example]] = {side: [] for side in SIDES}
    for example, split in unique:
        claims[_side(example.normal, split, official)].append(example)
    sides = keep_apart(claims)
    dropped["near_duplicate"] = len(unique) - sum(map(len, sides.values()))
    return Splits(sides, dropped)


def keep_apart(claims: dict[str, list[Example]]) -> dict[str, list[Example]]:
    """The same sides, strongest first, without those examples that share an edge with one of a stronger side."""
    taken: set[str] = set()
    kept = {}
    for side, examples in claims.items():
        kept[side] = [example for example in examples if taken.isdisjoint(edges(example.normal))]
        taken.update(edge for example in kept[side] for edge in edges(example.normal))
    return kept


def overlaps(sides: dict[str, list[Example]]) -> dict[str, int]:
    """For each pair of sides, how many examples of the second are copies or near-duplicates of one of the first."""
    found = {side: {edge for example in examples for edge in edges(example.normal)} for side, examples in sides.items()}
    names = list(sides)
    return {
        f"{first}/{second}": sum(not found[first].isdisjoint(edges(example.normal)) for example in sides[second])
        for i, first in enumerate(names)
        for second in names[i + 1 :]
    }


def _unique(rows: list[Row]) -> tuple[list[tuple[Example, str | None]], dict[str, int]]:
    copies: dict[str, list[Row]] = {}
    for row in rows:
        copies.setdefault(normalise(row.text), []).append(row)
    dropped = Counter(empty=len(copies.pop("", [])), conflicting=0, duplicate=0)
    unique = []
    for normal, same in copies.items():
        if len({row.label for row in same}) > 1:
            dropped["conflicting"] += len(same)
            continue
        dropped["duplicate"] += len(same) - 1
        first = min(same, key=lambda row: row.text)  # not the first read, so that the rows' order does not matter
        splits = {row.split for row in same}
        unique.append((Example(first.text, normal, first.label), next((s for s in SIDES if s in splits), None)))
    return unique, dict(dropped)


def _side(normal: str, split: str | None, official: set[str | None]) -> str:
    if split in SHARES:
        return split
    drawn, bound = fraction("side", normal[:EDGE]), 0.0
    for side, share in SHARES.items():
        bound += 0 if side in official else share
        if drawn < bound:
            return side
    return "train"
