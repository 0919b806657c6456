"""A small pretraining corpus, as `apet build-corpus` writes it in half a minute from real text."""

from __future__ import annotations

from pathlib import Path

from apet.config.study_config import PretrainingConfig
from apet.core.hashing import file_digest
from apet.core.records import write_json_record
from apet.data.corpus import SCHEMA
from apet.data.prepared_files import write_table

RECIPE = PretrainingConfig(
    vocab_size=300, max_tokens=30 * 4 * 16, batch_size=4, block_size=16, muon_lr=0.02, embedding_lr=0.03, scalar_lr=0.01
)
NAMES = ("ada", "bo", "cy", "dee", "eve")
THINGS = ("red box", "tall tree", "old ship", "small dog")


def document(number: int) -> str:
    """Make a text with an order to learn: the possession follows from the person."""
    who = number % len(NAMES)
    return f"{NAMES[who]} has a {THINGS[who % 4]}. " * (2 + number % 3) + f"Page {number} ends here."


def write_corpus(folder: Path, train: int, heldout: int) -> Path:
    folder.mkdir(parents=True)
    for side, numbers in {"train": range(train), "heldout": range(train, train + heldout)}.items():
        ids = [str(n) for n in numbers]
        columns = {"id": ids, "source": ["toy"] * len(ids), "text": [document(n) for n in numbers]}
        write_table(folder / f"{side}.parquet", columns, SCHEMA)
    seal_corpus(folder)
    return folder


def seal_corpus(folder: Path) -> None:
    files = {name: file_digest(folder / name) for name in ("train.parquet", "heldout.parquet")}
    write_json_record(folder / "corpus.json", {"files": files})
