"""Trained classification heads, counted and saved apart from θ."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from apet.core.hashing import file_digest
from apet.errors import ConfigError
from apet.evaluation import ClassificationObjective, LabelTrie
from apet.models.families import Inputs
from apet.models.loading import PLM
from apet.placement import MethodSizes, Plan, make_plan, own_count
from apet.study.cell_record import HEADS, THETA, is_complete
from apet.training.cell import CellInputs, train_cell
from apet.training.loop import HEAD, TrainingData, train
from apet.training.runtime import make_deterministic
from apet.tuning import TunedPLM, initial_theta, split_by_structure
from tiny import CONFIGS, tiny_plm
from toy_cells import CONFIG, INPUTS, cell, contents, rows

make_deterministic()
LABELS = torch.arange(2)
SPLITS = TrainingData(rows(64, 1), rows(32, 2), ClassificationObjective(LabelTrie.from_tokens([[0], [1]])))


def headed(family: str) -> PLM:
    plm = tiny_plm(family)
    plm.family.drop_lm_head(plm.model)
    return replace(plm, head="classification")


def make_inputs(family: str) -> CellInputs:
    return CellInputs(headed(family), INPUTS.task, SPLITS, rows(48, 3))


@pytest.mark.parametrize("family", CONFIGS)
def test_classification_head_is_linear_and_uniform_at_step_0(family):
    plm = headed(family)
    budget = own_count("lora", plm.inventory, MethodSizes())
    plan = make_plan(plm.inventory, "lora", budget, 3)
    theta = initial_theta(plan, 4, plm.model.get_input_embeddings().weight)
    assert theta.shape == (budget,)
    assert plm.head_size(2) == 2 * 17
    data = SPLITS.train.batch(torch.arange(5))
    head = torch.randn(34, generator=torch.Generator().manual_seed(1))
    with TunedPLM(plm, plan) as tuned, torch.no_grad():
        assert torch.equal(tuned([theta, torch.zeros(34)], *data, LABELS), torch.zeros(5, 2))
        logits = tuned([theta, head], *data, LABELS)
    inputs = Inputs(*data, {}, plm.family.answer_offset, plm.special_tokens.decoder)
    with torch.no_grad():
        states = plm.family.states(plm.model, inputs)
        if plm.family.mean_pool:
            output = plm.model.bert(input_ids=data[0], attention_mask=inputs.mask("")).last_hidden_state
            states = torch.stack([row[:length].mean(dim=0) for row, length in zip(output, data[1], strict=True)])
    weight = head.view(2, 17)
    torch.testing.assert_close(logits, states @ weight[:, :16].T + weight[:, 16], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", CONFIGS)
def test_train_uses_separate_learning_rates_for_theta_and_head(family):
    plm = headed(family)
    plan = make_plan(plm.inventory, "uniform", 700, 3)
    parts = split_by_structure(plan, initial_theta(plan, 4, plm.model.get_input_embeddings().weight))
    parts[HEAD] = torch.zeros(plm.head_size(2))
    rates = copy.copy(CONFIG.learning_rates)
    object.__setattr__(rates, "head", 0.0)  # which a study may not set
    with TunedPLM(plm, plan) as tuned:
        both = train(tuned, parts, SPLITS, replace(CONFIG, max_steps=12), seed=1, lr_multiplier=1.0)
        still = train(
            tuned, parts, SPLITS, replace(CONFIG, max_steps=12, learning_rates=rates), seed=1, lr_multiplier=1.0
        )
    start = torch.cat([part for name, part in parts.items() if name != HEAD])
    assert both.theta.shape == (700,) and both.head.shape == (34,)
    assert not torch.equal(both.theta, start) and both.head.abs().max() > 0
    assert torch.equal(still.head, torch.zeros(34)) and torch.equal(still.theta, start)  # nothing flows through zeros


@pytest.mark.parametrize("placement", ["none", "lora", "uniform"])
def test_train_cell_counts_and_saves_the_head_separately(tmp_path, placement):
    same = cell(
        placement, "700" if placement == "uniform" else "@own", training=replace(CONFIG, max_steps=8), num_plans=1
    )
    record = train_cell(same, make_inputs("bert"), tmp_path / "a")
    train_cell(same, make_inputs("bert"), tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert is_complete(tmp_path / "a")
    assert record["head"] == {"parameters": 34}
    assert record["files"][HEADS] == file_digest(tmp_path / "a" / HEADS)
    (replicate,) = record["replicates"]
    assert (replicate["num_steps"], replicate["best_step"] > 0) == (8, True)
    name = "plan0.seed0"
    assert load_file(tmp_path / "a" / HEADS)[name].shape == (34,)
    assert load_file(tmp_path / "a" / THETA)[name].shape == (record["trainable_params"],)


def test_train_cell_with_an_lm_head_writes_no_classification_head(tmp_path):
    record = train_cell(cell(training=replace(CONFIG, max_steps=4), num_plans=1), INPUTS, tmp_path / "cell")
    assert record["head"] == {"parameters": 0} and HEADS not in record["files"]


def test_train_a_linear_probe_learns():
    plm = headed("bert")
    plan = Plan("none", 0, 0, ())
    config = replace(CONFIG, max_steps=200, learning_rates=replace(CONFIG.learning_rates, head=0.03))
    with TunedPLM(plm, plan) as tuned:
        trained = train(tuned, {HEAD: torch.zeros(plm.head_size(2))}, SPLITS, config, seed=1, lr_multiplier=1.0)
    assert trained.losses[-1][1] < 0.63  # ln 2 is what a head of zeros has
    assert trained.theta.shape == (0,)


def test_train_cell_with_full_vocab_loss_and_a_classification_head_raises(tmp_path):
    with pytest.raises(ConfigError, match=r"expected label_words for PLM .*head: classification"):
        train_cell(cell(training=replace(CONFIG, loss="full_vocab")), make_inputs("bert"), tmp_path / "cell")


@pytest.mark.parametrize("family", CONFIGS)
def test_train_cell_with_gradient_checkpointing_gives_the_same_theta(tmp_path, family):
    plain = cell(training=replace(CONFIG, max_steps=4), num_plans=1)
    checkpointed = replace(plain, training=replace(plain.training, gradient_checkpointing=True))
    records = [train_cell(c, make_inputs(family), tmp_path / str(n)) for n, c in enumerate((plain, checkpointed))]
    assert records[0]["replicates"] == records[1]["replicates"]
