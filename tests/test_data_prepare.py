from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apet.data.prepare import in_hash_order, prepare_task, read_split, read_task, task_digest
from apet.data.splits import Example
from apet.errors import DataError, ParamsError
from apet.provenance import file_digest
from toy_wheels import TAB, pin_toy, tab, toy_task

ROWS = [("ab"[i % 3 == 0], f"Text number {i}.") for i in range(400)]
examples = st.sets(st.text("abc", min_size=1, max_size=4), max_size=12).map(
    lambda normals: [Example(n, n, "x") for n in sorted(normals)]
)


@given(examples, examples, st.integers(0, 9))
def test_hash_order_of_a_subset_is_the_order_of_the_whole(some, more, seed):
    whole = in_hash_order(list({*some, *more}), seed)
    assert [one for one in whole if one in some] == in_hash_order(some, seed)


def test_caps_are_nested_and_a_seed_chooses_others(monkeypatch, tmp_path):
    pin_toy(monkeypatch, tmp_path, {TAB: tab(ROWS)})
    ids = {}
    for name, cap, seed in [("few", 20, 0), ("many", 100, 0), ("all", None, 0), ("other", 20, 1)]:
        prepare_task(toy_task(), tmp_path, tmp_path / name, {"train": cap}, seed)
        ids[name] = list(read_split(tmp_path / name, "train").id)
    assert ids["few"] == ids["many"][:20] and ids["many"] == ids["all"][:100]
    assert set(ids["other"]) != set(ids["few"]) and set(ids["other"]) < set(ids["all"])


def test_the_record_says_what_was_kept_and_what_was_not(monkeypatch, tmp_path):
    rows = [*ROWS, ("a", "text NUMBER 3"), ("a", "Text number 4"), ("b", "...")]
    pin_toy(monkeypatch, tmp_path, {TAB: tab(rows)})
    prepare_task(toy_task(), tmp_path, tmp_path / "out", {"train": 50, "test": 30, "validation": None}, 0)
    record = read_task(tmp_path / "out")
    assert record["dropped"] == {"empty": 1, "conflicting": 2, "duplicate": 1, "near_duplicate": 0}
    assert sum(record["rows_uncapped"].values()) == len(rows) - 4
    assert record["rows"] == {"train": 50, "validation": record["rows_uncapped"]["validation"], "test": 30}
    test = read_split(tmp_path / "out", "test")
    assert record["label_counts"]["test"] == {"a": int((test.label == 0).sum()), "b": int((test.label == 1).sum())}
    assert record["chance"] == {"uniform": 0.5, "majority": test.label.value_counts().max() / 30}
    assert set(record["overlap"].values()) == {0}
    assert record["task_digest"] == task_digest(toy_task(), {"train": 50, "test": 30}, 0)


def test_labels_follow_the_tasks_order(monkeypatch, tmp_path):
    pin_toy(monkeypatch, tmp_path, {TAB: tab(ROWS)})
    prepare_task(toy_task(labels={"b": " pear", "a": " apple"}), tmp_path, tmp_path / "out", {}, 0)
    test = read_split(tmp_path / "out", "test")
    truth = {text: label for label, text in ROWS}
    assert ["ba"[label] for label in test.label] == [truth[text] for text in test.text]


def test_two_runs_write_the_same_bytes(monkeypatch, tmp_path):
    pin_toy(monkeypatch, tmp_path, {TAB: tab(ROWS)})
    names = ["task.json", "test.parquet", "train.parquet", "validation.parquet"]
    for folder in ("one", "two"):
        prepare_task(toy_task(), tmp_path, tmp_path / folder, {}, 0)
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == names
    assert all(file_digest(tmp_path / "one" / name) == file_digest(tmp_path / "two" / name) for name in names)


def test_the_digest_knows_all_that_changes_rows_and_reads_nothing(monkeypatch, tmp_path):
    pin_toy(monkeypatch, tmp_path, {}).unlink()
    task = toy_task()
    digests = [
        task_digest(task, {}, 0),
        task_digest(task, {}, 1),
        task_digest(task, {"train": 5}, 0),
        task_digest(toy_task(version=2), {}, 0),
        task_digest(toy_task(labels={"b": " pear", "a": " apple"}), {}, 0),
        task_digest(toy_task(prompt="{text}\nKind:"), {}, 0),
    ]
    assert len(set(digests)) == len(digests)
    assert task_digest(task, {"train": None}, 0) == digests[0] == task_digest(toy_task(description="Other."), {}, 0)
    pin_toy(monkeypatch, tmp_path, {"other": "content"})
    assert task_digest(task, {}, 0) != digests[0]


def test_an_unknown_label_value_names_file_row_and_labels_and_writes_nothing(monkeypatch, tmp_path):
    pin_toy(monkeypatch, tmp_path, {TAB: tab([("a", "one"), ("c", "two")])})
    with pytest.raises(DataError, match=rf"task toy: {TAB}, line 6: unknown label 'c'.* Allowed: a, b"):
        prepare_task(toy_task(), tmp_path, tmp_path / "out", {}, 0)
    assert [path.suffix for path in tmp_path.iterdir()] == [".whl"]


def test_an_empty_split_and_bad_caps_are_errors(monkeypatch, tmp_path):
    pin_toy(monkeypatch, tmp_path, {TAB: tab([("a", "one")])})
    with pytest.raises(DataError, match=r"split .* has no rows"):
        prepare_task(toy_task(), tmp_path, tmp_path / "out", {}, 0)
    with pytest.raises(ParamsError, match="train is 0"):
        task_digest(toy_task(), {"train": 0}, 0)
    with pytest.raises(ParamsError, match=r"unknown split 'tset'\. Did you mean 'test'"):
        task_digest(toy_task(), {"tset": 3}, 0)


def test_a_prepared_folder_that_is_not_one_is_named(tmp_path):
    with pytest.raises(DataError, match=r"train.parquet: cannot be read"):
        read_split(tmp_path, "train")
    pq.write_table(pa.table({"id": ["1"], "text": ["x"]}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"train.parquet: has the columns .* expected .*'label': 'int64'"):
        read_split(tmp_path, "train")
    (tmp_path / "task.json").write_text("{")
    with pytest.raises(DataError, match=r"task.json: cannot be read"):
        read_task(tmp_path)
