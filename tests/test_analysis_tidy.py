"""The tidy table: typed, sorted, the same bytes twice, and plain about what is wrong with a record."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apet.analysis.tidy import COLUMNS, SCHEMA, read_records, read_tidy, tidy, write_tidy
from apet.errors import ApetError, DataError
from simulated_study import record, study

STUDY = "ab" * 32
KEYED = [column for column in COLUMNS if column.key]


def one() -> tuple[str, dict]:
    return record("bloom-mid", "topics", "uniform", "@lora", [[0.8, 0.7], [0.75, 0.65]], 19_200)


def place(metrics: dict, key: str) -> tuple[dict, str]:
    """The mapping that holds a dotted key, and its last part; `replicate` is the second one."""
    *parts, last = key.split(".")
    for part in parts:
        metrics = metrics["replicates"][1] if part == "replicate" else metrics[part]
    return metrics, last


def test_one_row_a_replicate_with_documented_types() -> None:
    frame = tidy([one()])
    assert list(frame.columns) == list(SCHEMA)
    assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == SCHEMA
    found = frame[["draw", "rerun", "score"]].to_numpy().tolist()
    assert found == [[0, 0, 0.8], [0, 1, 0.7], [1, 0, 0.75], [1, 1, 0.65]]
    row = frame.iloc[0]
    assert (row.model, row.task, row.placement, row.budget) == ("bloom-mid", "topics", "uniform", "@lora")
    assert (row.entry, row.token, row.n, row.validation_n, row.labels) == (19_200, 0, 400, 200, 5)
    assert row.share == pytest.approx(19_200 / 480_000)
    assert row.cell == "bloom-mid/topics/uniform-@lora"


@settings(max_examples=10, deadline=None)
@given(st.randoms(use_true_random=False))
def test_order_of_records_and_replicates_does_not_matter(random) -> None:
    cells = study()[:12]
    shuffled = copy.deepcopy(cells)
    random.shuffle(shuffled)
    for _, metrics in shuffled:
        random.shuffle(metrics["replicates"])
    pd.testing.assert_frame_equal(tidy(cells), tidy(shuffled))


def test_round_trip_and_equal_bytes(tmp_path: Path) -> None:
    cells = study()
    frame = tidy(cells)
    write_tidy(frame, tmp_path / "a", STUDY)
    write_tidy(tidy(cells[::-1]), tmp_path / "b", STUDY)
    for name in ("tidy.parquet", "tidy.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    back = read_tidy(tmp_path / "a" / "tidy.parquet")
    assert back.attrs["study"] == STUDY
    pd.testing.assert_frame_equal(back, frame)
    text = pd.read_csv(tmp_path / "a" / "tidy.csv", dtype=SCHEMA, keep_default_na=False, na_values=[""])
    pd.testing.assert_frame_equal(text, frame)


@pytest.mark.parametrize("column", KEYED, ids=lambda column: column.key)
def test_missing_key_names_file_and_key(column) -> None:
    cell, metrics = one()
    holder, last = place(metrics, column.key)
    del holder[last]
    with pytest.raises(ApetError) as error:
        tidy([(cell, metrics)])
    assert f"{cell}/metrics.json" in str(error.value)
    assert column.key in str(error.value)


@pytest.mark.parametrize("column", KEYED, ids=lambda column: column.key)
@pytest.mark.parametrize("value", [[], True, float("nan")], ids=repr)
def test_wrong_type_names_file_and_key(column, value) -> None:
    cell, metrics = one()
    holder, last = place(metrics, column.key)
    holder[last] = value
    with pytest.raises(ApetError, match=column.key) as error:
        tidy([(cell, metrics)])
    assert f"{cell}/metrics.json" in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("replicate.test.score", 80.0, "fraction from 0 to 1"),
        ("replicate.test.score", -0.1, "fraction from 0 to 1"),
        ("task.majority", 2, "fraction from 0 to 1"),
        ("replicate.outcome", "fine", "ok, diverged"),
        ("replicate.test.score", None, "a number"),
        ("plm.parameters", 0, "above 0"),
        ("tunable", 1.5, "an integer"),
    ],
)
def test_values_out_of_range(key: str, value: object, words: str) -> None:
    cell, metrics = one()
    holder, last = place(metrics, key)
    holder[last] = value
    with pytest.raises(DataError, match=words):
        tidy([(cell, metrics)])


def test_a_diverged_replicate_may_lack_its_score_and_generation_its_labels() -> None:
    cell, metrics = one()
    bad = metrics["replicates"][1]
    bad["outcome"] = "diverged"
    bad["test"].update(score=None, loss=None)
    bad["validation"]["score"] = None
    metrics["task"].update(labels=None, majority=None)
    frame = tidy([(cell, metrics)])
    assert frame.score.isna().tolist() == [False, True, False, False]
    assert frame.labels.isna().all()
    assert frame.majority.isna().all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 2}, "'format'"),
        ({"replicates": []}, "'replicates'"),
        ({"replicates": {}}, "'replicates'"),
        ({"replicates": [3]}, "replicate.draw"),
    ],
)
def test_malformed_records(change: dict, words: str) -> None:
    cell, metrics = one()
    with pytest.raises(DataError, match=words):
        tidy([(cell, {**metrics, **change})])


def test_doubled_coordinates_and_no_cells() -> None:
    cell, metrics = one()
    with pytest.raises(DataError, match="two replicates share the coordinates") as error:
        tidy([(cell, metrics), ("elsewhere", metrics)])
    assert cell in str(error.value)
    assert "elsewhere" in str(error.value)
    with pytest.raises(DataError, match="no replicate"):
        tidy([])


def test_read_records(tmp_path: Path) -> None:
    cell, metrics = one()
    (tmp_path / cell).mkdir(parents=True)
    (tmp_path / cell / "metrics.json").write_text(json.dumps(metrics))
    assert list(read_records(tmp_path, [cell])) == [(cell, metrics)]
    with pytest.raises(DataError, match=r"absent/metrics\.json"):
        list(read_records(tmp_path, ["absent"]))
    (tmp_path / cell / "metrics.json").write_text("{")
    with pytest.raises(DataError, match="not a JSON document"):
        list(read_records(tmp_path, [cell]))


def test_read_tidy_refuses_other_files(tmp_path: Path) -> None:
    other = tmp_path / "other.parquet"
    pd.DataFrame({"model": ["a"]}).to_parquet(other)
    with pytest.raises(DataError, match="not a tidy table"):
        read_tidy(other)
    other.write_bytes(b"no parquet")
    with pytest.raises(DataError, match=r"other\.parquet"):
        read_tidy(other)
    with pytest.raises(DataError, match=r"none\.parquet"):
        read_tidy(tmp_path / "none.parquet")
