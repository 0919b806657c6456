"""What a study takes, against numbers computed by hand, and against cells that have run."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path

import pytest
import torch
import yaml
from transformers import BloomConfig, BloomForCausalLM

from apet.cli.app import main
from apet.config.study_config import load_study
from apet.core.records import write_json_record
from apet.study.cell_record import write_record
from apet.study.grid import Grid
from apet.study.resources import Cost, CostEstimate, Speed
from saved import save_plm
from tiny import WORDS, tiny_plm
from toy import PARAMS, ROOT

BLOCKS = 3344
"""Of bloom-16x1 outside the words: qkv 816, dense 272, up 1,088, down 1,040, and four norms of 32."""

TEXT, VALIDATION, TEST = 24, 20, 30


def estimate(folder: Path, speed: Speed | None = None, **changes) -> CostEstimate:
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump({**copy.deepcopy(PARAMS), "models": ["bloom-16x1"], **changes}, sort_keys=False))
    return CostEstimate(Grid(load_study(path), path), speed or Speed(), folder)


def cost(found: CostEstimate, placement: str, budget: str) -> Cost:
    (cell,) = (c for c in found.grid.cells if (c.placement, c.budget) == (placement, budget))
    return found.costs[cell]


def test_a_cell_costs_what_it_does_by_hand(tmp_path):
    found = estimate(tmp_path, Speed(core=1e6))
    lora = cost(found, "lora", "@own")
    tokens = 3 * 4 * TEXT
    operations = (4 * BLOCKS + 2 * 64) * tokens + 2 * BLOCKS * TEXT * (VALIDATION + TEST)
    assert (lora.cells, lora.replicates, lora.trainings, lora.tokens, lora.theta) == (1, 1, 1, tokens, 64 * 4)
    assert lora.operations == operations
    assert lora.cpu_hours == pytest.approx(operations / 1e6 / 3600) and lora.gpu_hours == 0
    drawn = cost(found, "uniform", "5")
    assert (drawn.replicates, drawn.trainings, drawn.tokens, drawn.theta) == (2, 2, 2 * tokens, 2 * 5 * 4)


def test_without_parameters_a_cell_is_only_tested(tmp_path):
    none = cost(estimate(tmp_path), "none", "@own")
    assert (none.replicates, none.trainings, none.tokens, none.theta) == (1, 0, 0, 0)
    assert none.operations == 2 * BLOCKS * TEXT * TEST


def test_a_trained_head_is_trained_without_any_parameter_too(tmp_path):
    """Only forward: nothing goes back through the PLM."""
    save_plm(tiny_plm("bert", fused=False).model, tmp_path / "plm")
    found = estimate(
        tmp_path, models=[{"name": "plm", "source": {"folder": str(tmp_path / "plm")}, "head": "classification"}]
    )
    none, tokens = cost(found, "none", "@own"), 3 * 4 * TEXT
    assert (none.replicates, none.trainings, none.tokens, none.theta) == (1, 1, tokens, 0)
    blocks = found.sizes["plm"]["non_embedding"]
    assert none.operations == 2 * blocks * (tokens + TEXT * (VALIDATION + TEST))


def test_each_rate_is_a_training_and_full_tuning_costs_six_a_parameter(tmp_path):
    training = {**PARAMS["training"], "lr_multipliers": [0.1, 1.0, 3.0]}
    full = cost(
        estimate(tmp_path, grid=[{"placements": ["full"], "budgets": ["@own"]}], training=training), "full", "@own"
    )
    size = BLOCKS + 512 * 16
    tokens = 3 * 3 * 4 * TEXT
    assert (full.trainings, full.tokens) == (3, tokens)
    assert full.operations == (4 * BLOCKS + 2 * size) * tokens + 2 * BLOCKS * TEXT * (3 * VALIDATION + TEST)


def test_a_written_answer_is_read_generated_and_measured(tmp_path):
    found = estimate(tmp_path, tasks=["bbc_titles"])
    target = found.grid.tasks["bbc_titles"].max_new_tokens
    lora = cost(found, "lora", "@own")
    assert lora.tokens == 3 * 4 * (TEXT + target)
    looked = 2 * (TEXT + target) * (VALIDATION + TEST)
    assert lora.operations == (4 * BLOCKS + 2 * 64) * lora.tokens + 2 * BLOCKS * looked


def test_sums_are_the_same_every_way(tmp_path):
    found = estimate(tmp_path, models=["bloom-16x1", "bloom-16x2"], tasks=["rotten_tomatoes", "reuters8"])
    total = found.total()
    assert total.cells == len(found.grid.cells) == 16
    for key, names in (("model", found.grid.models), ("task", found.grid.tasks)):
        parts = found.by(key)
        assert set(parts) == set(names)
        assert sum(part.operations for part in parts.values()) == pytest.approx(total.operations)
        assert sum(part.theta for part in parts.values()) == total.theta
    assert found.left == total


def test_a_large_plm_goes_to_a_gpu_and_its_weights_and_thetas_are_counted(tmp_path):
    grid = [{"placements": ["full"], "budgets": ["@own"], "num_seeds": 3}]
    found = estimate(tmp_path, models=["google/t5-v1_1-xxl"], tasks=["rte"], grid=grid)
    (full,) = found.costs.values()
    assert full.theta == 3 * 4 * 11_135_332_352
    assert found.plm_bytes("google/t5-v1_1-xxl") == 2 * 11_135_332_352
    assert full.cpu_hours == 0 and full.gpu_hours == pytest.approx(full.operations / 1e14 / 3600)
    assert found.memory_mb()["google/t5-v1_1-xxl"] > 16 * 11_135


def test_what_is_done_is_told_from_what_is_left_at_the_measured_rate(tmp_path):
    before = estimate(tmp_path)
    done = before.grid.cells[1]
    cells, runs = tmp_path / "results/cells" / done.path, tmp_path / "results/runs" / f"{done.path}.json"
    for folder in (cells, runs.parent):
        folder.mkdir(parents=True)
    write_record(cells, done.path, {})
    runs.write_text(json.dumps({"cpu_seconds": 7.2, "device": "cpu"}))
    after = estimate(tmp_path)
    assert (after.total().done, after.left.cells) == (1, 3)
    assert after.costs[done].cpu_hours == pytest.approx(7.2 / 3600)
    other = after.grid.cells[2]
    assert after.costs[other].cpu_hours / after.costs[done].cpu_hours == pytest.approx(
        before.operations(other) / before.operations(done)
    )


def test_rows_that_nothing_tells_yet_are_said_to_be_missing(tmp_path):
    found = estimate(tmp_path, rows={"train": None, "validation": None, "test": None})
    assert cost(found, "none", "@own").operations == 0
    assert "rows of rotten_tomatoes are not known yet" in "\n".join(found.lines())
    folder, rows = tmp_path / found.grid.task_folder("rotten_tomatoes"), {"train": 9, "validation": 5, "test": 7}
    folder.mkdir(parents=True)
    write_json_record(
        folder / "task.json", {"task_digest": found.grid.task_digests["rotten_tomatoes"], "rows": rows, "files": {}}
    )
    known = estimate(tmp_path, rows={"train": None, "validation": None, "test": None})
    assert cost(known, "none", "@own").operations == 2 * BLOCKS * TEXT * 7


def test_the_papers_study_is_counted_without_any_plm_as_the_docs_show(tmp_path):
    path = ROOT / "studies/paper.yaml"
    paper = CostEstimate(Grid(load_study(path), path), Speed(), tmp_path)
    found = paper.record()
    assert len(found["models"]) == 9 and len(found["tasks"]) == 11
    pairs = 9 * 11 - 3 * 4
    assert found["total"]["cells"] == pairs * 28
    # Every seed of full fine-tuning leaves a θ as long as the PLM.
    assert found["models"]["google/t5-v1_1-xxl"]["theta"] > 11 * 3 * 4 * 11_135_332_352
    assert found["total"]["gpu_hours"] > 0 and found["total"]["cpu_hours"] == 0
    page = (ROOT / "docs" / "running.md").read_text()
    assert all(line in page for line in paper.lines()[:5])


def test_the_table_says_what_it_assumes(tmp_path, monkeypatch, capsys):
    estimate(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["cost", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["total"]["cells"] == 4
    assert main(["cost", "--core", "1e9"]) == 0
    said = capsys.readouterr().out
    assert "4 cells (0 done), 6 replicates, 5 trainings" in said
    assert "1e+09 on a CPU core" in said
    assert any(line.startswith("bloom-16x1 ") for line in said.splitlines())
    with pytest.raises(SystemExit):
        main(["cost", "--gpu", "-1"])
    assert main(["cost", "--params", "absent.yaml"]) == 2


TASK = {
    "name": "words", "version": 1, "description": "Which word stands among others.", "type": "classification",
    "local": {"file": "words.csv"}, "text_columns": ["text"], "prompt": "{text}", "verbalizer": {"a": " w20", "b": " w30"},
    "metrics": ["accuracy"], "max_length": 64,
}  # fmt: skip


def words_study(folder: Path) -> Path:
    """A study of a rung's size with random weights, whose texts fill the length."""
    torch.manual_seed(0)
    save_plm(BloomForCausalLM(BloomConfig(vocab_size=WORDS, hidden_size=128, n_layer=4, n_head=4)), folder / "plm")
    draw = random.Random(0)
    texts = [" ".join(f"w{draw.randrange(8, WORDS)}" for _ in range(80)) for _ in range(300)]
    rows = [f"{text},{'ab'[number % 2]}" for number, text in enumerate(texts)]
    (folder / "words.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    (folder / "words.yaml").write_text(yaml.safe_dump(TASK, sort_keys=False))
    changes = {
        "models": ["./plm"],
        "tasks": ["words.yaml"],
        "max_samples": {"train": 100, "validation": 20, "test": 40},
        "training": {**PARAMS["training"], "max_steps": 40, "batch_size": 16, "max_length": 64},
        "grid": [{"placements": ["lora", "bitfit", "full", "adapter"], "budgets": ["@own"]}],
    }
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump({**copy.deepcopy(PARAMS), **changes}, sort_keys=False))
    return path


def test_cells_take_about_what_was_said(tmp_path, monkeypatch):
    """Within a factor of 5 at the assumed rate, whatever the machine; of 2.5 at the rate of the cells before."""
    monkeypatch.chdir(tmp_path)
    params = words_study(tmp_path)
    grid = Grid(load_study(params), params)
    plm, data = grid.plm_folder("plm"), grid.task_folder("words")
    assert main(["snapshot", "--model", "plm"]) == main(["prepare", "--task", "words"]) == 0
    assert main(["check", "--out", "study.json"]) == 0
    train = ["train", "--study", "study.json", "--plm", plm, "--data", data, "--results", "results"]
    first, second = ([cell.path for cell in grid.cells[n::2]] for n in (0, 1))
    before = CostEstimate(grid, Speed())
    assert main([*train, *first]) == 0
    between = CostEstimate(grid, Speed())
    assert between.total().done == len(first)
    assert main([*train, *second]) == 0
    runs = {p: json.loads((tmp_path / f"results/runs/{p}.json").read_text())["cpu_seconds"] for p in first + second}
    took = sum(runs.values()) / 3600
    assert took / 5 < before.total().cpu_hours < took * 5
    took = sum(runs[path] for path in second) / 3600
    assert took / 2.5 < between.left.cpu_hours < took * 2.5
