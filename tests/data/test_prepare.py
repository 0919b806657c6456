"""Prepared folders: order, limits, records, checksums and overlapping tasks."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from apet.cli.task_summary import task_lines
from apet.core.hashing import file_digest
from apet.core.records import write_json_record
from apet.data import prepare, source_selection
from apet.data.label_metrics import LABEL_METRICS, guess_scores
from apet.data.prepare import in_hash_order, prepare_task, task_digest
from apet.data.prepared_files import read_split, read_task
from apet.data.source_selection import choose_source
from apet.data.splits import Example
from apet.data.task_config import Task
from apet.errors import ConfigError, CorruptError, DataError
from apet.evaluation.metrics import label_metrics
from toy_wheels import TAB, pin_toy, tab, toy_source, toy_task, write_jsonl

ROWS = [("ab"[i % 3 == 0], f"Text number {i}.") for i in range(400)]
examples = st.sets(st.text("abc", min_size=1, max_size=4), max_size=12).map(
    lambda texts: [Example.from_texts([n], [n], "x") for n in sorted(texts)]
)


@given(examples, examples, st.integers(0, 9))
def test_hash_order_of_subset_equals_order_in_superset(some, more, seed):
    superset = in_hash_order(list({*some, *more}), seed)
    assert [one for one in superset if one in some] == in_hash_order(some, seed)


def test_limits_are_nested_and_another_seed_chooses_other_rows(monkeypatch, tmp_path):
    pin_toy(monkeypatch, tmp_path, {TAB: tab(ROWS)})
    ids = {}
    for name, cap, seed in [("few", 20, 0), ("many", 100, 0), ("all", None, 0), ("other", 20, 1)]:
        prepare_task(toy_task(), tmp_path, tmp_path / name, {"train": cap}, seed)
        ids[name] = list(read_split(tmp_path / name, "train").id)
    assert ids["few"] == ids["many"][:20] and ids["many"] == ids["all"][:100]
    assert set(ids["other"]) != set(ids["few"]) and set(ids["other"]) < set(ids["all"])


def test_record_counts_kept_and_dropped_rows(monkeypatch, tmp_path):
    rows = [*ROWS, ("a", " Text  number 3. "), ("a", "Text number 4. "), ("b", "\u200b")]
    pin_toy(monkeypatch, tmp_path, {TAB: tab(rows)})
    prepare_task(toy_task(), tmp_path, tmp_path / "out", {"train": 50, "test": 30, "validation": None}, 0)
    record = read_task(tmp_path / "out")
    assert {reason: count for reason, count in record["dropped"].items() if count} == {
        "empty": 1,
        "conflicting": 2,
        "duplicate": 1,
    }
    assert sum(record["rows_uncapped"].values()) == len(rows) - 4
    assert record["rows"] == {"train": 50, "validation": record["rows_uncapped"]["validation"], "test": 30}
    test = read_split(tmp_path / "out", "test")
    assert record["label_counts"]["test"] == {"a": int((test.label == 0).sum()), "b": int((test.label == 1).sum())}
    majority = test.label.value_counts().max() / 30
    assert record["chance"] == {"level": majority, "uniform": 0.5, "majority": majority} and majority > 0.5
    assert set(record["origin"].values()) == {"split off train"}
    assert record["source"]["package"] == "toy" and str(tmp_path) not in (tmp_path / "out" / "task.json").read_text()
    assert set(record["overlap"].values()) == {0}
    assert record["task_digest"] == task_digest(toy_task(), {"train": 50, "test": 30}, 0)


@pytest.mark.parametrize("metrics", [("f1", "accuracy"), ("accuracy", "f1"), ("macro_f1",), ("mcc",)])
def test_constant_answer_never_exceeds_chance(monkeypatch, tmp_path, metrics):
    pin_toy(monkeypatch, tmp_path, {TAB: tab(ROWS)})
    task = toy_task(metrics=metrics, verbalizer={"b": " pear", "a": " apple"})
    prepare_task(task, tmp_path, tmp_path / "out", {}, 0)
    labels, chance = torch.tensor(read_split(tmp_path / "out", "test").label), read_task(tmp_path / "out")["chance"]
    constant = [label_metrics(metrics, torch.full_like(labels, n), labels)[metrics[0]] for n in (0, 1)]
    assert chance["majority"] == pytest.approx(max(constant)) and chance["level"] == max(chance.values())
    even = label_metrics(metrics, torch.arange(2).repeat_interleave(len(labels)), labels.repeat(2))[metrics[0]]
    assert chance["uniform"] == pytest.approx(even)


def test_chance_of_macro_f1_with_an_absent_class():
    """Of the classes a and b in the split, a guess at random among three is right for a third."""
    found = guess_scores("macro_f1", [0.75, 0.25, 0.0])
    assert found["majority"] == pytest.approx(2 * 0.75 / 1.75 / 2)
    predicted, labels = np.arange(3).repeat(40), np.tile(np.repeat([0, 1], [30, 10]), 3)
    assert found["uniform"] == pytest.approx(LABEL_METRICS["macro_f1"](predicted, labels))


def test_labels_are_numbered_in_the_order_of_the_verbalizer(monkeypatch, tmp_path):
    pin_toy(monkeypatch, tmp_path, {TAB: tab(ROWS)})
    prepare_task(toy_task(verbalizer={"b": " pear", "a": " apple"}), tmp_path, tmp_path / "out", {}, 0)
    test = read_split(tmp_path / "out", "test")
    truth = {text: label for label, text in ROWS}
    assert ["ba"[label] for label in test.label] == [truth[text] for text in test.text]


def test_two_runs_write_identical_files(monkeypatch, tmp_path):
    pin_toy(monkeypatch, tmp_path, {TAB: tab(ROWS)})
    names = ["task.json", "test.parquet", "train.parquet", "validation.parquet"]
    for folder in ("one", "two"):
        prepare_task(toy_task(), tmp_path, tmp_path / folder, {}, 0)
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == names
    assert all(file_digest(tmp_path / "one" / name) == file_digest(tmp_path / "two" / name) for name in names)


def test_digest_changes_with_everything_that_changes_rows_and_reads_nothing(monkeypatch, tmp_path):
    pin_toy(monkeypatch, tmp_path, {}).unlink()
    task = toy_task()
    digests = [
        task_digest(task, {}, 0),
        task_digest(task, {}, 1),
        task_digest(task, {"train": 5}, 0),
        task_digest(toy_task(version=2), {}, 0),
        task_digest(toy_task(verbalizer={"b": " pear", "a": " apple"}), {}, 0),
        task_digest(toy_task(prompt="{text}\nKind:"), {}, 0),
    ]
    assert len(set(digests)) == len(digests)
    assert task_digest(task, {"train": None}, 0) == digests[0] == task_digest(toy_task(description="Other."), {}, 0)
    pin_toy(monkeypatch, tmp_path, {"other": "content"})
    assert task_digest(task, {}, 0) != digests[0]


def test_unknown_label_names_file_line_and_labels_and_writes_nothing(monkeypatch, tmp_path):
    pin_toy(monkeypatch, tmp_path, {TAB: tab([("a", "one"), ("c", "two")])})
    with pytest.raises(DataError, match=rf"task toy: {TAB}, line 6: unknown label 'c'.* Allowed: a, b"):
        prepare_task(toy_task(), tmp_path, tmp_path / "out", {}, 0)
    assert [path.suffix for path in tmp_path.iterdir()] == [".whl"]


def test_empty_split_and_wrong_limits_are_errors(monkeypatch, tmp_path):
    pin_toy(monkeypatch, tmp_path, {TAB: tab([("a", "one")])})
    with pytest.raises(DataError, match=r"task toy: split \w+ has no rows: 1 rows are too few to split\. Add rows"):
        prepare_task(toy_task(), tmp_path, tmp_path / "out", {}, 0)
    with pytest.raises(ConfigError, match=r"max_samples\.train: expected a whole number of at least 1, or None, got 0"):
        task_digest(toy_task(), {"train": 0}, 0)
    with pytest.raises(ConfigError, match=r"unknown split 'tset'\. Did you mean 'test'"):
        task_digest(toy_task(), {"tset": 3}, 0)


def test_wrong_prepared_folder_is_named(tmp_path):
    with pytest.raises(DataError, match=r"task.json: no such file"):
        read_split(tmp_path, "train")
    files = {"files": {"train.parquet": "0" * 64}}
    write_json_record(tmp_path / "task.json", {"type": "regression", "text_columns": ["text"], **files})
    with pytest.raises(DataError, match=r"task.json: expected the record of a prepared task. Delete"):
        read_split(tmp_path, "train")
    write_json_record(tmp_path / "task.json", {"type": "classification", "text_columns": ["text"], **files})
    with pytest.raises(DataError, match=r"train.parquet: no such file"):
        read_split(tmp_path, "train")
    pq.write_table(pa.table({"id": ["1"], "text": ["x"]}), tmp_path / "train.parquet")
    with pytest.raises(CorruptError, match=r"train.parquet: corrupt"):
        read_split(tmp_path, "train")
    files = {"files": {"train.parquet": file_digest(tmp_path / "train.parquet")}}
    write_json_record(tmp_path / "task.json", {"type": "classification", "text_columns": ["text"], **files})
    with pytest.raises(DataError, match=r"train.parquet: expected the columns .*'label': 'int64'.* got "):
        read_split(tmp_path, "train")


def test_table_in_several_batches_is_complete(monkeypatch, tmp_path):
    pin_toy(monkeypatch, tmp_path, {TAB: tab(ROWS)})
    prepare_task(toy_task(), tmp_path, tmp_path / "one", {}, 0)
    monkeypatch.setattr(prepare, "BATCH_ROWS", 7)
    prepare_task(toy_task(), tmp_path, tmp_path / "two", {}, 0)
    one, two = (read_split(tmp_path / name, "train") for name in ("one", "two"))
    assert one.equals(two) and pq.ParquetFile(tmp_path / "two" / "train.parquet").num_row_groups > 1


def test_generation_task_keeps_all_references_and_has_shuffled_chance(monkeypatch, tmp_path):
    rows = [(f"answer {i % 5}", f"Question number {i}?") for i in range(300)]
    pin_toy(monkeypatch, tmp_path, {TAB: tab([*rows, ("other", " Question  number 0?"), ("", "Question without?")])})
    task = toy_task(type="generation", verbalizer=None, target_column="answer", metrics=["em", "f1"], max_new_tokens=4,
                    wheel=toy_source(column_map={"text": "Text", "answer": "Category"}))  # fmt: skip
    prepare_task(task, tmp_path, tmp_path / "out", {"test": 50}, 0)
    record, test = read_task(tmp_path / "out"), read_split(tmp_path / "out", "test")
    splits = pd.concat(read_split(tmp_path / "out", split) for split in ("train", "validation", "test"))
    found = {" ".join(text.split()): sorted(targets) for text, targets in zip(splits.text, splits.targets, strict=True)}
    assert found["Question number 0?"] == ["answer 0", "other"]
    assert record["dropped"]["unlabeled"] == record["dropped"]["duplicate"] == 1
    answers = [targets[0] for targets in test.targets]
    expected = sum(a == b for a, b in zip(answers, answers[1:] + answers[:1], strict=True)) / 50
    assert record["chance"]["level"] == record["chance"]["shuffled"]["em"] == pytest.approx(expected)
    assert record["chance"]["shuffled"]["f1"] > expected > 0.05
    assert record["label_counts"] == {"train": {}, "validation": {}, "test": {}}


def test_rows_held_out_by_overlapping_task_are_dropped_from_train_and_counted(monkeypatch, tmp_path):
    def rows(*numbers: range) -> list[dict]:
        numbers = [number for some in numbers for number in some]
        return [{"text": f"This is film number {n}, and it is {n} times the best.", "label": n % 2} for n in numbers]

    for split, some in {"train": range(100), "validation": range(100, 120), "test": range(120, 150)}.items():
        write_jsonl(tmp_path / "toy" / f"{split}.jsonl", rows(some))
    for split, some in {"train": range(100, 300), "validation": range(20), "test": range(20, 40)}.items():
        write_jsonl(tmp_path / "other" / f"{split}.jsonl", rows(some))
    task = toy_task(wheel=None, overlapping_tasks=["other.yaml"])
    other = toy_task(name="other", wheel=None, overlapping_tasks=["toy.yaml"])
    monkeypatch.setattr(source_selection, "load_task", {"toy.yaml": task, "other.yaml": other}.__getitem__)
    for one in (task, other):
        source = choose_source(one, {"all": str(tmp_path)})
        prepare_task(one, tmp_path, tmp_path / "out" / one.name, {}, 0, source)
    train, held = {}, {}
    for name in ("toy", "other"):
        train[name] = set(read_split(tmp_path / "out" / name, "train").text)
        held[name] = {t for s in ("validation", "test") for t in read_split(tmp_path / "out" / name, s).text}
    assert read_task(tmp_path / "out" / "toy")["dropped"]["held_out_by_overlapping_task"] == 40
    assert read_task(tmp_path / "out" / "other")["dropped"]["held_out_by_overlapping_task"] == 50
    assert not train["toy"] & held["other"] and not train["other"] & held["toy"]
    assert len(held["toy"]) == 50 and len(train["toy"]) == 60


def test_digest_changes_with_rows_of_overlapping_task(monkeypatch, tmp_path):
    for name in ("toy", "other"):
        write_jsonl(tmp_path / name / "train.jsonl", [{"text": "one", "label": 0}])
    task, other = toy_task(wheel=None, overlapping_tasks=["other.yaml"]), toy_task(name="other", wheel=None)
    monkeypatch.setattr(source_selection, "load_task", lambda name: other)
    before = task_digest(task, {}, 0, choose_source(task, {"all": str(tmp_path)}))
    write_jsonl(tmp_path / "other" / "test.jsonl", [{"text": "two", "label": 0}])
    assert task_digest(task, {}, 0, choose_source(task, {"all": str(tmp_path)})) != before


def write_pairs(folder: Path, near_duplicates: str | None = None) -> Task:
    """An official split of pairs that share their sentences, as a source of the task that is returned."""
    numbers = [(i % 40, (7 * i + i // 40) % 40) for i in range(330)]
    rows = [{"one": f"sentence {a}", "two": f"sentence {b}", "label": "ab"[i % 2]} for i, (a, b) in enumerate(numbers)]
    write_jsonl(folder / "test.jsonl", rows[::11])
    others = [{"one": f"other {n}", "two": f"another {n}", "label": "ab"[n % 2]} for n in range(200)]
    write_jsonl(folder / "train.jsonl", [row for i, row in enumerate(rows) if i % 11] + rows[:1] + others)
    changes = {"text_columns": ["one", "two"], "prompt": "{one} {two}", "near_duplicates": near_duplicates}
    return toy_task(wheel=None, local={"folder": str(folder)}, **changes)


def test_official_split_that_would_shrink_is_an_error_that_names_the_options(tmp_path):
    task = write_pairs(tmp_path)
    with pytest.raises(DataError) as error:
        prepare_task(task, tmp_path, tmp_path / "out", {}, 0)
    assert str(error.value).startswith("task toy: split train of the source: ") and "of 501 rows would be" in str(
        error.value
    )
    assert all(
        option in str(error.value) for option in ("`near_duplicates: keep`", "`near_duplicates: drop`", "`group_by`")
    )
    assert not (tmp_path / "out").exists()


def test_near_duplicates_of_official_splits_can_be_kept_or_dropped(tmp_path):
    kept, as_usual, dropping = (write_pairs(tmp_path / "in", value) for value in ("keep", None, "drop"))
    prepare_task(kept, tmp_path, tmp_path / "keep", {}, 0)
    record = read_task(tmp_path / "keep")
    assert record["rows"]["test"] == 30 and sum(record["rows"].values()) == 530
    assert record["read"] == {"test": 30, "train": 501} and record["overlap"]["test/train"] > 100
    assert record["dropped_by_split"]["train"]["duplicate"] == 1
    assert record["overlap_before_drops"]["test/train"] == record["overlap"]["test/train"] + 1
    prepare_task(dropping, tmp_path, tmp_path / "drop", {}, 0)
    dropped = read_task(tmp_path / "drop")
    assert dropped["overlap"] == dict.fromkeys(record["overlap"], 0) and dropped["rows"]["train"] < 250
    assert len({task_digest(task, {}, 0) for task in (kept, as_usual, dropping)}) == 3


def test_rows_with_one_beginning_are_an_error_with_the_cause_and_can_be_kept(tmp_path):
    rule = "Answer the question at the end with one word, and only if you are sure. " * 4
    write_jsonl(tmp_path / "rows.jsonl", [{"text": f"{rule}{n}?", "label": "ab"[n % 2]} for n in range(300)])
    local = {"file": str(tmp_path / "rows.jsonl")}
    message = (
        r"task toy: split .* has no rows, because 300 of 300 rows .* same first or last 200 .*`near_duplicates: keep`"
    )
    with pytest.raises(DataError, match=message):
        prepare_task(toy_task(wheel=None, local=local), tmp_path, tmp_path / "out", {}, 0)
    prepare_task(toy_task(wheel=None, local=local, near_duplicates="keep"), tmp_path, tmp_path / "out", {}, 0)
    rows = read_task(tmp_path / "out")["rows"]
    assert sum(rows.values()) == 300 and rows["test"] > 30 and rows["validation"] > 15


def test_unused_files_beside_the_splits_are_reported(tmp_path, capsys):
    for name in ("train", "test", "dev"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"text": f"{name} {n}", "label": "ab"[n % 2]} for n in range(60)])
    (tmp_path / "README.md").write_text("rows")
    task = toy_task(wheel=None, local={"folder": str(tmp_path)})
    prepare_task(task, tmp_path, tmp_path / "out", {}, 0)
    expected = f"task toy: {tmp_path}: unused: dev.jsonl. Name the file of a split by `splits: {{validation: dev}}`\n"
    assert capsys.readouterr().err == expected
    task = toy_task(wheel=None, local={"folder": str(tmp_path)}, splits={"validation": "dev"})
    prepare_task(task, tmp_path, tmp_path / "two", {}, 0)
    assert capsys.readouterr().err == "" and read_task(tmp_path / "two")["rows"]["validation"] == 60


def test_report_of_a_prepared_task_fits_a_terminal_and_accounts_for_all_rows(tmp_path):
    train = [{"text": f"Row {n}. " + f"w{n} " * n, "label": "ab"[n % 3 == 0]} for n in range(120)]
    test = [{"text": f"Other {n}.", "label": "ab"[n % 2]} for n in range(40)]
    extra = [train[0], {"text": "Row 1. w1", "label": "a"}, {"text": "none", "label": ""}, {"text": "", "label": "a"}]
    conflicting = [{"text": "Twice.", "label": "a"}, {"text": "Twice.", "label": "b"}]
    write_jsonl(tmp_path / "train.jsonl", train + extra + conflicting)
    write_jsonl(tmp_path / "test.jsonl", [*test, train[0], {**train[2], "text": "row 2 w2 W2"}])
    task = toy_task(wheel=None, local={"folder": str(tmp_path)})
    record = prepare_task(task, tmp_path, tmp_path / "out", {"train": 50}, 0)
    assert record == read_task(tmp_path / "out")
    lines = task_lines(record, {8, 16})
    assert max(map(len, lines)) <= 80
    found = {name: values for name, *values in (re.split(r"\s{2,}", line.strip()) for line in lines)}
    assert found["rows"][0] == "50" and found["cut by max_samples"][0] == str(record["rows_uncapped"]["train"] - 50)
    text = "\n".join(lines)
    counts = {name: [int(n) for n in re.search(rf"{name} +(\d+) +(\d+)$", text, re.MULTILINE).groups()]
              for name in ("kept", "dropped: conflicting", "dropped: unlabeled", "dropped: empty", "dropped: duplicate",
                           "dropped: near_duplicate")}  # fmt: skip
    assert counts.pop("kept") == [42, 118] and counts.pop("dropped: duplicate") == [0, 3]
    assert counts.pop("dropped: near_duplicate") == [0, 1] and counts.pop("dropped: conflicting") == [0, 2]
    assert set(map(tuple, counts.values())) == {(0, 1)}
    assert "overlap before  3 train rows in test" in text and "overlap now     none" in text
    once = {**record, "overlap_before_drops": {"test/train": 1}}
    assert "overlap before  1 train row in test" in "\n".join(task_lines(once, {8}))
    assert "at 8 or 16 tokens" in text and "half of the train rows or more have more words" in text
    assert f"{record['text_lengths']['train']['words']['median']} / " in text
