"""Measured costs: arithmetic of ratios, fronts and scores; a real measurement; tables, figure and report."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from apet.analysis.claims import AnalysisInputs
from apet.analysis.measured_costs import (
    COST_METRICS,
    PSCP_CONSTANTS,
    costs_table,
    pareto_front,
    penalized,
    with_scores,
)
from apet.analysis.resampling import sample_means
from apet.errors import DataError
from apet.figures import score_by_cost
from apet.report.cost_tables import write_cost_tables
from apet.study.cell_record import INDICES, PLANS
from apet.study.measurements import measurements, read_measurements
from apet.study.paths import ResultPaths
from apet.training.measure import Method, measure, peak_bytes
from finished_cells import GENERATION, TASK, finished
from simulated_study import OWN, frame_of, study
from toy_cells import INPUTS, cell

TIMES = ("train_ms", "inference_ms", "merged_ms")


def method(placement: str, params: int, step: float, example: float, budget: str = "@own", **changes) -> dict:
    """Costs of a method in three rounds, of which the second is twice as slow for all methods."""
    times = {"train_ms": step, "inference_ms": example, "merged_ms": example}
    rounds = {name: [time, 2 * time, 1.1 * time] if time else [] for name, time in times.items()}
    counts = {"trainable_params": params, "saved_bytes": 4 * params, "peak_memory_mb": 1.0, "inference_flops": 1e6}
    return {"placement": placement, "budget": budget, **counts, **rounds, **changes}


def record(model: str = "bloom-mid", *methods: dict) -> dict:
    return {"model": model, "task": "topics", "rounds": 3, "methods": list(methods)}


WHOLE = [
    method("none", 0, 0, 2.0, "0", peak_memory_mb=None),
    method("full", 1000, 10.0, 2.0, peak_memory_mb=4.0),
    method("lora", 100, 6.0, 2.5, peak_memory_mb=2.0, inference_flops=1.5e6),
]


@pytest.fixture(scope="module")
def inputs() -> AnalysisInputs:
    frame = frame_of(study())
    return AnalysisInputs(frame, sample_means(frame), frame.attrs["margins"])


def simulated() -> list[dict]:
    """Measurements of all PLMs of the simulated study."""
    methods = [
        *WHOLE,
        *(method(n, 50, 7.0, 2.1) for n in OWN if n not in ("full", "lora")),
        method("uniform", 100, 8.0, 2.8, "@lora"),
    ]
    return [record(model, *methods) for model in ("bloom-small", "bloom-mid", "bloom-large")]


def test_times_are_compared_within_rounds():
    table = costs_table([record("m", *WHOLE)]).set_index("placement")
    lora = table.loc["lora"]
    assert lora.train_ms == pytest.approx(6.6) and lora.train_ms_high == pytest.approx((6.6 + 12) / 2)
    assert [lora[f"train_ms_ratio{end}"] for end in ("", "_low", "_high")] == pytest.approx([0.6] * 3)
    assert lora.inference_ms_ratio == pytest.approx(1.25)
    ratios = lora[["trainable_params_ratio", "saved_bytes_ratio", "peak_memory_mb_ratio"]]
    assert list(ratios) == pytest.approx([0.1, 0.1, 0.5])
    none = table.loc["none"]
    assert none.trainable_params_ratio == 0 and none[["train_ms", "train_ms_ratio", "peak_memory_mb"]].isna().all()


def test_spread_is_that_of_the_ratios():
    slow = method("lora", 100, 6.0, 2.0) | {"train_ms": [5.0, 20.0, 22.0]}
    lora = costs_table([record("m", *WHOLE[:2], slow)]).iloc[-1]
    assert [lora[f"train_ms_ratio{end}"] for end in ("", "_low", "_high")] == pytest.approx([1.0, 0.75, 1.5])


def test_ratios_without_a_baseline_are_empty():
    table = costs_table([record("m", method("lora", 100, 6.0, 2.0))])
    assert table.filter(like="_ratio").isna().all(axis=None) and table.train_ms.notna().all()


POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12)


@given(POINTS)
def test_front_is_what_no_other_point_dominates(points):
    front = pareto_front(*np.array(points, float).T)
    for on_front, (cost, score) in zip(front, points, strict=True):
        dominated = any(c <= cost and s >= score and (c, s) != (cost, score) for c, s in points)
        assert on_front != dominated


def test_front_leaves_out_points_without_cost_or_score():
    assert list(pareto_front([np.nan, 1, 2, 3], [9, 5, np.nan, 7])) == [False, True, False, True]


@given(st.floats(0, 100), st.lists(st.floats(0, 1e3), min_size=2, max_size=2), st.floats(0.1, 3))
def test_penalized_score_is_the_score_without_costs_and_falls_with_each(score, costs, beta):
    def penalty(*values: float) -> float:
        table = pd.DataFrame([values], columns=["a", "b"])
        return penalized(pd.Series([score]), table, {"a": 2.0, "b": 5.0}, beta)[0]

    assert penalty(0, 0) == pytest.approx(score) and penalty(2, 5) == pytest.approx(score * 4**-beta)
    assert penalty(*costs) == pytest.approx(score / ((1 + costs[0] / 2) * (1 + costs[1] / 5)) ** beta)


def test_pscp_gives_the_published_value():
    """LoRA of the authors' script: 80.1 points with 14,680,064 parameters and 27.75 GB give 60.08."""
    costs = pd.DataFrame([{"trainable_params": 14_680_064, "extra_flops": 0.0, "peak_memory_mb": 27_750.0}])
    assert penalized(pd.Series([80.1]), costs, PSCP_CONSTANTS)[0] == pytest.approx(60.08, abs=0.005)


def test_costs_are_joined_to_scores(inputs):
    table = with_scores(costs_table(simulated()), inputs.samples).set_index(["model", "placement"])
    full, lora, none = (table.loc["bloom-mid", name] for name in ("full", "lora", "none"))
    assert full.relative_score == pytest.approx(full.score / 8)
    assert none.relative_score == pytest.approx(none.score)
    assert lora.relative_score == pytest.approx(lora.score / (1.1 * 1.6 * 1.5 * 1.25))
    assert lora.pscp == pytest.approx(lora.score, rel=1e-4) and lora.pscp < lora.score
    scores = inputs.frame[inputs.frame.model.eq("bloom-mid") & inputs.frame.placement.eq("lora")]
    assert lora.score == pytest.approx(100 * scores.test_score.mean())


def test_tables_have_a_row_per_method_and_the_tidy_table_its_costs(inputs, tmp_path):
    table = with_scores(costs_table(simulated()), inputs.samples)
    write_cost_tables(table, inputs.frame, tmp_path)
    lines = (tmp_path / "costs.md").read_text().splitlines()
    assert sum(line.startswith("| bloom-") for line in lines) == len(table) == 3 * 7
    assert "6.6; × 0.6 (0.6–0.6)" in (tmp_path / "costs.md").read_text()
    assert (tmp_path / "costs.tex").read_text().count(r"\\") == 1 + len(table)
    tidy = pd.read_csv(tmp_path / "tidy.csv")
    assert len(tidy) == len(inputs.frame)
    measured = tidy.saved_bytes.notna()
    assert set(tidy.placement[measured & tidy.budget.eq("@lora")]) == {"uniform"} and not measured.all()
    described = pd.read_csv(tmp_path / "tidy_columns.csv").column
    assert set(tidy) == {*described, *(set(tidy) & set(inputs.frame))} and set(described) <= set(tidy)


def test_figure_has_a_panel_per_plm_and_cost_with_its_front(inputs):
    table = with_scores(costs_table(simulated()), inputs.samples)
    fig, data = score_by_cost.draw(table, inputs)
    assert len(fig.axes) == 3 * len(COST_METRICS) and len(data) == len(table) * len(COST_METRICS)
    assert all(any(line.get_label() == score_by_cost.FRONT for line in ax.lines) for ax in fig.axes)
    alone = with_scores(costs_table([record("bloom-mid", *WHOLE[2:])]), inputs.samples)
    fig, _ = score_by_cost.draw(alone, inputs)
    texts = {text.get_text() for ax in fig.axes for text in ax.texts}
    assert {"no full fine-tuning\nin this study", "no untuned\nin this study"} <= texts


def test_costs_without_a_measurement_name_the_command(tmp_path):
    with pytest.raises(DataError, match=r"no measurement of this study\. Run `apet measure` for each PLM"):
        read_measurements([cell("lora", "@own")], ResultPaths(tmp_path))


# Real measurements


@pytest.mark.parametrize(
    ("family", "task", "head", "changes"),
    [
        ("bloom", TASK, "lm", {"placement": "lora", "budget": "@own"}),
        ("bloom", TASK, "lm", {"placement": "magnitude", "budget": "@bitfit"}),
        ("t5", GENERATION, "lm", {"placement": "adapter", "budget": "@own"}),
        ("bert", TASK, "classification", {"placement": "none", "budget": "@own"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_measurement_of_a_trained_cell(tmp_path, family, task, head, changes):
    done = finished(tmp_path, family, task, head, num_plans=1, **changes)
    (measurement,) = measurements([done.cell])
    found = measure(measurement, tmp_path, rounds=2)
    (costs,) = found["methods"]
    assert costs["trainable_params"] == done.record["trainable_params"]
    kept = [path for path in done.folder.iterdir() if path.suffix == ".safetensors" or path.name == PLANS]
    assert costs["saved_bytes"] == sum(path.stat().st_size for path in kept)
    assert (INDICES in {path.name for path in kept}) == (changes["placement"] == "magnitude")
    assert all(len(costs[name]) == 2 and min(costs[name]) > 0 for name in TIMES)
    assert costs["inference_flops"] > 0 and json.dumps(found)


def test_memory_is_the_peak_of_tensor_bytes_with_the_plm():
    plm = INPUTS.plm
    frozen = peak_bytes(lambda: None, plm)
    assert frozen == 4 * sum(p.numel() for p in plm.model.parameters())

    def work() -> None:
        kept = torch.ones(1000)
        torch.ones(5000)
        kept + kept

    assert peak_bytes(work, plm) - frozen == 4 * 6000


def test_more_trainable_parameters_need_more_memory_and_nothing_is_left_in_the_plm():
    methods = {name: Method.of(cell(name, "@own", num_plans=1), INPUTS) for name in ("none", "bitfit", "full")}
    before = {name: p.clone() for name, p in INPUTS.plm.model.named_parameters()}
    counts = {name: method.counts() for name, method in methods.items()}
    assert counts["none"]["peak_memory_mb"] is None and "train_ms" not in methods["none"].times(0)
    full, bitfit = counts["full"], counts["bitfit"]
    extra = full["trainable_params"] - bitfit["trainable_params"]
    assert full["peak_memory_mb"] - bitfit["peak_memory_mb"] > 3 * 4 * extra / 1e6  # θ, its gradient and two moments
    assert bitfit["inference_flops"] == counts["none"]["inference_flops"] <= full["inference_flops"]
    methods["full"].times(0)
    assert all(p.equal(before[name]) for name, p in INPUTS.plm.model.named_parameters())


def test_costs_are_measured_on_the_first_task_at_counts_of_methods():
    names = [("none", "@own"), ("uniform", "10"), ("lora", "@own"), ("uniform", "@lora")]
    cells = [cell(*name, task=task, model=model) for model in ("a", "b") for task in ("x", "y") for name in names]
    found = measurements(cells)
    assert [(m.model, m.task) for m in found] == [("a", "x"), ("b", "x")]
    assert [(c.placement, c.budget) for c in found[0].cells] == [name for name in names if name[1] != "10"]
    assert measurements(cells[:2])[0].name != found[0].name.replace("b", "a")
