"""Estimated costs against hand computation and finished cells; requests to a scheduler."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BloomConfig, BloomForCausalLM

from apet.cli.app import main
from apet.cli.study_summary import estimate_lines
from apet.config.study_config import load_study
from apet.core.records import write_json_record
from apet.models.registry import registry
from apet.study import resources
from apet.study.cell_record import write_record
from apet.study.cells import Job
from apet.study.cost_estimate import Cost, CostEstimate
from apet.study.grid import Grid
from apet.study.resolve import sizes
from apet.study.resources import MAX_MINUTES, SCHEDULER_SPEED, START_MINUTES, CostModel, Speed, launch_command
from lab import write_words
from saved import save_plm
from tiny import WORDS, tiny_plm
from toy import PARAMS, ROOT

BLOCKS = 3344
"""Of bloom-16x1 outside the words: qkv 816, dense 272, up 1,088, down 1,040, and four norms of 32."""

TEXT, VALIDATION, TEST = 24, 20, 30
NO_LIMITS = {"train": None, "validation": None, "test": None}
T5 = "google/t5-v1_1-xxl"


def estimate(folder: Path, speed: Speed | None = None, **changes) -> CostEstimate:
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump({**copy.deepcopy(PARAMS), "models": ["bloom-16x1"], **changes}, sort_keys=False))
    return CostEstimate(Grid(load_study(path), path), speed or Speed(), folder)


def cost(costs: CostEstimate, placement: str, budget: str) -> Cost:
    (cell,) = (c for c in costs.grid.cells if (c.placement, c.budget) == (placement, budget))
    return costs.costs[cell]


def test_cost_of_a_cell_equals_hand_computation(tmp_path):
    costs = estimate(tmp_path, Speed(cpu_flops=1e6))
    lora = cost(costs, "lora", "@own")
    tokens = 3 * 4 * TEXT
    flops = (4 * BLOCKS + 2 * 64) * tokens + 2 * BLOCKS * TEXT * (VALIDATION + TEST)
    assert (lora.cells, lora.replicates, lora.trainings, lora.tokens, lora.theta_bytes) == (1, 1, 1, tokens, 64 * 4)
    assert lora.flops == flops
    assert lora.cpu_hours == pytest.approx(flops / 1e6 / 3600) and lora.gpu_hours == 0
    uniform = cost(costs, "uniform", "5")
    assert (uniform.replicates, uniform.trainings, uniform.tokens, uniform.theta_bytes) == (2, 2, 2 * tokens, 2 * 5 * 4)


def test_none_cell_costs_only_its_test(tmp_path):
    none = cost(estimate(tmp_path), "none", "@own")
    assert (none.replicates, none.trainings, none.tokens, none.theta_bytes) == (1, 0, 0, 0)
    assert none.flops == 2 * BLOCKS * TEXT * TEST


def test_none_cell_with_a_classification_head_costs_forward_passes(tmp_path):
    """Only forward: nothing goes back through the PLM."""
    save_plm(tiny_plm("bert", fused=False).model, tmp_path / "plm")
    costs = estimate(
        tmp_path, models=[{"name": "plm", "source": {"folder": str(tmp_path / "plm")}, "head": "classification"}]
    )
    none, tokens = cost(costs, "none", "@own"), 3 * 4 * TEXT
    assert (none.replicates, none.trainings, none.tokens, none.theta_bytes) == (1, 1, tokens, 0)
    blocks = costs.model.sizes["plm"]["non_embedding_params"]
    assert none.flops == 2 * blocks * (tokens + TEXT * (VALIDATION + TEST))


def test_each_multiplier_is_a_training_and_full_fine_tuning_costs_six_flops_per_parameter(tmp_path):
    training = {**PARAMS["training"], "lr_multipliers": [0.1, 1.0, 3.0]}
    full = cost(
        estimate(tmp_path, grid=[{"placements": ["full"], "budgets": ["@own"]}], training=training), "full", "@own"
    )
    size = BLOCKS + 512 * 16
    tokens = 3 * 3 * 4 * TEXT
    assert (full.trainings, full.tokens) == (3, tokens)
    assert full.flops == (4 * BLOCKS + 2 * size) * tokens + 2 * BLOCKS * TEXT * (3 * VALIDATION + TEST)


def test_generated_answer_costs_two_passes(tmp_path):
    costs = estimate(tmp_path, tasks=["bbc_titles"])
    target = costs.grid.tasks["bbc_titles"].max_new_tokens
    lora = cost(costs, "lora", "@own")
    assert lora.tokens == 3 * 4 * (TEXT + target)
    evaluated = 2 * (TEXT + target) * (VALIDATION + TEST)
    assert lora.flops == (4 * BLOCKS + 2 * 64) * lora.tokens + 2 * BLOCKS * evaluated


def test_sums_by_model_and_by_task_equal_the_total(tmp_path):
    costs = estimate(tmp_path, models=["bloom-16x1", "bloom-16x2"], tasks=["rotten_tomatoes", "reuters8"])
    total = costs.total()
    assert total.cells == len(costs.grid.cells) == 16
    for key, names in (("model", costs.grid.models), ("task", costs.grid.tasks)):
        parts = costs.by(key)
        assert set(parts) == set(names)
        assert sum(part.flops for part in parts.values()) == pytest.approx(total.flops)
        assert sum(part.theta_bytes for part in parts.values()) == total.theta_bytes
    assert costs.pending == total


def test_large_plm_uses_a_gpu_and_its_weights_and_thetas_are_counted(tmp_path):
    grid = [{"placements": ["full"], "budgets": ["@own"], "num_seeds": 3}]
    costs = estimate(tmp_path, models=[T5], tasks=["rte"], grid=grid)
    (full,) = costs.costs.values()
    assert full.theta_bytes == 3 * 4 * 11_135_332_352
    assert costs.plm_bytes(T5) == 2 * 11_135_332_352
    assert full.cpu_hours == 0 and full.gpu_hours == pytest.approx(full.flops / 1e14 / 3600)
    assert costs.memory_mb()[T5] > 16 * 11_135


def test_pending_cells_are_estimated_at_the_measured_throughput(tmp_path):
    before = estimate(tmp_path)
    done = before.grid.cells[1]
    cells, runs = tmp_path / "results/cells" / done.path, tmp_path / "results/runs" / f"{done.path}.json"
    for folder in (cells, runs.parent):
        folder.mkdir(parents=True)
    write_record(cells, done.path, {})
    runs.write_text(json.dumps({"cpu_seconds": 7.2, "device": "cpu"}))
    after = estimate(tmp_path)
    assert (after.total().done, after.pending.cells) == (1, 3)
    assert after.costs[done].cpu_hours == pytest.approx(7.2 / 3600)
    other = after.grid.cells[2]
    assert after.costs[other].cpu_hours / after.costs[done].cpu_hours == pytest.approx(
        before.model.flops(other) / before.model.flops(done)
    )


def test_unknown_numbers_of_rows_are_reported_until_the_task_is_prepared(tmp_path):
    costs = estimate(tmp_path, max_samples=NO_LIMITS)
    assert cost(costs, "none", "@own").flops == 0
    assert "unknown numbers of rows: rotten_tomatoes" in "\n".join(estimate_lines(costs))
    folder, rows = tmp_path / costs.grid.task_folder("rotten_tomatoes"), {"train": 9, "validation": 5, "test": 7}
    folder.mkdir(parents=True)
    write_json_record(
        folder / "task.json", {"task_digest": costs.grid.task_digests["rotten_tomatoes"], "rows": rows, "files": {}}
    )
    known = estimate(tmp_path, max_samples=NO_LIMITS)
    assert cost(known, "none", "@own").flops == 2 * BLOCKS * TEXT * 7


def test_paper_study_is_estimated_without_weights_and_docs_show_it(tmp_path):
    path = ROOT / "studies/paper.yaml"
    paper = CostEstimate(Grid(load_study(path), path), Speed(), tmp_path)
    record = paper.record()
    assert len(record["models"]) == 9 and len(record["tasks"]) == 11
    pairs = 9 * 11 - 3 * 4
    assert record["total"]["cells"] == pairs * 28
    # Every seed of full fine-tuning leaves a θ as long as the PLM.
    assert record["models"][T5]["theta_bytes"] > 11 * 3 * 4 * 11_135_332_352
    assert record["total"]["gpu_hours"] > 0 and record["total"]["cpu_hours"] == 0
    page = (ROOT / "docs" / "running.md").read_text()
    assert all(line in page for line in estimate_lines(paper)[:5])


def test_prompt_cell_counts_its_virtual_tokens(tmp_path):
    costs = estimate(tmp_path, grid=[{"placements": ["prompt"], "budgets": ["@own"]}])
    virtual = costs.grid.study.methods.num_virtual_tokens
    assert cost(costs, "prompt", "@own").tokens == 3 * 4 * (TEXT + virtual)


def test_informed_cell_counts_the_rows_that_its_plans_read(tmp_path):
    grid = [{"placements": ["entry_only", "magnitude"], "budgets": [9]}]
    grid += [{"placements": ["entry_only", "fisher"], "budgets": [8], "num_plans": 2}]
    costs = estimate(tmp_path, grid=grid, methods={"num_calibration_samples": 5}, max_samples=NO_LIMITS)
    assert cost(costs, "magnitude", "9").flops == cost(costs, "entry_only", "9").flops
    read = cost(costs, "fisher", "8").flops - cost(costs, "entry_only", "8").flops
    assert read == 2 * 5 * 6 * BLOCKS * TEXT


def test_estimate_command_prints_assumptions(tmp_path, monkeypatch, capsys):
    estimate(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["estimate", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["total"]["cells"] == 4
    assert main(["estimate", "--cpu-flops", "1e9"]) == 0
    output = capsys.readouterr().out
    assert "4 cells (0 done), 6 replicates, 5 trainings" in output
    assert "1e+09 on a CPU core" in output
    assert any(line.startswith("bloom-16x1 ") for line in output.splitlines())
    with pytest.raises(SystemExit):
        main(["estimate", "--gpu-flops", "-1"])
    assert main(["estimate", "--params", "absent.yaml"]) == 2


def words_study(folder: Path) -> Path:
    """A study of a ladder model's size with random weights, whose texts fill the length."""
    torch.manual_seed(0)
    save_plm(BloomForCausalLM(BloomConfig(vocab_size=WORDS, hidden_size=128, n_layer=4, n_head=4)), folder / "plm")
    write_words(folder, count=300, length=80, max_length=64)
    changes = {
        "models": ["./plm"],
        "tasks": ["words.yaml"],
        "max_samples": {"train": 100, "validation": 20, "test": 40},
        "training": {**PARAMS["training"], "max_steps": 25, "batch_size": 16, "max_length": 64},
        "grid": [{"placements": ["lora", "bitfit", "full", "adapter"], "budgets": ["@own"]}],
    }
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump({**copy.deepcopy(PARAMS), **changes}, sort_keys=False))
    return path


@pytest.mark.slow
def test_estimated_hours_are_close_to_measured_hours(tmp_path, monkeypatch):
    """Within a factor of 5 at the assumed rate, whatever the machine; of 2.5 at the rate of the cells before."""
    monkeypatch.chdir(tmp_path)
    params = words_study(tmp_path)
    grid = Grid(load_study(params), params)
    plm, data = grid.plm_folder("plm"), grid.task_folder("words")
    assert main(["download-model", "--model", "plm"]) == main(["prepare-task", "--task", "words"]) == 0
    assert main(["resolve", "--out-file", "study.json"]) == 0
    train = ["train", "--resolved", "study.json", "--model-dir", plm, "--data-dir", data, "--results-dir", "results"]
    first, second = ([cell.path for cell in grid.cells[n::2]] for n in (0, 1))
    before = CostEstimate(grid, Speed())
    assert main([*train, *first]) == 0
    between = CostEstimate(grid, Speed())
    assert between.total().done == len(first)
    assert main([*train, *second]) == 0
    runs = {p: json.loads((tmp_path / f"results/runs/{p}.json").read_text())["cpu_seconds"] for p in first + second}
    measured = sum(runs.values()) / 3600
    assert measured / 5 < before.total().cpu_hours < measured * 5
    measured = sum(runs[path] for path in second) / 3600
    assert measured / 2.5 < between.pending.cpu_hours < measured * 2.5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> CostModel:
    entries = [{"placements": ["uniform"], "budgets": [5, 10**9, "1%"]}, {"placements": ["full"], "budgets": ["@own"]}]
    study = copy.deepcopy(PARAMS) | {"models": [T5], "tasks": ["rte"], "grid": entries, "cells_per_job": 100}
    return cost_model(tmp_path_factory.mktemp("requests") / "params.yaml", study)


def cost_model(path: Path, study: dict) -> CostModel:
    path.write_text(yaml.safe_dump(study))
    grid = Grid(load_study(path), path)
    return CostModel(grid, sizes(grid))


def jobs(model: CostModel) -> list[Job]:
    """A job for each cell."""
    (job,) = model.grid.jobs()
    return [Job(job.model, (cell,)) for cell in job.cells]


def test_memory_is_the_hint_and_sixteen_bytes_per_number_of_theta(model):
    few, many, share, full = map(model.memory_mb, jobs(model))
    plm = 2000 + 1000 * model.grid.models[T5].memory_gb
    assert model.plm_memory_mb(T5) == plm
    assert few == plm + 2000 * (model.grid.models[T5].num_devices - 1)  # the libraries in each process
    assert many - few == 16_000
    assert full - few == pytest.approx(16 * model.grid.models[T5].num_parameters / 1e6, abs=1)
    assert share - few == pytest.approx((full - few) / 100, abs=1)


def test_memory_includes_activations_of_a_step(tmp_path):
    def requested(**training: object) -> int:
        study = copy.deepcopy(PARAMS) | {"models": ["bloom-512x8"], "tasks": ["rotten_tomatoes"]}
        study |= {"grid": [{"placements": ["lora"], "budgets": ["@own"]}], "training": {"max_length": 64} | training}
        return cost_model(tmp_path / "params.yaml", study).memory_mb(
            jobs(cost_model(tmp_path / "params.yaml", study))[0]
        )

    one_row = 24 * 8 * 512 * 64 * 4 / 1e6  # numbers × blocks × width × tokens × bytes
    assert requested(batch_size=32) - requested(batch_size=16) == pytest.approx(16 * one_row, abs=1)
    saved = requested(batch_size=32) - requested(batch_size=32, gradient_checkpointing=True)
    assert saved == pytest.approx(32 * one_row * (1 - 32 / (24 * 8)), abs=1)


def test_sharded_plm_is_launched_on_its_devices(model):
    assert registry()[T5].num_devices == 4
    assert launch_command(1) == "apet"
    assert "--num_processes 4 " in launch_command(4) and launch_command(4).endswith("--module apet.cli.app")


def test_job_requests_the_memory_of_its_largest_cell_and_the_time_of_all(tmp_path):
    study = copy.deepcopy(PARAMS) | {"models": ["bloom-512x8"], "tasks": ["rotten_tomatoes"], "cells_per_job": 100}
    study["training"] |= {"max_steps": 2000}
    model = cost_model(tmp_path / "params.yaml", study)
    (job,) = model.grid.jobs()
    assert model.memory_mb(job) == max(map(model.memory_mb, jobs(model)))
    work = sum(model.runtime_minutes(each) - START_MINUTES for each in jobs(model))
    assert work > 10
    assert model.runtime_minutes(job) - START_MINUTES == pytest.approx(work, abs=len(job.cells))


@settings(max_examples=10, deadline=None)
@given(width=st.integers(1, 64), more=st.integers(0, 64), layers=st.integers(1, 12))
def test_larger_ladder_model_never_requests_less(tmp_path_factory, width: int, more: int, layers: int):
    names = [f"bloom-{16 * w}x{layers}" for w in (width, width + more)]
    study = copy.deepcopy(PARAMS) | {"models": list(dict.fromkeys(names)), "tasks": ["rotten_tomatoes"]}
    study["grid"] = [{"placements": ["none"], "budgets": ["@own"]}]
    model = cost_model(tmp_path_factory.mktemp("ladder") / "params.yaml", study)
    small, large = (next(job for job in model.grid.jobs() if job.model == name) for name in names)
    assert model.memory_mb(small) <= model.memory_mb(large)
    assert model.runtime_minutes(small) <= model.runtime_minutes(large)
    assert model.pretraining_minutes(names[0]) <= model.pretraining_minutes(names[1])


def test_requested_time_has_a_minimum_and_a_maximum(model, tmp_path):
    small = cost_model(tmp_path / "params.yaml", copy.deepcopy(PARAMS) | {"models": ["bloom-16x1"]})
    assert all(small.runtime_minutes(job) == START_MINUTES + 1 for job in small.grid.jobs())
    model.rows["rte"] = {"train": 1, "validation": 10**9, "test": 10**9}
    assert model.runtime_minutes(model.grid.jobs()[0]) == MAX_MINUTES


def test_requests_assume_slower_devices_than_the_estimate():
    assert SCHEDULER_SPEED.cpu_flops < Speed().cpu_flops and SCHEDULER_SPEED.gpu_flops < Speed().gpu_flops
    assert SCHEDULER_SPEED.gpu_min_params > Speed().gpu_min_params


@pytest.mark.parametrize("gpu", [True, False])
def test_plm_uses_a_gpu_only_on_a_machine_with_one(monkeypatch, gpu):
    monkeypatch.setattr(resources, "has_gpu", lambda: gpu)
    path = ROOT / "studies/paper.yaml"
    model = CostModel(Grid(load_study(path), path), {T5: {"num_params": 11e9}})
    assert model.throughput(T5, resources.local_speed())[0] == gpu
