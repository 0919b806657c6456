"""Training loop, cells and jobs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import islice
from types import SimpleNamespace

import pytest
import torch

from apet.errors import ApetError, ConfigError, CorruptError, ModelError
from apet.evaluation import ClassificationObjective, EvaluationResult, Score
from apet.study.cell_record import METRICS, PREDICTIONS, THETA, WITHOUT_WEIGHTS, is_complete
from apet.study.paths import ResultPaths
from apet.training import cell as cell_module
from apet.training import job
from apet.training.callbacks import CellCallbacks
from apet.training.cell import CellInputs, train_cell
from apet.training.loop import TrainingResult, batches, lr_schedule, train
from apet.tuning import TunedPLM
from toy_cells import CONFIG, INPUTS, cell, contents, make_inputs, rows, start


def test_train_full_fine_tuning_learns_the_task():
    plan, parts = start("full", INPUTS.plm.inventory.num_params)
    config = replace(CONFIG, max_steps=150, learning_rates=replace(CONFIG.learning_rates, entry=0.003, bias=0.003))
    with TunedPLM(INPUTS.plm, plan) as tuned:
        trained = train(tuned, parts, INPUTS.data, config, seed=1, lr_multiplier=1.0)
        after = INPUTS.data.objective.evaluate(tuned, [trained.theta], INPUTS.test).score
    assert after.score > 0.85
    assert trained.losses[-1][1] < trained.losses[0][1]


def test_train_selects_the_best_evaluation():
    plan, parts = start()
    with TunedPLM(INPUTS.plm, plan) as tuned:
        trained = train(tuned, parts, INPUTS.data, CONFIG, seed=1, lr_multiplier=1.0)
        validation = INPUTS.data.objective.evaluate(tuned, [trained.theta], INPUTS.data.validation).score
    assert trained.best_step in {10, 20, 30, 40}
    assert [step for step, _ in trained.losses] == [10, 20, 30, 40]
    assert validation.score == trained.validation.score
    assert trained.theta.shape == (700,)


def test_train_with_full_vocab_loss_learns_the_label_words():
    plan, parts = start("full", INPUTS.plm.inventory.num_params)
    config = replace(
        CONFIG, loss="full_vocab", max_steps=150, learning_rates=replace(CONFIG.learning_rates, entry=0.003, bias=0.003)
    )
    with TunedPLM(INPUTS.plm, plan) as tuned:
        trained = train(tuned, parts, INPUTS.data, config, seed=1, lr_multiplier=1.0)
    assert trained.validation.score > 0.85


def test_train_with_a_non_finite_loss_has_outcome_diverged():
    plan, parts = start()
    with TunedPLM(INPUTS.plm, plan) as tuned:
        trained = train(tuned, parts, INPUTS.data, replace(CONFIG, max_grad_norm=1e15), seed=1, lr_multiplier=1e20)
    assert trained.outcome == "diverged"
    assert torch.isfinite(trained.theta).all()


class Losses(ClassificationObjective):
    """Objective with given losses, one a step, and given scores, one an evaluation."""

    def __init__(self, losses: list[float], scores: list[float]) -> None:
        super().__init__(INPUTS.data.objective.trie)
        object.__setattr__(self, "losses", iter(losses))
        object.__setattr__(self, "scores", iter(scores))

    def loss(self, *args) -> torch.Tensor:
        loss = super().loss(*args)
        return loss * next(self.losses) / loss.detach()

    def evaluate(self, *args) -> EvaluationResult:
        score = next(self.scores)
        return EvaluationResult(Score(score, 32, 1.0 + 0 * score), {})


def trained_on(losses: list[float], scores: list[float], **changes) -> TrainingResult:
    plan, parts = start()
    config = replace(CONFIG, max_steps=len(losses), **changes)
    with TunedPLM(INPUTS.plm, plan) as tuned:
        return train(
            tuned, parts, replace(INPUTS.data, objective=Losses(losses, scores)), config, seed=1, lr_multiplier=1.0
        )


@pytest.mark.parametrize(
    ("losses", "steps", "outcome"),
    [
        ([0.5, 99.0, 1.0, 1.0], 4, "ok"),
        ([0.5, 101.0, 1.0, 1.0], 2, "diverged"),
        ([3.0, 299.0, 1.0, 1.0], 4, "ok"),
        ([3.0, 1.0, 1.0, 301.0], 4, "diverged"),
        ([math.nan, 1.0, 1.0, 1.0], 1, "diverged"),
        ([math.inf, 1.0, 1.0, 1.0], 1, "diverged"),
    ],
)
def test_train_stops_if_the_loss_exceeds_a_hundred_times_the_first(losses, steps, outcome):
    trained = trained_on(losses, [0.5, 0.6], num_evals=2)
    assert (trained.num_steps, trained.outcome) == (steps, outcome)
    assert trained.stopped == ("divergence" if outcome == "diverged" else None)
    assert torch.isfinite(trained.theta).all()


@pytest.mark.parametrize(("losses", "scores"), [([1.0, 1.0, 1.0, math.nan], [0.7]), ([1.0] * 4, [0.7, math.nan])])
def test_train_after_divergence_returns_the_best_evaluation(losses, scores):
    """The last case diverges in the last step, so that only the evaluation shows it."""
    trained = trained_on(losses, scores, num_evals=2)
    assert (trained.best_step, trained.validation.score, trained.outcome) == (2, 0.7, "diverged")
    assert trained.losses == [(2, 1.0)]


@pytest.mark.parametrize(
    ("patience", "steps", "best"),
    [(None, 12, 8), (1, 4, 2), (2, 6, 2), (3, 12, 8), (4, 12, 8)],
)
def test_train_stops_early_after_patience_evaluations_without_improvement(patience, steps, best):
    trained = trained_on([1.0] * 12, [0.5, 0.4, 0.5, 0.6, 0.6, 0.5], num_evals=6, early_stopping_patience=patience)
    assert (trained.num_steps, trained.best_step) == (steps, best)
    assert (trained.outcome, trained.stopped) == ("ok", "early_stopping" if steps < 12 else None)


def test_cell_record_after_early_stopping_has_the_steps_taken(tmp_path):
    config = replace(CONFIG, max_steps=40, num_evals=20, early_stopping_patience=2)
    record = train_cell(cell(training=config), INPUTS, tmp_path / "cell")
    stopped = [r for r in record["replicates"] if r["stopped"] == "early_stopping"]
    assert stopped
    for replicate in stopped:
        assert replicate["num_steps"] == replicate["best_step"] + 4 < 40
        assert replicate["outcome"] == "ok"
        assert replicate["losses"][-1][0] == replicate["num_steps"]


def test_train_cell_with_other_test_rows_selects_and_trains_the_same(tmp_path, monkeypatch):
    """Test rows with other texts and labels leave θ, plans and selection unchanged."""
    config = replace(CONFIG, max_steps=8, lr_multipliers=(0.3, 1.0), early_stopping_patience=1)
    poison = replace(rows(48, 99), labels=1 - rows(48, 99).labels, row_ids=INPUTS.test.row_ids)
    splits = {"train": INPUTS.data.train, "validation": INPUTS.data.validation}
    monkeypatch.setattr(cell_module, "read_task", lambda data: INPUTS.task | {"max_length": 8})
    monkeypatch.setattr(cell_module, "make_objective", lambda task, plm: INPUTS.data.objective)
    records = {}
    for name, test in (("clean", INPUTS.test), ("poisoned", poison)):
        encoded = splits | {"test": test}
        monkeypatch.setattr(cell_module, "encode_split", lambda data, split, *_, encoded=encoded: encoded[split])
        records[name] = train_cell(
            cell(training=config), CellInputs.from_folder(INPUTS.plm, tmp_path, 8), tmp_path / name
        )
    first, second = contents(tmp_path / "clean"), contents(tmp_path / "poisoned")
    assert {name for name in first if first[name] != second[name]} == {METRICS, PREDICTIONS}
    for one, two in zip(*(record["replicates"] for record in records.values()), strict=True):
        assert one.pop("test") != two.pop("test")
        assert one == two


def test_train_cell_selects_the_lr_multiplier_on_validation(tmp_path):
    one = replace(CONFIG, max_steps=20)
    record = train_cell(cell(training=replace(one, lr_multipliers=(1e-6, 1.0, 1e-7))), INPUTS, tmp_path / "cell")
    assert [r["lr_multiplier"] for r in record["replicates"]] == [1.0] * len(record["replicates"]) != [1.0]
    assert record["replicates"][0]["validation"]["score"] > 0.5
    alone = train_cell(cell(training=one), INPUTS, tmp_path / "alone")
    assert [r["theta_digest"] for r in record["replicates"]] == [r["theta_digest"] for r in alone["replicates"]]


def test_train_cell_tries_all_lr_multipliers_in_the_first_replicate_only(tmp_path):
    names, spec = [], cell(num_plans=2, num_seeds=2, training=replace(CONFIG, max_steps=4, lr_multipliers=(0.3, 1.0)))

    class Names(CellCallbacks):
        def save(self, name, state):
            names.append(name)

    train_cell(spec, INPUTS, tmp_path / "cell", Names())
    trained = [name for name in names if ".lr" in name]
    replicates = [f"plan{plan}.seed{seed}.lr0" for plan, seed in spec.replicates]
    assert sorted(trained) == sorted([*replicates, "plan0.seed0.lr1"])
    assert len(trained) == spec.num_trainings


@pytest.mark.parametrize("placement", ["none", "full", "lora", "bitfit", "adapter", "uniform"])
def test_train_cell_twice_writes_the_same_bytes(tmp_path, placement):
    same = cell(placement, "700" if placement == "uniform" else "@own", training=replace(CONFIG, max_steps=8))
    train_cell(same, INPUTS, tmp_path / "a")
    train_cell(cell(training=replace(CONFIG, max_steps=4)), INPUTS, tmp_path / "between")
    train_cell(same, make_inputs(), tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert is_complete(tmp_path / "a")


def test_train_cell_replicates_differ_in_plan_and_initial_theta(tmp_path):
    record = train_cell(
        cell(num_plans=2, num_seeds=2, training=replace(CONFIG, max_steps=4)), INPUTS, tmp_path / "cell"
    )
    plans = [r["plan_digest"] for r in record["replicates"]]
    assert plans[0] == plans[1] != plans[2] == plans[3]
    assert len({r["theta_digest"] for r in record["replicates"]}) == 4


def test_train_cell_without_parameters_takes_no_step(tmp_path):
    record = train_cell(cell("none", "@own", num_plans=1), INPUTS, tmp_path / "cell")
    (replicate,) = record["replicates"]
    assert (record["trainable_params"], replicate["num_steps"], replicate["best_step"]) == (0, 0, 0)


def test_is_complete_with_a_corrupt_file_names_the_file(tmp_path):
    folder = tmp_path / "cell"
    train_cell(cell(training=replace(CONFIG, max_steps=4)), INPUTS, folder)
    theta = folder / THETA
    content = theta.read_bytes()
    theta.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CorruptError, match=THETA):
        is_complete(folder)
    theta.unlink()
    assert not is_complete(folder)
    (folder / WITHOUT_WEIGHTS).touch()
    assert is_complete(folder)
    (folder / PREDICTIONS).unlink()
    assert not is_complete(folder)
    (folder / METRICS).write_text("{")
    with pytest.raises(CorruptError, match=METRICS):
        is_complete(folder)


def use_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let jobs use INPUTS instead of folders."""
    monkeypatch.setattr(job, "load_plm", lambda folder, name, device: INPUTS.plm)
    monkeypatch.setattr(job, "read_task", lambda folder: INPUTS.task)
    monkeypatch.setattr(job.CellInputs, "from_folder", lambda *_: INPUTS)


def test_train_job_with_a_failing_cell_trains_the_others(tmp_path, monkeypatch):
    good, bad = cell(training=replace(CONFIG, max_steps=4), num_plans=1), cell("bitfit", "100000")
    use_inputs(monkeypatch)
    roots = ResultPaths(tmp_path)
    with pytest.raises(ApetError, match="1 of 2 cells failed"):
        job.train_job([bad, good], tmp_path, [tmp_path], roots)
    assert is_complete(roots.cells / good.path)
    assert not (roots.cells / bad.path).exists()
    failure = json.loads((roots.failed / f"{bad.path}.json").read_text())
    assert failure["error"].startswith("BudgetError: ")
    assert "100,000" in failure["error"] and any(
        "make_plan" in line or "resolve" in line for line in failure["traceback"]
    )
    run = json.loads((roots.runs / f"{good.path}.json").read_text())
    assert run["seconds"] > 0
    assert run["dtype"] == "float32" and run["threads"] == 1
    assert job.train_job([good], tmp_path, [tmp_path], roots) == 0


def test_train_job_with_a_corrupt_cell_trains_the_others(tmp_path, monkeypatch):
    damaged, good = (cell(training=replace(CONFIG, max_steps=4), num_plans=n) for n in (1, 2))
    use_inputs(monkeypatch)
    results = ResultPaths(tmp_path)
    job.train_job([damaged], tmp_path, [tmp_path], results)
    (results.cells / damaged.path / THETA).write_bytes(b"")
    with pytest.raises(ApetError, match=f"1 of 2 cells failed, the others are saved. {damaged.path}: .*{THETA}"):
        job.train_job([damaged, good], tmp_path, [tmp_path], results)
    assert is_complete(results.cells / good.path)
    assert "CorruptError" in json.loads((results.failed / f"{damaged.path}.json").read_text())["error"]


@pytest.mark.parametrize("record", ["snapshot.json", "pretraining.json"])
def test_train_job_with_another_plm_raises_model_error(tmp_path, monkeypatch, record):
    one, results = cell(training=replace(CONFIG, max_steps=4), num_plans=1), ResultPaths(tmp_path)
    use_inputs(monkeypatch)
    folder = SimpleNamespace(path=tmp_path, origin=(record, "other"))
    monkeypatch.setattr(job, "load_plm", lambda *_, **__: replace(INPUTS.plm, folder=folder))
    with pytest.raises(ModelError, match=rf"{record}: name: expected 'tiny', the PLM of tiny/toy/.*, got 'other'"):
        job.train_job([one], tmp_path, [tmp_path], results)
    with pytest.raises(ConfigError, match="cells: expected one model, got other, tiny"):
        job.train_job([one, replace(one, model="other")], tmp_path, [tmp_path], results)
    assert not results.cells.exists()


def test_train_job_deletes_the_failure_record_of_a_cell_that_succeeds(tmp_path, monkeypatch):
    one, results = cell(training=replace(CONFIG, max_steps=4), num_plans=1), ResultPaths(tmp_path)
    monkeypatch.setattr(job, "load_plm", lambda folder, name, device: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        job.train_job([one], tmp_path, [tmp_path], results)
    record = results.failed / f"{one.path}.json"
    assert "ZeroDivisionError" in json.loads(record.read_text())["error"]
    use_inputs(monkeypatch)
    job.train_job([one], tmp_path, [tmp_path], results)
    assert not record.exists()


@pytest.mark.parametrize("bucket_factor", [1, 5])
def test_batches_are_shuffled_epochs(bucket_factor):
    config, lengths = replace(CONFIG, batch_size=8, bucket_factor=bucket_factor), torch.arange(20) % 7
    first, second = (torch.cat(list(islice(batches(lengths, config, seed=5), 10))) for _ in range(2))
    assert torch.equal(first, second)
    assert first[:40].bincount().tolist() == [2] * 20
    assert not torch.equal(first[:20], first[20:40])
    assert not torch.equal(first, torch.cat(list(islice(batches(lengths, config, seed=6), 10))))


def test_batches_with_a_larger_bucket_factor_have_less_padding_in_random_order():
    lengths = torch.randint(5, 60, (400,), generator=torch.Generator().manual_seed(1))

    def longest(bucket_factor: int) -> list[int]:
        config = replace(CONFIG, batch_size=8, bucket_factor=bucket_factor)
        return [int(lengths[rows].max()) for rows in islice(batches(lengths, config, seed=5), 48)]

    assert sum(longest(8)) < 0.7 * sum(longest(1))
    assert longest(8) not in (sorted(longest(8)), sorted(longest(8), reverse=True))


def test_lr_schedule_rises_then_falls_to_zero_or_is_constant():
    factor = lr_schedule(replace(CONFIG, max_steps=100, warmup_ratio=0.1, lr_scheduler_type="linear"))
    assert [factor(0), factor(9), factor(10), factor(55), factor(100)] == [0.1, 1.0, 1.0, 0.5, 0.0]
    constant = lr_schedule(replace(CONFIG, max_steps=100, warmup_ratio=0.1, lr_scheduler_type="constant"))
    assert [constant(0), constant(10), constant(100)] == [0.1, 1.0, 1.0]
