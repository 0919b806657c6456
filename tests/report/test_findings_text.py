"""findings.md: numbers, reasons and missing cells."""

from __future__ import annotations

import pandas as pd
import pytest

from apet.report.findings_text import MISSING_LISTED, findings_markdown
from made_findings import findings
from simulated_study import frame_of, study

FRAME = frame_of(study())


def lines(absent: int = 0) -> list[str]:
    frame = FRAME.copy()
    cells = [
        {"model": f"m{i}", "task": "t", "placement": "lora", "budget": "@own", "reason": "why"} for i in range(absent)
    ]
    frame.attrs = {"missing": cells}
    return findings_markdown(findings(), frame).splitlines()


def test_findings_page_states_both_levels_of_a_claim_in_text_and_table() -> None:
    found = lines()
    start = found.index("## Positions matter less, the larger the PLM")
    own = found[start : found.index("## Tasks need about the same number of parameters to exceed chance")]
    unit = "points² per tenfold increase in parameters"
    assert any(x.startswith(f"On these tasks: supported, −31.24 {unit} (95 % interval −52.4 to −11.9). ") for x in own)
    assert any(x.startswith(f"On similar tasks: undecided, −31.24 {unit} (95 % interval −80.1 to 17.7). ") for x in own)
    n = "3 PLMs, 2 tasks, 24 cells, 1,072 replicates"
    assert f"| overall | on these tasks | −31.24 | −52.4 to −11.9 | 0.006 | supported | {n} |" in own
    assert f"| overall | on similar tasks | −31.24 | −80.1 to 17.7 | 0.330 | undecided | {n} |" in own
    assert "| PLM | parameters outside the embeddings | value | 95 % interval |" in own
    assert sum(x.startswith("| bloom | ") for x in own) == 2


def test_findings_page_names_pairs_whose_full_fine_tuning_does_not_exceed_chance() -> None:
    assert not any("does not exceed chance" in line for line in lines())
    weak = FRAME.model.eq("bloom-mid") & FRAME.task.eq("topics") & FRAME.placement.eq("full")
    frame = FRAME.assign(test_score=FRAME.test_score.mask(weak, FRAME.chance_majority + 0.01))
    frame.attrs = {"missing": []}
    (line,) = (line for line in findings_markdown(findings(), frame).splitlines() if "does not exceed chance" in line)
    assert line.startswith("Full fine-tuning does not exceed chance by the margin: bloom-mid on topics. ")


def test_findings_page_states_once_that_a_claim_is_not_tested() -> None:
    found = lines()
    assert "## Fewer parameters match full fine-tuning, the larger the PLM" not in found
    (line,) = (line for line in found if line.startswith("- Fewer parameters match full fine-tuning"))
    assert line.endswith("**Not tested.** Nearly all thresholds lie beyond the largest budget tested.")
    assert sum("largest budget tested" in line for line in found) == 1 and found[0] == "# Findings of the study tiny"


@pytest.mark.parametrize("absent", [0, 1, MISSING_LISTED, MISSING_LISTED + 3])
def test_findings_page_lists_and_counts_missing_cells(absent: int) -> None:
    found = lines(absent)
    tail = found[found.index("## Missing data") :]
    assert ("No cell is missing, and no replicate diverged." in tail) == (absent == 0)
    assert any(x.endswith("of the study are missing.") or x == "1 cell of the study is missing." for x in tail) == (
        absent > 0
    )
    named = [x for x in tail if x.endswith(": why")]
    assert named == [f"- m{i}, t, lora at @own: why" for i in range(min(absent, MISSING_LISTED))]
    assert [x for x in tail if x.startswith("- and")] == (["- and 3 more"] if absent > MISSING_LISTED else [])


def test_findings_page_counts_replicates_without_a_score() -> None:
    frame = FRAME.copy()
    frame.attrs = {"missing": []}
    frame.loc[frame.index[:2], "test_score"] = pd.NA
    assert f"2 of {len(frame):,} replicates have no score because of divergence." in findings_markdown(
        findings(), frame
    )
