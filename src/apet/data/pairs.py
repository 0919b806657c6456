"""Pairs made of the articles of a wheel: does this title belong to this article?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from zipfile import ZipFile

from apet.data.readers import read_articles
from apet.data.records import Record
from apet.data.splits import draw_of, drawn_side, fraction, normalise

MATCH, MISMATCH = "match", "mismatch"


def read_title_pairs(archive: ZipFile, *, folder: str) -> Iterator[Record]:
    """Columns title, body, label: each article once, half of them under the title of another one.

    The other one has the same topic and is on the same side: the articles of both stand in a ring, in the order of a
    hash, and one that its own hash makes a mismatch takes its successor's title. So a new article changes one pair at
    most, a body alone says nothing about its label, and no title or body is on two sides.
    """
    rings: dict[tuple[str, str], dict[str, Record]] = defaultdict(dict)
    for record in read_articles(archive, folder=folder):
        normal = normalise(record.values["body"])
        if normal and normalise(record.values["title"]):
            side = drawn_side(draw_of([normal]))
            rings[side, record.values["label"]].setdefault(normal, record)  # some bodies have two titles
    for (side, _), articles in sorted(rings.items()):
        ring = sorted(articles, key=lambda normal: fraction("ring", normal))
        for normal, successor in zip(ring, ring[1:] + ring[:1], strict=True):
            own, other = articles[normal], articles[successor]
            mismatch = fraction("mismatch", normal) < 0.5 and len(ring) > 1
            title = (other if mismatch else own).values["title"]
            values = {"title": title, "body": own.values["body"], "label": MISMATCH if mismatch else MATCH}
            yield Record(values, side, own.where)
