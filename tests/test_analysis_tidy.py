"""The tidy table: typed, sorted, the same bytes twice, and plain about what is wrong with a record."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from apet.analysis.columns import COLUMNS, FLAT, SCHEMA
from apet.analysis.predictions import Predictions, f1_values
from apet.analysis.tidy import read_records, read_tidy, tidy, write_tidy
from apet.config.study_config import AnalysisConfig
from apet.core.hashing import file_digest
from apet.core.records import write_json_record
from apet.errors import ApetError, CorruptError, DataError
from apet.study.cell_record import read_record, write_record
from simulated_study import record, study, write_cells, write_predictions

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


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of the simulated study's cells, with predictions."""
    root = tmp_path_factory.mktemp("cells")
    write_cells(root, study())
    return root


def gathered(root: Path, paths: list[str]) -> pd.DataFrame:
    return tidy(read_records(root, paths), Predictions(root))


def test_round_trip_and_equal_bytes(cells: Path, tmp_path: Path) -> None:
    paths = [path for path, _ in study()]
    frame = gathered(cells, paths)
    missing = [{"model": "a", "task": "b", "placement": "c", "budget": "d", "reason": "not trained"}]
    about = {"study": STUDY, "margins": AnalysisConfig(chance_margin=3.0), "missing": missing}
    write_tidy(frame, tmp_path / "a", **about)
    write_tidy(gathered(cells, paths[::-1]), tmp_path / "b", **about)
    for name in ("tidy.parquet", "tidy.csv", "tidy_columns.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    back = read_tidy(tmp_path / "a" / "tidy.parquet")
    margins = {"chance_margin": 3.0, "full_ft_margin": 2.0, "equivalence_decades": 0.5}
    digest = file_digest(tmp_path / "a" / "tidy.parquet")
    assert back.attrs == {"study": STUDY, "margins": margins, "missing": missing, "digest": digest}
    pd.testing.assert_frame_equal(back[FLAT], frame[FLAT])
    assert all(map(np.array_equal, back.rows, frame.rows))
    text = pd.read_csv(tmp_path / "a" / "tidy.csv", dtype=SCHEMA, keep_default_na=False, na_values=[""])
    pd.testing.assert_frame_equal(text, frame[FLAT])


def test_every_column_says_what_it_means(tmp_path: Path) -> None:
    write_tidy(tidy([one()]), tmp_path, STUDY)
    schema = pq.read_schema(tmp_path / "tidy.parquet")
    described = pd.read_csv(tmp_path / "tidy_columns.csv").set_index("column")
    assert list(described.index) == schema.names == list(SCHEMA)
    for column in COLUMNS:
        assert schema.field(column.name).metadata[b"meaning"].decode() == described.meaning[column.name]
    assert str(schema.field("rows").type).startswith("large_list") and described.type["rows"] == "list of float32"


def test_rows_are_the_scores_on_each_test_row(cells: Path) -> None:
    frame = gathered(cells, [path for path, _ in study()])
    assert {rows.dtype for rows in frame.rows} == {np.dtype(np.float32)}
    assert (frame.rows.map(len) == frame.n).all()
    np.testing.assert_allclose(frame.rows.map(np.mean), frame.score, atol=1e-6)
    row = frame.iloc[7]
    found = pq.read_table(cells / row.cell / "predictions.parquet").to_pandas()
    found = found[(found.draw == row.draw) & (found.rerun == row.rerun)]
    assert row.rows.tolist() == found.correct.astype(float).tolist()


def test_a_written_answers_rows_are_its_scores(tmp_path: Path) -> None:
    cell, metrics = one()
    scores = np.random.default_rng(0).random((4, 400))
    for replicate, values in zip(metrics["replicates"], scores, strict=True):
        replicate["test"]["score"] = float(values.mean())
    metrics["replicates"][3] |= {"outcome": "diverged", "test": {"score": None, "n": 400, "loss": None}}
    metrics["task"]["metric"] = "rouge_l"
    (tmp_path / cell).mkdir(parents=True)
    write_predictions(tmp_path / cell, metrics, {"prediction": np.full((4, 400), "an answer"), "score": scores})
    frame = gathered(tmp_path, [cell])
    np.testing.assert_array_equal(np.stack(frame.rows[:3]), scores[:3].astype(np.float32))
    assert len(frame.rows[3]) == 0


@settings(max_examples=50, deadline=None)
@given(arrays(bool, (2, 3, 12)))
def test_f1s_pseudo_values_have_it_as_their_mean(values) -> None:
    labels, predicted = values
    positive = (labels.sum(axis=1) + predicted.sum(axis=1)).clip(min=1)
    f1 = 2 * (labels & predicted).sum(axis=1) / positive
    np.testing.assert_allclose(f1_values(labels, predicted).mean(axis=1), f1, atol=1e-12)


def test_f1s_pseudo_values_have_its_variance() -> None:
    """Over many samples, the variance of their mean is that of F1."""
    rng = np.random.default_rng(1)
    labels = rng.random((4000, 300)) < 0.3
    predicted = np.where(labels, rng.random(labels.shape) < 0.7, rng.random(labels.shape) < 0.2)
    values = f1_values(labels, predicted)
    estimated = (values.var(axis=1, ddof=1) / 300).mean()
    assert estimated == pytest.approx(values.mean(axis=1).var(), rel=0.08)


def test_labels_scored_by_f1(tmp_path: Path) -> None:
    cell, metrics = one()
    rng = np.random.default_rng(0)
    labels = np.broadcast_to(rng.integers(0, 2, 400), (4, 400))
    predicted = np.where(rng.random((4, 400)) < 0.7, labels, 1 - labels)
    values = f1_values(labels == 1, predicted == 1)
    for replicate, mean in zip(metrics["replicates"], values.mean(axis=1), strict=True):
        replicate["test"]["score"] = float(mean)
    metrics["task"]["metric"] = "f1"
    (tmp_path / cell).mkdir(parents=True)
    columns = {"label": labels, "prediction": predicted, "correct": labels == predicted}
    write_predictions(tmp_path / cell, metrics, columns)
    np.testing.assert_array_equal(np.stack(gathered(tmp_path, [cell]).rows), values.astype(np.float32))


class TestPredictionsThatAreNotTheRecords:
    @pytest.fixture
    def place(self, tmp_path: Path) -> Path:
        write_cells(tmp_path, [one()])
        return tmp_path / one()[0]

    def said(self, place: Path, kind: type[ApetError]) -> str:
        with pytest.raises(kind) as error:
            gathered(place.parents[2], [one()[0]])
        assert f"{place}/" in str(error.value)
        return str(error.value)

    def rewrite(self, place: Path, change, **columns: np.ndarray) -> None:
        metrics = read_record(place)
        n = metrics["replicates"][0]["test"]["n"]
        correct = np.array([np.arange(n) < r["test"]["score"] * n - 0.5 for r in metrics["replicates"]])
        change(metrics)
        write_predictions(place, metrics, columns or {"correct": correct})

    def test_other_bytes(self, place: Path) -> None:
        content = bytearray((place / "predictions.parquet").read_bytes())
        content[100] ^= 1
        (place / "predictions.parquet").write_bytes(content)
        assert f"Delete {place} to train again" in self.said(place, CorruptError)

    def test_no_file(self, place: Path) -> None:
        (place / "predictions.parquet").unlink()
        assert "dvc pull" in self.said(place, DataError)

    def test_no_digest(self, place: Path) -> None:
        write_json_record(place / "metrics.json", {**read_record(place), "files": {}})
        assert "'files'" in self.said(place, DataError)

    @pytest.mark.parametrize("odd", [{"bleu": 0.5}, {"accuracy": 1.1}, {"accuracy": -0.1}, {"accuracy": "0.5"}])
    def test_a_metric_that_is_none(self, place: Path, odd: dict) -> None:
        self.rewrite(place, lambda metrics: metrics["replicates"][2]["test"].update(metrics=odd))
        with pytest.raises(DataError, match=f"replicate 2: test.metrics has '{next(iter(odd))}'"):
            gathered(place.parents[2], [one()[0]])

    def test_another_score(self, place: Path) -> None:
        self.rewrite(place, lambda metrics: metrics["replicates"][2]["test"].update(score=0.7475))
        said = self.said(place, CorruptError)
        assert "draw 1, rerun 0 score 0.750000" in said and "says 0.747500" in said

    def test_other_replicates(self, place: Path) -> None:
        self.rewrite(place, lambda metrics: None)
        metrics = read_record(place)
        metrics["replicates"].reverse()
        write_record(place, metrics["path"], metrics)
        assert "one after another" in self.said(place, CorruptError)

    def test_a_metric_that_labels_have_not(self, place: Path) -> None:
        self.rewrite(place, lambda metrics: metrics["task"].update(metric="em"))
        assert "'em'" in self.said(place, DataError)

    def test_no_parquet(self, place: Path) -> None:
        (place / "predictions.parquet").write_bytes(b"none")
        write_record(place, one()[0], read_record(place))
        assert "not a readable parquet file" in self.said(place, CorruptError)


def test_other_test_rows_than_another_cell(tmp_path: Path) -> None:
    first, (other, metrics) = one(), record("bloom-small", "topics", "lora", "@own", [[0.5]], 100)
    write_cells(tmp_path, [first])
    (tmp_path / other).mkdir(parents=True)
    ids = [f"topics{i:060d}" for i in range(400)]
    table = {"draw": [0] * 400, "rerun": [0] * 400, "id": ids[::-1], "correct": [True, False] * 200}
    pq.write_table(pa.table(table), tmp_path / other / "predictions.parquet")
    write_record(tmp_path / other, other, metrics)
    with pytest.raises(DataError, match="other test rows of topics, or in another order") as error:
        gathered(tmp_path, [first[0], other])
    assert first[0] in str(error.value) and other in str(error.value)


def test_missing_cells_are_not_copied_with_the_frame(tmp_path: Path) -> None:
    """pandas copies attrs at every step, which takes a second where thousands of cells are missing."""
    missing = [{"model": "a", "task": "b", "placement": "c", "budget": str(i), "reason": "none"} for i in range(3)]
    write_tidy(tidy([one()]), tmp_path, STUDY, missing=missing)
    frame = read_tidy(tmp_path / "tidy.parquet")
    assert frame[frame.draw == 0].copy().attrs["missing"] is frame.attrs["missing"]


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


def test_a_diverged_replicate_has_no_score_whatever_its_record_says() -> None:
    """The trainer writes that of the θ before it diverged, which may be an untrained one."""
    cell, metrics = one()
    metrics["replicates"][1] |= {"outcome": "diverged", "best_step": 0}
    frame = tidy([(cell, metrics)])
    assert frame.score.isna().tolist() == frame.test_loss.isna().tolist() == [False, True, False, False]


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
    written = write_record(tmp_path / cell, cell, metrics)
    assert list(read_records(tmp_path, [cell])) == [(cell, written)] and metrics.items() <= written.items()
    with pytest.raises(DataError, match=r"absent/metrics\.json"):
        list(read_records(tmp_path, ["absent"]))
    (tmp_path / cell / "metrics.json").write_text("{")
    with pytest.raises(CorruptError, match="not a JSON document"):
        list(read_records(tmp_path, [cell]))


def test_read_tidy_refuses_other_files(tmp_path: Path) -> None:
    other = tmp_path / "other.parquet"
    pd.DataFrame({"model": ["a"]}).to_parquet(other)
    with pytest.raises(DataError, match="expected a tidy table of format 1, got format None"):
        read_tidy(other)
    other.write_bytes(b"no parquet")
    with pytest.raises(CorruptError, match=r"other\.parquet"):
        read_tidy(other)
    with pytest.raises(DataError, match=r"none\.parquet"):
        read_tidy(tmp_path / "none.parquet")


def test_fractions_may_be_all_from_0_to_1() -> None:
    cell, metrics = one()
    for replicate, score in zip(metrics["replicates"], (0.0, 1.0, 0.5, 0.25), strict=True):
        replicate["test"] |= {"score": score, "metrics": {"accuracy": score, "f1": 1 - score}}
    frame = tidy([(cell, metrics)])
    assert frame.score.to_list() == frame.accuracy.to_list() == [0.0, 1.0, 0.5, 0.25]
    assert frame.f1.to_list() == [1.0, 0.0, 0.5, 0.75]
