"""Prepared folders of toy tasks."""

from __future__ import annotations

from pathlib import Path

from apet.data.prepare import prepare_task
from apet.data.prepared_files import read_task
from apet.data.source_selection import choose_source
from toy_wheels import toy_task, write_jsonl


def prepared(folder: Path, rows: list[dict], **changes: object) -> tuple[Path, dict]:
    """The prepared folder of a toy task over these rows, all of which are in test."""
    for split, some in {"train": [{**rows[0], **TRAIN}], "validation": [{**rows[0], **OTHER}], "test": rows}.items():
        write_jsonl(folder / "toy" / f"{split}.jsonl", some)
    task = toy_task(wheel=None, **changes)
    prepare_task(task, folder, folder / "out", {}, 0, choose_source(task, {"toy": str(folder)}))
    return folder / "out", read_task(folder / "out")


TRAIN = {"one": "a word", "two": "of mine"}


OTHER = {"one": "good all", "two": "the film"}


PAIRS = [{"one": "good " * n + f"to {n}", "two": f"film {n} it was", "label": n % 2} for n in range(1, 30)]


FIELDS = {"text_columns": ["one", "two"], "prompt": "Input: {one} [SEP] {two} Topic:"}
