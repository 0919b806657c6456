"""The findings as a page: every number where it belongs, and what is missing by name."""

from __future__ import annotations

import pandas as pd
import pytest

from apet.report.markdown import SHOWN, page
from made_findings import findings
from simulated_study import frame_of, study

FRAME = frame_of(study())


def lines(absent: int = 0) -> list[str]:
    frame = FRAME.copy()
    cells = [
        {"model": f"m{i}", "task": "t", "placement": "lora", "budget": "@own", "reason": "why"} for i in range(absent)
    ]
    frame.attrs = {"missing": cells}
    return page(findings(), frame).splitlines()


def test_a_claim_has_its_two_answers_in_words_and_in_a_table() -> None:
    found = lines()
    start = found.index("## Positions matter less, the larger the PLM")
    own = found[start : found.index("## Fewer parameters match full fine-tuning, the larger the PLM")]
    assert any(
        x.startswith("On these tasks: supported, −31.24 points² a decade (95 % interval −52.4 to −11.9). ") for x in own
    )
    assert any(
        x.startswith("Beyond them: undecided, −31.24 points² a decade (95 % interval −80.1 to 17.7). ") for x in own
    )
    n = "3 PLMs, 2 tasks, 24 cells, 1072 replicates"
    assert f"| overall | on these tasks | −31.24 | −52.4 to −11.9 | 0.006 | supported | {n} |" in own
    assert f"| overall | beyond them | −31.24 | −80.1 to 17.7 | 0.330 | undecided | {n} |" in own
    assert "| PLM | parameters outside the embeddings | its value | 95 % interval |" in own
    assert sum(x.startswith("| bloom | ") for x in own) == 2


def test_what_cannot_be_estimated_says_why_and_has_no_table_of_plms() -> None:
    found = lines()
    start = found.index("## Fewer parameters match full fine-tuning, the larger the PLM")
    own = found[start : found.index("## Tasks need about the same number of parameters to beat a guess")]
    (said,) = (x for x in own if x.startswith("On these tasks: "))
    assert said.startswith("On these tasks: undecided. ") and "beyond the largest budget tested" in said
    assert "None" not in "".join(own) and not any(x.startswith("| PLM |") for x in own)


@pytest.mark.parametrize("absent", [0, 1, SHOWN, SHOWN + 3])
def test_missing_cells_are_named_and_counted(absent: int) -> None:
    found = lines(absent)
    tail = found[found.index("## What was missing") :]
    assert ("No cell is missing." in tail) == (absent == 0)
    assert (f"{absent} cell(s) of the study are not there." in tail) == (absent > 0)
    named = [x for x in tail if x.endswith(": why")]
    assert named == [f"- m{i}, t, lora at @own: why" for i in range(min(absent, SHOWN))]
    assert [x for x in tail if x.startswith("- and")] == (["- and 3 more"] if absent > SHOWN else [])


def test_replicates_without_a_score_are_counted() -> None:
    frame = FRAME.copy()
    frame.attrs = {"missing": []}
    frame.loc[frame.index[:2], "score"] = pd.NA
    assert f"2 of {len(frame):,} replicates have no score: they diverged." in page(findings(), frame)
