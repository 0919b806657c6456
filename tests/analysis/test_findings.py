"""Findings of simulated studies whose claims are true, false or undecidable, and of studies with gaps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from apet.analysis.claims import CLAIMS, AnalysisInputs
from apet.analysis.findings import build_findings, compact
from apet.analysis.resampling import sample_means
from apet.core.hashing import with_checksum
from apet.report.result_tables import write_findings
from simulated_claims import Truth, simulate

FINDING = ["estimate", "low", "high", "p", "p_adjusted", "verdict", "reason"]
SCOPE = ["fixed_tasks", "task_population", "plms", "tasks", "cells", "replicates", "values"]
LARGE = Truth(
    num_plans=8, num_seeds=3, sweep_plans=12, n=3000, seed_sd=0.5, low=1.5, high=3.5, plan_variance=4, gain=2
)  # fmt: skip
"""Enough of everything to decide."""
SMALL = Truth(gain=2.0, num_plans=2, num_seeds=2, n=200)


def findings(frame: pd.DataFrame) -> dict:
    return build_findings(AnalysisInputs.from_frame(frame))[0]


def found(truth: Truth, seed: int) -> dict:
    frame = simulate(truth, seed)
    return build_findings(AnalysisInputs.from_frame(frame, sample_means(frame, 600)))[0]


def verdicts(document: dict, level: str = "fixed_tasks", scope: str = "overall") -> dict[str, str]:
    return {name: claim["scopes"][scope][level]["verdict"] for name, claim in document["claims"].items()}


@pytest.mark.parametrize("seed", [1, 2])
def test_findings_of_true_claims_are_supported(seed: int) -> None:
    truth = LARGE.changed(
        plan_change=-3.9, high_change=-0.6, method_variance=15, method_change=-14, low_spread=0.1, gain_change=-3
    )
    document = found(truth, seed)
    assert set(verdicts(document).values()) == {"supported"}
    assert "contradicted" not in verdicts(document, "task_population").values()
    assert {entry["overall"]["sign"] for entry in compact(document).values()} == {1}


@pytest.mark.parametrize("seed", [1, 2])
def test_findings_of_false_claims_are_contradicted(seed: int) -> None:
    truth = LARGE.changed(
        plan_change=3.9, high_change=0.6, method_variance=15, method_change=14, low_spread=1.0, gain_change=3
    )
    document = found(truth, seed)
    assert set(verdicts(document).values()) == {"contradicted"}
    assert "supported" not in verdicts(document, "task_population").values()


def test_findings_without_an_effect_are_undecided() -> None:
    """Nothing changes with scale, and the spread is what counts as about the same: any verdict would be false."""
    decided = [
        (seed, name, level)
        for seed in range(4)
        for level in ("fixed_tasks", "task_population")
        for name, verdict in verdicts(found(SMALL.changed(low_spread=0.5, low=1.5), seed), level).items()
        if verdict not in ("undecided", "not tested")
    ]
    assert len(decided) <= 2, "8 families of tests, of each of which at most 5 % may hold a false verdict"


def check_holm(document: dict, scope: str, level: str) -> None:
    """Adjusted by hand: the k-th smallest of m p-values times m + 1 − k, not below the one before, at most 1."""
    all_of = [claim["scopes"][scope][level] for claim in document["claims"].values()]
    tested = sorted((f for f in all_of if f["p"] is not None), key=lambda f: f["p"])
    steps = [f["p"] * (len(tested) - k) for k, f in enumerate(tested)]
    expected = np.minimum(np.maximum.accumulate(steps), 1) if steps else []
    assert [f["p_adjusted"] for f in tested] == pytest.approx(list(expected), rel=2e-3)


def check_form(document: dict, scopes: list[str]) -> None:
    json.dumps(document, allow_nan=False)
    for scope in scopes:
        for level in ("fixed_tasks", "task_population"):
            check_holm(document, scope, level)
    assert list(document) == ["study", "name", "table", "confidence", "margins", "missing", "claims"]
    assert list(document["claims"]) == [claim.name for claim in CLAIMS]
    for claim in document["claims"].values():
        assert list(claim) == ["statement", "quantity", "unit", "scopes"]
        assert list(claim["scopes"]) == scopes
        for entry in claim["scopes"].values():
            assert list(entry) == SCOPE
            for level in ("fixed_tasks", "task_population"):
                finding = entry[level]
                assert list(finding) == FINDING
                assert (finding["estimate"] is None) <= bool(finding["reason"])
                assert (finding["verdict"] == "not tested") == (finding["estimate"] is None)
                assert finding["verdict"] in ("undecided", "not tested") or finding["p_adjusted"] < 0.05
                if None not in (finding["low"], finding["high"]):
                    assert finding["low"] <= finding["estimate"] <= finding["high"]


CASES = {
    "one PLM": (
        Truth(plms=1, n=100),
        {"positions": "two sizes", "full_ft_threshold": "two sizes", "methods": "two sizes"},
    ),
    "one seed": (Truth(num_plans=3, num_seeds=1, n=100), {"positions": "two plans, one of them with two seeds"}),
    "one plan": (Truth(num_plans=1, num_seeds=3, n=100), {"positions": "two plans, one of them with two seeds"}),
    "nothing exceeds chance": (
        Truth(low=7.0, high=8.0, n=4000, plan_variance=0.0),
        {"chance_threshold": "are above", "full_ft_threshold": "are above"},
    ),
    "ten parameters are enough": (
        Truth(low=-5.0, high=-4.0, n=100, sweep=(1, 2, 3)),
        {"chance_threshold": "are at or below"},
    ),
    "one parameter is enough": (Truth(low=-5.0, high=-4.0, n=100), {"chance_threshold": "no value differs"}),
}


@pytest.mark.parametrize("case", CASES)
def test_findings_that_are_not_estimable_have_a_reason(case: str) -> None:
    truth, reasons = CASES[case]
    document = found(truth, 3)
    check_form(document, ["overall", "family0"])
    for name, reason in reasons.items():
        entry = document["claims"][name]["scopes"]["overall"]
        assert entry["fixed_tasks"]["estimate"] is None
        assert reason in entry["fixed_tasks"]["reason"]
        assert entry["task_population"]["verdict"] == "not tested"


def test_findings_without_informed_placements_do_not_test_their_claim() -> None:
    document = found(Truth(n=100), 3)
    entry = document["claims"]["informed"]["scopes"]["overall"]
    assert entry["fixed_tasks"]["verdict"] == entry["task_population"]["verdict"] == "not tested"
    assert "no informed placement" in entry["fixed_tasks"]["reason"]
    assert compact(document)["informed"]["overall"]["sign"] is None


def test_findings_of_one_task_have_no_population_estimate() -> None:
    document = found(Truth(tasks=1, n=100), 3)
    check_form(document, ["overall", "family0"])
    for name in ("positions", "full_ft_threshold", "methods"):
        entry = document["claims"][name]["scopes"]["overall"]
        assert entry["fixed_tasks"]["estimate"] is not None
        assert entry["task_population"]["reason"] == "one task does not tell how tasks vary"
    assert "two tasks" in document["claims"]["chance_threshold"]["scopes"]["overall"]["fixed_tasks"]["reason"]


def altered(frame: pd.DataFrame, keep: np.ndarray) -> dict:
    left = frame[keep].reset_index(drop=True)
    left.attrs = frame.attrs
    return build_findings(AnalysisInputs.from_frame(left, sample_means(left, 300)))[0]


def test_findings_without_full_fine_tuning_keep_the_other_claims() -> None:
    frame = simulate(Truth(n=100), 4)
    document = altered(frame, frame.placement.ne("full").to_numpy())
    check_form(document, ["overall", "family0"])
    reasons = {name: c["scopes"]["overall"]["fixed_tasks"]["reason"] for name, c in document["claims"].items()}
    assert "full fine-tuning" in reasons["full_ft_threshold"]
    assert reasons["positions"] is reasons["methods"] is None


def test_findings_leave_out_a_budget_that_one_plm_lacks() -> None:
    """Of the family and on the task; a mean over other budgets would be another quantity."""
    frame = simulate(Truth(n=100, families=2), 5)
    keep = ~(
        frame.model.eq("plm00") & frame.task.eq("task1") & frame.budget.eq("@lora") & frame.placement.eq("uniform")
    )
    scopes = altered(frame, keep.to_numpy())["claims"]["positions"]["scopes"]
    assert {scope: entry["cells"] for scope, entry in scopes.items()} == {"overall": 69, "family0": 33, "family1": 36}


def test_findings_without_apet_or_methods_are_complete() -> None:
    frame = simulate(Truth(n=100), 5)
    for keep in (frame.placement.ne("uniform"), frame.placement.eq("uniform"), frame.index < 1):
        check_form(altered(frame, np.asarray(keep)), ["overall", "family0"])


@pytest.mark.parametrize("seed", range(4))
def test_findings_with_random_gaps_are_complete(seed: int) -> None:
    frame = simulate(Truth(families=2, n=60), seed)
    rng = np.random.default_rng(seed)
    gone = frame.cell_path.isin(rng.choice(frame.cell_path.unique(), frame.cell_path.nunique() // 3, replace=False))
    lost = rng.random(len(frame)) < 0.3
    frame["test_score"] = frame.test_score.mask(lost)
    frame["row_scores"] = [
        np.array([], np.float32) if bad else rows for bad, rows in zip(lost, frame.row_scores, strict=True)
    ]
    frame["outcome"] = np.where(lost, "diverged", "ok")
    check_form(altered(frame, ~gone.to_numpy()), ["overall", "family0", "family1"])


def test_findings_do_not_depend_on_row_order() -> None:
    frame = simulate(Truth(n=100), 6)
    mixed = frame.sample(frac=1, random_state=1)
    mixed.attrs = frame.attrs
    assert findings(frame) == findings(mixed)


def test_write_findings_lists_the_source_cells_of_each_finding(tmp_path: Path) -> None:
    frame = simulate(Truth(n=100, families=2), 7)
    frame.attrs["missing"] = [
        {"model": "plm00", "task": "task1", "placement": "lora", "budget": "@own", "reason": "not there"}
    ]
    write_findings(frame, tmp_path)
    document = json.loads((tmp_path / "findings.json").read_text())
    assert document == with_checksum(findings(frame))
    assert document["missing"] == 1
    sources = pd.read_csv(tmp_path / "findings_sources.csv")
    for name, claim in document["claims"].items():
        for scope, entry in claim["scopes"].items():
            cells = sources.cell_path[sources.claim.eq(name) & sources.scope.eq(scope)]
            assert len(cells) == cells.nunique() == entry["cells"]
            assert entry["replicates"] == frame.cell_path.isin(cells).sum()
            assert (
                set(frame.model[frame.cell_path.isin(cells)])
                == set(entry["plms"])
                == {v["model"] for v in entry["values"]}
            )
    positions = sources.cell_path[sources.claim.eq("positions") & sources.scope.eq("overall")]
    assert set(frame.placement[frame.cell_path.isin(positions)]) == {"uniform"}
    assert set(frame.budget[frame.cell_path.isin(positions)]) == {"@lora", "@adapter", "@prompt", "@bitfit"}
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["findings"] == compact(document)
    assert metrics["study"] == "simulated"
    assert list(metrics["findings"]["positions"]["family0"]) == ["verdict", "sign", "estimate", "low", "high"]


def test_findings_page_matches_the_document(tmp_path: Path) -> None:
    frame = simulate(LARGE.changed(plan_change=-3.9, method_variance=15, method_change=14, n=400), 8)
    frame.attrs["missing"] = [
        {"model": f"plm{i}", "task": "t", "placement": "lora", "budget": "@own", "reason": "not there"}
        for i in range(25)
    ]
    write_findings(frame, tmp_path)
    text = (tmp_path / "findings.md").read_text()
    document = json.loads((tmp_path / "findings.json").read_text())
    for claim in document["claims"].values():
        overall = claim["scopes"]["overall"]
        fixed, population = (overall[level]["verdict"] for level in ("fixed_tasks", "task_population"))
        text_of_claim = f"{fixed} on these tasks, {population} on similar tasks".capitalize()
        assert f"- {claim['statement']} **{text_of_claim}.**" in text
    assert "- plm3, t, lora at @own: not there" in text
    assert "- and 5 more" in text
    assert "nan" not in text
    assert "None" not in text
