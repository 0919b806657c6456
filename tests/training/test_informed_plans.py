"""Plans of informed placements against scores from an unfrozen PLM, and in cells."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from apet.errors import BudgetError, ConfigError, ModelError
from apet.evaluation import ClassificationObjective, LabelTrie
from apet.models.loading import PLM
from apet.placement import PLACEMENTS, Plan, Site, informed_sites
from apet.placement.sites import capacity
from apet.study.cell_record import INDICES
from apet.training.callbacks import CellCallbacks
from apet.training.cell import CellInputs, plan_of, train_cell
from apet.training.informed_plans import Calibration, Parameters, informed_plan
from apet.tuning import initial_theta, tune, untuned
from apet.tuning.top_scalars import top_scalars
from tiny import tiny_plm
from toy_cells import CONFIG, INPUTS, cell, contents, rows

LABELS = {"words": [[3], [4]], "prefixes": [[3, 5], [3, 6], [4]]}
"""Label words. Those that share a prefix take several forward passes."""
SHORT = replace(CONFIG, max_steps=4)
FAMILIES = ("bloom", "bert", "t5", "gpt_neox", "llama")


def calibration(labels: str = "words", num_samples: int = 12) -> Calibration:
    objective = ClassificationObjective(LabelTrie.from_tokens(LABELS[labels]))
    return Calibration(rows(41, 1), objective, "label_words", num_samples)


def expected_scores(plm: PLM, placement: str, data: Calibration, seed: int) -> torch.Tensor:
    """Compute the scores of all candidates by unfreezing the PLM."""
    sites = informed_sites(plm.inventory)
    parameters = Parameters(plm, sites)
    if placement == "magnitude":
        values = (parameters.scalars(s, getattr(*parameters.by_site[s])).abs() for s in sites)
        return torch.cat(list(values))
    plm.model.requires_grad_(True)
    total = torch.zeros(capacity(sites))
    with untuned(plm) as model:
        for row in data.rows(seed).split(1):
            data.objective.loss(model, [], data.data, row, data.loss).backward()
            gradient = torch.cat([parameters.scalars(s, getattr(*parameters.by_site[s]).grad) for s in sites])
            total += gradient.square() if placement == "fisher" else gradient
            plm.model.zero_grad()
    plm.model.requires_grad_(False)
    return total.abs()


def positions(plan: Plan, plm: PLM) -> list[int]:
    """Return the positions of a plan's scalars among all candidates."""
    units, found, start = {u.site: u for u in plan.units}, [], 0
    for site in informed_sites(plm.inventory):
        if site in units:
            chosen = units[site].indices
            found += (start + (np.arange(site.units) if chosen is None else chosen)).tolist()
        start += site.units
    return found


@pytest.mark.parametrize("placement", PLACEMENTS.informed)
@pytest.mark.parametrize("family", FAMILIES)
def test_informed_plan_takes_the_highest_scores(family: str, placement: str) -> None:
    plm, labels = tiny_plm(family), "prefixes" if family in ("bloom", "t5") else "words"
    before = {name: value.clone() for name, value in plm.model.state_dict().items()}
    for budget in (1, 777):
        plan = informed_plan(plm, placement, budget, 5, calibration(labels))
        scores = expected_scores(plm, placement, calibration(labels), 5)
        found = positions(plan, plm)
        assert len(found) == len(set(found)) == budget == plan.budget
        # Sums of squares may be rounded differently.
        chosen = scores[found].sort(descending=True).values
        torch.testing.assert_close(chosen, scores.sort(descending=True).values[:budget], rtol=1e-5, atol=0)
    assert all(torch.equal(value, before[name]) for name, value in plm.model.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in plm.model.parameters())
    assert not any({"weight", "bias"} & vars(m).keys() or m._forward_hooks for m in plm.model.modules())


def test_informed_plan_of_all_candidates_has_no_indices() -> None:
    plm = INPUTS.plm
    most = capacity(informed_sites(plm.inventory))
    plan = informed_plan(plm, "magnitude", most, 1)
    assert plan.budget == most and not plan.indices
    with pytest.raises(BudgetError, match=f"at most {most:,}"):
        informed_plan(plm, "magnitude", most + 1, 1)


@pytest.mark.parametrize("placement", PLACEMENTS.informed)
def test_informed_plan_starts_at_the_frozen_plm_and_each_scalar_has_a_gradient(placement: str) -> None:
    plm, data = INPUTS.plm, calibration()
    plan = informed_plan(plm, placement, 300, 5, data)
    theta = initial_theta(plan, 1, plm.word_embeddings).requires_grad_()
    row = data.rows(5)
    with untuned(plm) as frozen:
        expected = data.objective.loss(frozen, [], data.data, row, "label_words")
    with tune(plm, plan) as tuned:
        loss = data.objective.loss(tuned, [theta], data.data, row, "label_words")
        loss.backward()
    assert loss.item() == expected.item()
    assert theta.grad is not None and bool((theta.grad != 0).all())
    if placement == "gradient":  # θ's gradient is what the scores are, of the mean loss
        scores = expected_scores(plm, placement, data, 5)[positions(plan, plm)]
        torch.testing.assert_close(theta.grad.abs() * len(row), scores, rtol=1e-4, atol=1e-5)


SITES = [Site(f"decoder.{i}.ffn.up", "entry", (units,)) for i, units in enumerate((7, 1, 12))]


@given(st.lists(st.sampled_from([0.0, 1e-45, 0.5, 1.0, 1.0000001, 3e38]), min_size=20, max_size=20), st.integers(1, 20))
@settings(max_examples=100, deadline=None)
def test_top_scalars_breaks_ties_by_position(values: list[float], count: int) -> None:
    scores = dict(zip(SITES, torch.tensor(values).split([7, 1, 12]), strict=True))
    chosen = top_scalars(SITES, lambda site: scores[site], count, None)
    expected = sorted(sorted(range(20), key=lambda i: (-np.float32(values[i]), i))[:count])
    starts = dict(zip(SITES, (0, 7, 8), strict=True))
    assert [starts[site] + i for site, indices in chosen.items() for i in indices.tolist()] == expected


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_top_scalars_of_infinite_scores_are_refused(value: float) -> None:
    with pytest.raises(ModelError, match="expected finite numbers"):
        top_scalars(SITES[:1], lambda site: torch.tensor([0.0, value, 1, 2, 3, 4, 5]), 2, None)


def test_informed_plan_depends_on_seed_and_training_rows_only() -> None:
    gradient, inputs = cell("gradient", "300"), INPUTS
    gradient = replace(gradient, methods=replace(gradient.methods, num_calibration_samples=8))
    digests = [plan_of(gradient, inputs, 300, index).digest for index in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]
    other_rows = replace(inputs, data=replace(inputs.data, validation=rows(32, 8)), test=rows(48, 9))
    assert plan_of(gradient, other_rows, 300, 0).digest == digests[0]
    other_rows = replace(inputs, data=replace(inputs.data, train=rows(64, 7)))
    assert plan_of(gradient, other_rows, 300, 0).digest != digests[0]


def test_informed_cell_saves_its_plans(tmp_path) -> None:
    fisher = cell("fisher", "300", num_plans=2, num_seeds=2, training=SHORT)
    fisher = replace(fisher, methods=replace(fisher.methods, num_calibration_samples=8))
    record = train_cell(fisher, INPUTS, tmp_path / "a")
    train_cell(fisher, INPUTS, tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    digests = [r["plan_digest"] for r in record["replicates"]]
    assert digests[0] == digests[1] != digests[2] == digests[3]
    tensors = load_file(tmp_path / "a" / INDICES)
    assert INDICES in record["files"] and all(values.dtype == np.int32 for values in tensors.values())
    plans = json.loads((tmp_path / "a" / "plans.json").read_text())
    for index in range(2):
        prefix = f"plan{index}/"
        indices = {name.removeprefix(prefix): v for name, v in tensors.items() if name.startswith(prefix)}
        plan = Plan.from_record(plans[f"plan{index}.seed0"], indices, INPUTS.plm.inventory)
        assert plan.digest == digests[2 * index] == plans[f"plan{index}.seed0"]["digest"]
    assert INDICES not in train_cell(cell(training=SHORT), INPUTS, tmp_path / "c")["files"]


class Saved(CellCallbacks):
    """Callbacks that keep values in memory."""

    def __init__(self) -> None:
        self.values: dict = {}

    def load(self, name):
        return self.values.get(name)

    def save(self, name, value):
        self.values[name] = value()


def test_informed_plan_is_not_made_again_when_a_cell_resumes(monkeypatch) -> None:
    saved, fisher = Saved(), cell("fisher", "300", num_plans=1)
    plan = plan_of(fisher, INPUTS, 300, 0, saved)
    monkeypatch.setattr("apet.training.cell.informed_plan", lambda *_: 1 / 0)
    again = plan_of(fisher, INPUTS, 300, 0, saved)
    assert again.digest == plan.digest and again.record() == plan.record()


def headed() -> CellInputs:
    plm = tiny_plm("bert")
    plm.family.drop_lm_head(plm.model)
    return replace(INPUTS, plm=replace(plm, head="classification"))


@pytest.mark.parametrize(
    ("inputs", "num_plans", "message"),
    [
        (headed(), 1, "`head: classification`, which is 0 at step 0"),
        (INPUTS, 2, "there are 64 training rows, so all plans"),
    ],
)
def test_informed_plan_without_information_is_refused(inputs: CellInputs, num_plans: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_of(cell("gradient", "300", num_plans=num_plans), inputs, 300, 0)
