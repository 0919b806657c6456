"""Tidy table: types, order, equal bytes, and errors for malformed records."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from apet.analysis.columns import CSV_COLUMNS, TIDY_COLUMNS, TIDY_SCHEMA
from apet.analysis.predictions import PSEUDO_VALUES, Predictions, f1_values
from apet.analysis.tidy import read_records, read_tidy, tidy, write_tidy
from apet.config.study_config import AnalysisConfig
from apet.core.hashing import file_digest
from apet.core.records import write_json_record
from apet.data.label_metrics import LABEL_METRICS
from apet.errors import ApetError, CorruptError, DataError
from apet.study.cell_record import read_record, write_record
from simulated_study import record, study, write_cells, write_predictions

STUDY = "ab" * 32
KEYED = [column for column in TIDY_COLUMNS if column.key]


def one() -> tuple[str, dict]:
    return record("bloom-mid", "topics", "uniform", "@lora", [[0.8, 0.7], [0.75, 0.65]], 19_200)


def place(metrics: dict, key: str) -> tuple[dict, str]:
    """The mapping that holds a dotted key, and its last part; `replicate` is the second one."""
    *parts, last = key.split(".")
    for part in parts:
        metrics = metrics["replicates"][1] if part == "replicate" else metrics[part]
    return metrics, last


def test_tidy_has_one_row_per_replicate_with_documented_types() -> None:
    frame = tidy([one()])
    assert list(frame.columns) == list(TIDY_SCHEMA)
    assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == TIDY_SCHEMA
    found = frame[["plan_index", "seed_index", "test_score"]].to_numpy().tolist()
    assert found == [[0, 0, 0.8], [0, 1, 0.7], [1, 0, 0.75], [1, 1, 0.65]]
    row = frame.iloc[0]
    assert (row.model, row.task, row.placement, row.budget) == ("bloom-mid", "topics", "uniform", "@lora")
    assert (row.params_entry, row.params_token, row.n_test, row.n_validation, row.num_labels) == (
        19_200,
        0,
        400,
        200,
        5,
    )
    assert row.trainable_fraction == pytest.approx(19_200 / 480_000)
    assert row.cell_path == "bloom-mid/topics/uniform-@lora"


@settings(max_examples=10, deadline=None)
@given(st.randoms(use_true_random=False))
def test_tidy_does_not_depend_on_the_order_of_records(random) -> None:
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


def test_write_tidy_round_trips_with_equal_bytes(cells: Path, tmp_path: Path) -> None:
    paths = [path for path, _ in study()]
    frame = gathered(cells, paths)
    missing = [{"model": "a", "task": "b", "placement": "c", "budget": "d", "reason": "not trained"}]
    about = {"study": STUDY, "margins": AnalysisConfig(chance_margin=3.0), "missing": missing}
    write_tidy(frame, tmp_path / "a", **about)
    write_tidy(gathered(cells, paths[::-1]), tmp_path / "b", **about)
    for name in ("tidy.parquet", "tidy.csv", "tidy_columns.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    back = read_tidy(tmp_path / "a" / "tidy.parquet")
    margins = {"chance_margin": 3.0, "full_ft_margin": 2.0, "equivalence_margin": 0.5}
    digest = file_digest(tmp_path / "a" / "tidy.parquet")
    assert back.attrs == {"study": STUDY, "name": STUDY[:12], "margins": margins, "missing": missing, "digest": digest}
    pd.testing.assert_frame_equal(back[CSV_COLUMNS], frame[CSV_COLUMNS])
    assert all(map(np.array_equal, back.row_scores, frame.row_scores))
    text = pd.read_csv(tmp_path / "a" / "tidy.csv", dtype=TIDY_SCHEMA, keep_default_na=False, na_values=[""])
    pd.testing.assert_frame_equal(text, frame[CSV_COLUMNS])


def test_write_tidy_describes_every_column(tmp_path: Path) -> None:
    write_tidy(tidy([one()]), tmp_path, STUDY)
    schema = pq.read_schema(tmp_path / "tidy.parquet")
    described = pd.read_csv(tmp_path / "tidy_columns.csv").set_index("column")
    assert list(described.index) == schema.names == list(TIDY_SCHEMA)
    for column in TIDY_COLUMNS:
        assert schema.field(column.name).metadata[b"meaning"].decode() == described.meaning[column.name]
    assert (
        str(schema.field("row_scores").type).startswith("large_list")
        and described.type["row_scores"] == "list of float32"
    )


def test_row_scores_are_the_scores_on_each_test_row(cells: Path) -> None:
    frame = gathered(cells, [path for path, _ in study()])
    assert {rows.dtype for rows in frame.row_scores} == {np.dtype(np.float32)}
    assert (frame.row_scores.map(len) == frame.n_test).all()
    np.testing.assert_allclose(frame.row_scores.map(np.mean), frame.test_score, atol=1e-6)
    row = frame.iloc[7]
    found = pq.read_table(cells / row.cell_path / "predictions.parquet").to_pandas()
    found = found[(found.plan_index == row.plan_index) & (found.seed_index == row.seed_index)]
    assert row.row_scores.tolist() == found.correct.astype(float).tolist()


def test_row_scores_of_generation_are_its_scores(tmp_path: Path) -> None:
    cell, metrics = one()
    scores = np.random.default_rng(0).random((4, 400))
    for replicate, values in zip(metrics["replicates"], scores, strict=True):
        replicate["test"]["score"] = float(values.mean())
    metrics["replicates"][3] |= {"outcome": "diverged", "test": {"score": None, "n": 400, "loss": None}}
    metrics["task"]["metric"] = "rouge_l"
    (tmp_path / cell).mkdir(parents=True)
    write_predictions(tmp_path / cell, metrics, {"prediction": np.full((4, 400), "an answer"), "score": scores})
    frame = gathered(tmp_path, [cell])
    np.testing.assert_array_equal(np.stack(frame.row_scores[:3]), scores[:3].astype(np.float32))
    assert len(frame.row_scores[3]) == 0


@settings(max_examples=50, deadline=None)
@given(arrays(bool, (2, 3, 12)))
def test_f1_values_have_mean_f1(values) -> None:
    labels, predicted = values
    positive = (labels.sum(axis=1) + predicted.sum(axis=1)).clip(min=1)
    f1 = 2 * (labels & predicted).sum(axis=1) / positive
    np.testing.assert_allclose(f1_values(labels, predicted).mean(axis=1), f1, atol=1e-12)


def test_f1_values_have_the_variance_of_f1() -> None:
    """Over many samples, the variance of their mean is that of F1."""
    rng = np.random.default_rng(1)
    labels = rng.random((4000, 300)) < 0.3
    predicted = np.where(labels, rng.random(labels.shape) < 0.7, rng.random(labels.shape) < 0.2)
    values = f1_values(labels, predicted)
    estimated = (values.var(axis=1, ddof=1) / 300).mean()
    assert estimated == pytest.approx(values.mean(axis=1).var(), rel=0.08)


@settings(max_examples=50, deadline=None)
@given(arrays(np.int64, (2, 3, 12), elements=st.integers(0, 2)), st.sampled_from(["macro_f1", "mcc"]))
def test_pseudo_values_have_the_metric_as_mean(values, metric) -> None:
    labels, predicted = values
    expected = [LABEL_METRICS[metric](p, y) for y, p in zip(labels, predicted, strict=True)]
    np.testing.assert_allclose(PSEUDO_VALUES[metric](labels, predicted).mean(axis=1), expected, atol=1e-12)


@pytest.mark.parametrize("metric", ["macro_f1", "mcc"])
def test_pseudo_values_have_the_variance_of_the_metric(metric) -> None:
    rng = np.random.default_rng(1)
    labels = np.searchsorted([0.6, 0.9], rng.random((4000, 300)))
    predicted = np.where(rng.random(labels.shape) < 0.7, labels, rng.integers(0, 3, labels.shape))
    values = PSEUDO_VALUES[metric](labels, predicted)
    estimated = (values.var(axis=1, ddof=1) / 300).mean()
    assert estimated == pytest.approx(values.mean(axis=1).var(), rel=0.08)


@pytest.mark.parametrize(("score", "fits"), [(-1.0, True), (-1.1, False)])
def test_a_matthews_correlation_may_be_negative(tmp_path: Path, score: float, fits: bool) -> None:
    cell, metrics = one()
    metrics["task"] |= {"metric": "mcc", "chance": 0.0, "majority": 0.0}
    metrics["replicates"][0]["test"] |= {"score": score, "metrics": {"mcc": -1.0}}
    with nullcontext() if fits else pytest.raises(DataError, match="expected a fraction from -1 to 1"):
        assert (tidy([(cell, metrics)]).mcc[0], fits) == (-1.0, True)


def test_row_scores_of_f1_are_pseudo_values(tmp_path: Path) -> None:
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
    np.testing.assert_array_equal(np.stack(gathered(tmp_path, [cell]).row_scores), values.astype(np.float32))


class TestPredictions:
    @pytest.fixture
    def place(self, tmp_path: Path) -> Path:
        write_cells(tmp_path, [one()])
        return tmp_path / one()[0]

    def printed(self, place: Path, kind: type[ApetError]) -> str:
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

    def test_with_changed_bytes_are_corrupt(self, place: Path) -> None:
        content = bytearray((place / "predictions.parquet").read_bytes())
        content[100] ^= 1
        (place / "predictions.parquet").write_bytes(content)
        assert f"Delete {place} and train again" in self.printed(place, CorruptError)

    def test_with_a_missing_file_name_dvc_pull(self, place: Path) -> None:
        (place / "predictions.parquet").unlink()
        assert "dvc pull" in self.printed(place, DataError)

    def test_without_a_digest_name_the_key(self, place: Path) -> None:
        write_json_record(place / "metrics.json", {**read_record(place), "files": {}})
        assert "files: missing the digest" in self.printed(place, DataError)

    @pytest.mark.parametrize("odd", [{"bleu": 0.5}, {"accuracy": 1.1}, {"accuracy": -0.1}, {"accuracy": "0.5"}])
    def test_with_an_unknown_metric_are_rejected(self, place: Path, odd: dict) -> None:
        self.rewrite(place, lambda metrics: metrics["replicates"][2]["test"].update(metrics=odd))
        with pytest.raises(
            DataError, match=f"replicate 2: test.metrics: expected fractions of .*, got '{next(iter(odd))}'"
        ):
            gathered(place.parents[2], [one()[0]])

    def test_with_another_score_are_corrupt(self, place: Path) -> None:
        self.rewrite(place, lambda metrics: metrics["replicates"][2]["test"].update(score=0.7475))
        printed = self.printed(place, CorruptError)
        assert "plan 1, seed 0 score 0.750000" in printed and "says 0.747500" in printed

    def test_with_other_replicates_are_corrupt(self, place: Path) -> None:
        self.rewrite(place, lambda metrics: None)
        metrics = read_record(place)
        metrics["replicates"].reverse()
        write_record(place, metrics["path"], metrics)
        assert "differ from the replicates in metrics.json" in self.printed(place, CorruptError)

    def test_with_a_metric_not_for_labels_are_rejected(self, place: Path) -> None:
        self.rewrite(place, lambda metrics: metrics["task"].update(metric="em"))
        assert "'em'" in self.printed(place, DataError)

    def test_without_parquet_content_are_corrupt(self, place: Path) -> None:
        (place / "predictions.parquet").write_bytes(b"none")
        write_record(place, one()[0], read_record(place))
        assert "not a readable Parquet file" in self.printed(place, CorruptError)


def test_row_scores_with_other_test_rows_than_another_cell_raise(tmp_path: Path) -> None:
    first, (other, metrics) = one(), record("bloom-small", "topics", "lora", "@own", [[0.5]], 100)
    write_cells(tmp_path, [first])
    (tmp_path / other).mkdir(parents=True)
    ids = [f"topics{i:060d}" for i in range(400)]
    table = {"plan_index": [0] * 400, "seed_index": [0] * 400, "id": ids[::-1], "correct": [True, False] * 200}
    pq.write_table(pa.table(table), tmp_path / other / "predictions.parquet")
    write_record(tmp_path / other, other, metrics)
    with pytest.raises(DataError, match="expected the same test rows of topics, in the same order") as error:
        gathered(tmp_path, [first[0], other])
    assert first[0] in str(error.value) and other in str(error.value)


def test_missing_cells_are_shared_by_copies_of_the_frame(tmp_path: Path) -> None:
    """pandas copies attrs at every step, which takes a second where thousands of cells are missing."""
    missing = [{"model": "a", "task": "b", "placement": "c", "budget": str(i), "reason": "none"} for i in range(3)]
    write_tidy(tidy([one()]), tmp_path, STUDY, missing=missing)
    frame = read_tidy(tmp_path / "tidy.parquet")
    assert frame[frame.plan_index == 0].copy().attrs["missing"] is frame.attrs["missing"]


@pytest.mark.parametrize("column", KEYED, ids=lambda column: column.key)
def test_tidy_with_a_missing_key_names_file_and_key(column) -> None:
    cell, metrics = one()
    holder, last = place(metrics, column.key)
    del holder[last]
    with pytest.raises(ApetError) as error:
        tidy([(cell, metrics)])
    assert f"{cell}/metrics.json" in str(error.value)
    assert column.key in str(error.value)


@pytest.mark.parametrize("column", KEYED, ids=lambda column: column.key)
@pytest.mark.parametrize("value", [[], True, float("nan")], ids=repr)
def test_tidy_with_a_wrong_type_names_file_and_key(column, value) -> None:
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
        ("replicate.outcome", "fine", "ok or diverged"),
        ("replicate.test.score", None, "a number"),
        ("plm.num_params", 0, "a positive number"),
        ("trainable_params", 1.5, "an integer"),
    ],
)
def test_tidy_with_a_value_out_of_range_raises(key: str, value: object, words: str) -> None:
    cell, metrics = one()
    holder, last = place(metrics, key)
    holder[last] = value
    with pytest.raises(DataError, match=words):
        tidy([(cell, metrics)])


def test_tidy_of_a_diverged_replicate_has_no_score_whatever_its_record_says() -> None:
    """The trainer writes that of the θ before it diverged, which may be an untrained one."""
    cell, metrics = one()
    metrics["replicates"][1] |= {"outcome": "diverged", "best_step": 0}
    frame = tidy([(cell, metrics)])
    assert frame.test_score.isna().tolist() == frame.test_loss.isna().tolist() == [False, True, False, False]


def test_tidy_accepts_missing_scores_of_diverged_replicates_and_missing_labels() -> None:
    cell, metrics = one()
    bad = metrics["replicates"][1]
    bad["outcome"] = "diverged"
    bad["test"].update(score=None, loss=None)
    bad["validation"]["score"] = None
    metrics["task"].update(labels=None, majority=None)
    frame = tidy([(cell, metrics)])
    assert frame.test_score.isna().tolist() == [False, True, False, False]
    assert frame.num_labels.isna().all()
    assert frame.chance_majority.isna().all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"replicates": []}, "replicates: expected a list"),
        ({"replicates": {}}, "replicates: expected a list"),
        ({"replicates": [3]}, "replicate.plan_index"),
    ],
)
def test_tidy_of_a_malformed_record_names_the_key(change: dict, words: str) -> None:
    cell, metrics = one()
    with pytest.raises(DataError, match=words):
        tidy([(cell, {**metrics, **change})])


def test_tidy_of_duplicate_replicates_or_no_cells_raises() -> None:
    cell, metrics = one()
    with pytest.raises(DataError, match="duplicate replicate") as error:
        tidy([(cell, metrics), ("elsewhere", metrics)])
    assert cell in str(error.value)
    assert "elsewhere" in str(error.value)
    with pytest.raises(DataError, match="no replicate"):
        tidy([])


def test_read_records_yields_records_and_rejects_corrupt_files(tmp_path: Path) -> None:
    cell, metrics = one()
    written = write_record(tmp_path / cell, cell, metrics)
    assert list(read_records(tmp_path, [cell])) == [(cell, written)] and metrics.items() <= written.items()
    with pytest.raises(DataError, match=r"absent/metrics\.json"):
        list(read_records(tmp_path, ["absent"]))
    (tmp_path / cell / "metrics.json").write_text("{")
    with pytest.raises(CorruptError, match="not a JSON document"):
        list(read_records(tmp_path, [cell]))


def test_read_tidy_rejects_other_files(tmp_path: Path) -> None:
    other = tmp_path / "other.parquet"
    pd.DataFrame({"model": ["a"]}).to_parquet(other)
    with pytest.raises(DataError, match="expected a tidy table of format 1, got format None"):
        read_tidy(other)
    other.write_bytes(b"no parquet")
    with pytest.raises(CorruptError, match=r"other\.parquet"):
        read_tidy(other)
    with pytest.raises(DataError, match=r"none\.parquet"):
        read_tidy(tmp_path / "none.parquet")


def test_tidy_accepts_fractions_from_0_to_1() -> None:
    cell, metrics = one()
    for replicate, score in zip(metrics["replicates"], (0.0, 1.0, 0.5, 0.25), strict=True):
        replicate["test"] |= {"score": score, "metrics": {"accuracy": score, "f1": 1 - score}}
    frame = tidy([(cell, metrics)])
    assert frame.test_score.to_list() == frame.accuracy.to_list() == [0.0, 1.0, 0.5, 0.25]
    assert frame.f1.to_list() == [1.0, 0.0, 0.5, 0.75]
