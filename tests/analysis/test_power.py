"""Power: pilots, simulated studies and the count of their verdicts against known truth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from apet.analysis.pilot import DEFAULT_TRUTH, EFFECTS, Assumptions, estimate_assumptions
from apet.analysis.power import Simulation, design_of, run_studies, summarize
from apet.analysis.simulation import DESIGN_COLUMNS, METHOD_OFFSETS, true_values, with_true_scores
from apet.cli.app import main
from apet.errors import ConfigError
from apet.placement import PLACEMENTS
from apet.study.grid import load_grid
from simulated_claims import MARGINS, Truth, simulate
from toy import PARAMS

PILOT = Truth(plms=2, tasks=2, n=1000, num_plans=6, num_seeds=3, sweep_plans=6, gain=4.0, plan_variance=16.0)
SMALL = Simulation(Truth(plms=2, tasks=2, n=60, sweep=(0, 2)).design(), Assumptions(), MARGINS, 1)


def written(folder: Path, **changes: object) -> Path:
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(PARAMS | changes))
    return path


def test_estimate_assumptions_of_a_pilot_recovers_the_truth() -> None:
    found = estimate_assumptions(simulate(PILOT, 1))
    tolerances = {"chance": 1e-9, "top": 0.01, "low": 0.4, "high": 0.4, "seed_sd": 0.3, "gain": 1.0}
    tolerances |= {"plan_variance": 8.0, "method_variance": 5.0}
    for name, tolerance in tolerances.items():
        assert getattr(found.truth, name) == pytest.approx(getattr(PILOT, name), abs=tolerance), name
    assert found.truth.row_shares == pytest.approx(PILOT.row_shares, abs=0.05)
    assert found.estimated == {*tolerances, "row_shares", *EFFECTS, *(f"task_sds.{name}" for name in (*EFFECTS, "low"))}


def test_estimate_assumptions_of_one_plm_and_plan_keeps_defaults() -> None:
    found = estimate_assumptions(simulate(Truth(plms=1, tasks=1, n=60, num_plans=1, num_seeds=1), 1))
    kept = ("plan_variance", "row_shares", "gain", *EFFECTS)
    assert found.estimated == {"chance", "top", "low", "high", "method_variance", "seed_sd"}
    assert [getattr(found.truth, name) for name in kept] == [getattr(DEFAULT_TRUTH, name) for name in kept]


def test_scaled_assumptions_have_scaled_quantities_of_all_claims() -> None:
    assumed = Assumptions(replace(DEFAULT_TRUTH, low=1.5), {"low": 0.2})
    design = Truth(tasks=2, gain=2.0, sweep=tuple(np.arange(0, 5, 0.2))).design()
    truth = {}
    for factor in (1.0, 0.5, 0.0):
        scaled = assumed.scaled(factor, MARGINS["equivalence_margin"])
        lows = {"task0": 1.5 - scaled.task_sds["low"] / np.sqrt(2), "task1": 1.5 + scaled.task_sds["low"] / np.sqrt(2)}
        tasks = {task: replace(scaled.truth, low=low) for task, low in lows.items()}
        truth[factor] = true_values(design, tasks, MARGINS)
    for claim, value in truth[1.0].items():
        assert value < 0 and truth[0.5][claim] == pytest.approx(value / 2, abs=0.05), claim
        assert truth[0.0][claim] == pytest.approx(0, abs=0.05), claim


@pytest.mark.slow
def test_studies_are_equal_in_any_number_of_processes() -> None:
    jobs = SMALL, (1.0,), 2
    alone, parallel = ([row for rows in run_studies(*jobs, workers) for row in rows] for workers in (1, 2))
    assert summarize(alone).equals(summarize(parallel))
    assert {row["verdict"] for row in alone if row["claim"] == "informed"} == {"not tested"}


def test_tasks_of_a_simulated_study_are_drawn_from_their_population() -> None:
    simulation = replace(SMALL, assumptions=Assumptions(task_sds={"low": 0.0, "plan_change": 2.0}))
    truths = [row["truth"] for i in range(3) for row in simulation.study(0.0, i) if row["claim"] == "positions"]
    assert len(set(truths)) == 3 and 0 < np.abs(truths).max() < 6


def test_summarize_counts_false_verdicts_against_the_truth() -> None:
    """On the study's tasks by the truth of each study, on similar tasks by their mean; at effect 0 all are false."""
    verdicts = {  # effect, level -> (verdict, truth) of each study
        (1.0, "fixed_tasks"): [("supported", -1.0), ("contradicted", -1.0), ("supported", 0.5), ("undecided", 1.0)],
        (1.0, "task_population"): [("supported", -1.0), ("contradicted", 0.5), ("not tested", np.nan)],
        (0.0, "task_population"): [("supported", -0.1), ("contradicted", 0.1)],
    }
    rows = [
        {"claim": "methods", "level": level, "effect": effect, "study": number, "verdict": verdict, "truth": truth}
        for (effect, level), studies in verdicts.items()
        for number, (verdict, truth) in enumerate(studies)
    ]
    found = summarize(rows)
    names = ["level", "effect", "studies", "tested", "supported", "contradicted", "undecided", "false"]
    assert found[names].to_numpy().tolist() == [
        ["fixed_tasks", 1.0, 4, 4, 2, 1, 1, 2],
        ["task_population", 1.0, 3, 2, 1, 1, 0, 1],
        ["task_population", 0.0, 2, 2, 1, 1, 0, 2],
    ]


def test_design_lists_the_cells_of_a_study_with_their_sizes(tmp_path: Path) -> None:
    design = design_of(load_grid(written(tmp_path)), tmp_path)
    assert list(design) == DESIGN_COLUMNS and set(design.n_test) == {30} and set(design.family) == {"bloom"}
    cells = design[design.model.eq("bloom-16x1")].set_index(["placement", "budget"])
    assert cells.trainable_params.to_dict() == {
        ("none", "@own"): 0,
        ("lora", "@own"): 64,
        ("uniform", "@lora"): 64,
        ("uniform", "5"): 5,
    }
    assert cells.num_plans.to_dict()["uniform", "5"] == 2
    with pytest.raises(ConfigError, match=r"max_samples.test: .* rotten_tomatoes is unknown"):
        design_of(load_grid(written(tmp_path, max_samples={})), tmp_path)


def test_every_method_has_a_true_score_around_the_top(tmp_path: Path) -> None:
    names = [name for name in PLACEMENTS.own if name != "none"]
    grid = [{"placements": names, "budgets": ["@own"]}, {"placements": ["uniform"], "budgets": [50]}]
    design = design_of(load_grid(written(tmp_path, grid=grid)), tmp_path)
    cells = with_true_scores(design[design.task.eq(design.task.iloc[0])], DEFAULT_TRUTH)
    scores = cells[cells.placement.ne("uniform")]["mean"]
    assert len(scores) >= len(names) and set(METHOD_OFFSETS) == set(names)
    assert scores.between(DEFAULT_TRUTH.top - 0.2, DEFAULT_TRUTH.top + 0.2).all()


def test_power_prints_assumptions_and_verdicts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["power", "--params", str(written(tmp_path)), "--studies", "1", "--effects", "0"]) == 0
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    assert lines[0][0] == "design: 2 PLMs, 1 task, 8 cells, 12 replicates; pilot: none"
    rows = {line[0]: [text.strip() for text in line[1:] if text.strip()] for line in lines if len(line) > 3}
    assert rows["chance (fraction)"] == ["0.3", "default"]
    assert rows["informed"] == ["on similar tasks", "0", "0", "not tested"]
