"""Which side a row is on: decided by its own text, so that no text is on two sides, now or after more are added.

Two texts are the same if their normalised forms are, and near-duplicates if those share their first or their last EDGE
characters (a story with a new headline, a message quoted under a new reply). A row holds the texts of its task's
`group` fields: a premise, a question, a document, that must not be met again on another side.
"""

from __future__ import annotations

import json
import re
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from apet.core.hashing import digest, seed_for
from apet.data.schema import SIDES, Row

SHARES = {"test": 0.2, "validation": 0.1}
EDGE = 200
WORD = re.compile(r"[^\W_]+")


class Example(NamedTuple):
    """A row that is unique in its task. `packed`: its texts and references, compressed, since 50,000 long documents
    must fit. `label`: its class, None where it has references.

    `keys`: the edges of its group's texts. `draw`: a number in [0, 1) that decides its side where none is official.
    """

    id: str
    packed: bytes
    label: str | None
    keys: frozenset[str]
    draw: float

    @classmethod
    def of(
        cls,
        texts: Sequence[str],
        normals: Sequence[str],
        answer: str | tuple[str, ...],
        group: Sequence[int] | None = None,
    ) -> Example:
        """The example of a row's texts and their normalised forms; `group`: those that must stay on one side (None:
        all).
        """
        held = [normals[i] for i in (range(len(normals)) if group is None else group)]
        label, references = (answer, ()) if isinstance(answer, str) else (None, answer)
        packed = zlib.compress(json.dumps([texts, references]).encode(), 1)
        return cls(text_id(*normals), packed, label, frozenset(e for n in held for e in edges(n)), split_hash(held))

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(json.loads(zlib.decompress(self.packed))[0])

    @property
    def references(self) -> tuple[str, ...]:
        return tuple(json.loads(zlib.decompress(self.packed))[1])

    def joined(self, references: Iterable[str]) -> Example:
        """The same example with these references."""
        return self._replace(packed=zlib.compress(json.dumps([self.texts, list(references)]).encode(), 1))


class Splits(NamedTuple):
    """Examples of each side, in no order that means anything; where each side is from; rows dropped by reason."""

    sides: dict[str, list[Example]]
    origin: dict[str, str]
    dropped: dict[str, int]


def normalise(text: str) -> str:
    """The text's letters and digits: NFKC, case folded, words parted by one space."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(WORD.findall(folded))


def text_id(*normals: str) -> str:
    """Id of normalised texts (16 hex digits): the same for all rows that hold them, in every task and corpus."""
    return digest("\n".join(normals))[:16]


def edges(normal: str) -> tuple[str, str]:
    """First and last EDGE characters of a normalised text; of a shorter one, all of it."""
    return normal[:EDGE], normal[-EDGE:]


def fraction(*coordinates: object) -> float:
    """A number in [0, 1) that is a hash of its coordinates."""
    return seed_for(*coordinates) / 2**63


def split_hash(held: Sequence[str]) -> float:
    """The number that decides the side of a row with these normalised texts: a hash of the one its hash names.

    It knows neither task nor seed: a sentence that two tasks share is on the same side of both, and no choice of seed
    can move a test text into a corpus made with another seed. A row's other texts may be named by rows of another
    side; `drop_cross_split_duplicates` then drops what is on the weaker one, so that every set of rows that are connected by common
    texts is on one side. (To draw a side for the set would move it whenever a new row joins two sets.)
    """
    heads = [normal[:EDGE] for normal in held]
    named = heads[0] if len(heads) == 1 else min(heads, key=lambda head: fraction("named", head))
    return fraction("side", named)


def assign_split(draw: float, missing: Iterable[str] = tuple(SHARES)) -> str:
    """The side of a draw in [0, 1), where only the `missing` sides take their shares from train."""
    bound = 0.0
    for side, share in SHARES.items():
        bound += share if side in missing else 0
        if draw < bound:
            return side
    return "train"


def split_rows(rows: Iterable[Row], group: Sequence[int] | None = None) -> Splits:
    """Unique examples of each side. Official labelled sides are kept. Without a test, validation becomes the test; a
    side that is still missing is drawn out of train by `split_hash`.

    Copies with one class count once, copies with several not at all; the references of copies are joined. A row goes
    if its group has a near-duplicate on a stronger side (see SIDES). Adding rows may drop a row, but moves none to
    another side, unless what is added is a copy of it in a stronger official side.
    """
    unique, dropped = _unique(rows, group)
    official = {split for _, split in unique}
    moved: dict[str | None, str] = {"validation": "test"} if "validation" in official and "test" not in official else {}
    kept = {moved.get(split, split) for split in official}
    missing = [side for side in SHARES if side not in kept]
    claims: dict[str, list[Example]] = {side: [] for side in SIDES}
    for example, split in unique:
        side = moved.get(split, split)
        claims[side if side in SHARES else assign_split(example.draw, missing)].append(example)
    sides = drop_cross_split_duplicates(claims)
    dropped["near_duplicate"] = len(unique) - sum(map(len, sides.values()))
    names = {moved.get(split, split): f"{split} of the source" for split in SIDES if split in official}
    return Splits(sides, {side: names.get(side, "drawn out of train") for side in SIDES}, dropped)


def drop_cross_split_duplicates(claims: Mapping[str, list[Example]]) -> dict[str, list[Example]]:
    """The same sides, strongest first, without those examples that share a key with one of a stronger side."""
    taken: set[str] = set()
    kept = {}
    for side, examples in claims.items():
        kept[side] = [example for example in examples if taken.isdisjoint(example.keys)]
        taken.update(key for example in kept[side] for key in example.keys)
    return kept


def overlaps(sides: Mapping[str, list[Example]]) -> dict[str, int]:
    """For each pair of sides, how many examples of the second share a key with one of the first."""
    found = {side: {key for example in examples for key in example.keys} for side, examples in sides.items()}
    names = list(sides)
    return {
        f"{first}/{second}": sum(not found[first].isdisjoint(example.keys) for example in sides[second])
        for i, first in enumerate(names)
        for second in names[i + 1 :]
    }


def drop_train(splits: Splits, reason: str, goes: Callable[[Example], bool]) -> Splits:
    """The same splits without the train rows that must go, counted under a reason."""
    kept = [example for example in splits.sides["train"] if not goes(example)]
    dropped = {**splits.dropped, reason: len(splits.sides["train"]) - len(kept)}
    return splits._replace(sides={**splits.sides, "train": kept}, dropped=dropped)


def _unique(rows: Iterable[Row], group: Sequence[int] | None) -> tuple[list[tuple[Example, str | None]], dict]:
    copies: dict[str, list[tuple[Example, str | None]]] = {}
    dropped = {"unlabelled": 0, "empty": 0, "conflicting": 0, "duplicate": 0}
    for row in rows:
        normals = [normalise(text) for text in row.texts]
        if row.answer is None:
            dropped["unlabelled"] += 1
        elif not all(normals):
            dropped["empty"] += 1
        else:
            example = Example.of(row.texts, normals, row.answer, group)
            copies.setdefault(example.id, []).append((example, row.split))
    unique = []
    for same in copies.values():
        if len(same) > 1:
            # not the first read, so that the rows' order does not matter
            same.sort(key=lambda copy: (copy[0].texts, copy[0].references))
        first = same[0][0]
        if len({example.label for example, _ in same}) > 1:
            dropped["conflicting"] += len(same)
            continue
        if first.label is None and len(same) > 1:
            first = first.joined(dict.fromkeys(reference for example, _ in same for reference in example.references))
        dropped["duplicate"] += len(same) - 1
        splits = {split for _, split in same}
        unique.append((first, next((side for side in SIDES if side in splits), None)))
    return unique, dropped
