"""Tables as Markdown, CSV and LaTeX: numbers, missing data, escaping."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apet.analysis.aggregate import costs_table, write_costs
from apet.analysis.resampling import sample_means
from apet.report.findings_text import LEVELS, is_tested, scopes_shown, verdict_text
from apet.report.result_tables import (
    MEAN,
    differences_table,
    methods_markdown,
    methods_table,
    write_differences,
    write_findings_table,
    write_methods,
)
from apet.report.text_tables import SPECIAL, escape
from made_findings import findings
from simulated_study import MODELS, frame_of, record, study


def test_methods_markdown_entries_are_mean_sd_and_replicates_in_per_cent() -> None:
    cells = [
        record("bloom-mid", "topics", "lora", "@own", [[0.8, 0.7]], 19_200),
        record("bloom-mid", "topics", "none", "0", [[0.2]], 0),
        record("bloom-mid", "topics", "uniform", "@lora", [[0.5], [0.6], [0.7]], 19_200),
        record("bloom-mid", "topics", "uniform", "100", [[0.1]], 100),
    ]
    long = methods_table(frame_of(cells))
    lines = methods_markdown(long, "A note.").splitlines()
    assert lines[0] == "| PLM | method | trainable parameters | topics | mean over tasks |"
    assert lines[1] == "| --- | --- | ---: | ---: | ---: |"
    assert lines[2] == "| bloom-mid | lora | 19,200 | 75.0 ± 7.1 (2) | 75.0 ± 7.1 (2) |"
    assert lines[3] == "| bloom-mid | none | 0 | 20.0 (1) | 20.0 (1) |"
    assert lines[4] == "| bloom-mid | APET @lora | 19,200 | 60.0 ± 10.0 (3) | 60.0 ± 10.0 (3) |"
    assert lines[5] == "" and "A note." in lines[6]
    assert long["mean"].tolist() == pytest.approx([75, 75, 20, 20, 60, 60])


def test_methods_table_has_every_method_task_and_mean() -> None:
    frame = frame_of(study())
    long = methods_table(frame)
    assert len(long) == len(MODELS) * 10 * 3
    assert list(long.model.unique()) == list(MODELS)
    lora = frame[frame.placement.eq("lora") & frame.model.eq("bloom-large")]
    row = long[long.model.eq("bloom-large") & long.placement.eq("lora")].set_index("task")
    assert row.loc["topics", "mean"] == pytest.approx(100 * lora.test_score[lora.task.eq("topics")].mean())
    assert row.loc[MEAN, "mean"] == pytest.approx(100 * lora.test_score.mean())


def test_methods_table_with_a_missing_cell_shows_no_data_in_column_and_mean() -> None:
    long = methods_table(frame_of([c for c in study() if c[0] != "bloom-mid/topics/lora-@own"]))
    markdown = methods_markdown(long, "A note.")
    line = next(line for line in markdown.splitlines() if line.startswith("| bloom-mid | lora"))
    assert line.count("no data") == 2
    gap = long[long.model.eq("bloom-mid") & long.placement.eq("lora")].set_index("task")
    assert gap.loc["topics", "num_replicates"] == 0
    assert gap["mean"].isna().to_dict() == {"sentiment": False, "topics": True, MEAN: True}


def test_pairs_that_the_study_excludes_are_not_missing(tmp_path: Path) -> None:
    frame = frame_of([cell for cell in study() if not cell[0].startswith("bloom-mid/topics/")])
    write_methods(frame, tmp_path)
    write_differences(frame, tmp_path)
    for name in ("methods", "differences"):
        text = (tmp_path / f"{name}.md").read_text()
        last = {line.split("|")[-2].strip() for line in text.splitlines() if "| bloom-mid" in line}
        assert last == {"–"} and "no data" not in text, name
    table = methods_table(frame)
    assert table.num_replicates.isna().equals(table.model.eq("bloom-mid") & table.task.eq("topics"))


def test_write_methods_does_not_depend_on_row_order(tmp_path: Path) -> None:
    frame = frame_of(study())
    write_methods(frame, tmp_path / "a")
    write_methods(frame.sample(frac=1, random_state=1), tmp_path / "b")
    for name in ("methods.md", "methods.csv", "methods.tex"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert len(pd.read_csv(tmp_path / "a" / "methods.csv")) == len(methods_table(frame))


def body(path: Path) -> list[list[str]]:
    """Entries of a LaTeX table's rows, its structure checked: rules in their order, as many columns as are aligned."""
    text = path.read_text()
    assert [text.count(f"\\{rule}") for rule in ("toprule", "bottomrule", "label", "caption")] == [1] * 4
    begun = re.findall(r"\\(begin|end){(\w+)}", text)
    assert begun == [("begin", "table"), ("begin", "tabular"), ("end", "tabular"), ("end", "table")]
    align, inner = re.search(r"\\begin{tabular}{((?:[lr]|p{[^}]*})*)}\n(.*)\\end{tabular}", text, re.DOTALL).groups()
    lines = [line for line in inner.splitlines() if not line.endswith("rule")]
    assert all(line.endswith(r" \\") for line in lines)
    rows = [re.split(r"(?<!\\) ?& ?", line.removesuffix(r" \\")) for line in lines]
    assert {len(row) for row in rows} == {len(re.sub("{[^}]*}", "", align))}
    return rows


def test_methods_latex_prints_the_best_method_of_each_column_in_bold(tmp_path: Path) -> None:
    cells = [
        record("bloom-mid", "topics", "full", "@own", [[0.9, 0.9]], 480_000),
        record("bloom-mid", "topics", "lora", "@own", [[0.8, 0.7]], 19_200),
        record("bloom-mid", "topics", "bitfit", "@own", [[0.7, 0.8]], 2_880),
        record("bloom-mid", "topics", "uniform", "@lora", [[0.5], [0.6]], 19_200),
        record("bloom-large", "topics", "lora", "@own", [[0.2]], 70_000),
    ]
    write_methods(frame_of(cells).assign(task="topics_&_all"), tmp_path)
    rows = body(tmp_path / "methods.tex")
    assert rows[0] == ["PLM", "method", "parameters", r"topics\_\&\_all"]
    assert rows[1][:4] == ["bloom-mid", "full", "480,000", r"90.0 $\pm$ 0.0 (2)"]
    assert rows[2][:4] == ["", "lora", "19,200", r"\textbf{75.0} $\pm$ 7.1 (2)"]
    assert rows[3][3] == r"\textbf{75.0} $\pm$ 7.1 (2)" and rows[4][1:4] == [
        "APET @lora",
        "19,200",
        r"55.0 $\pm$ 7.1 (2)",
    ]
    assert rows[5][1:4] == ["lora", "70,000", r"\textbf{20.0} (1)"]
    assert (tmp_path / "methods.tex").read_text().count(r"\midrule") == 2


@given(st.text(alphabet=[*SPECIAL, "a", "1", " ", "é"]))
def test_escape_is_reversible(text: str) -> None:
    back = {printed: character for character, printed in SPECIAL.items()}
    tokens = re.findall("|".join(map(re.escape, sorted(back, key=len, reverse=True))) + "|.", escape(text))
    assert "".join(back.get(token, token) for token in tokens) == text
    assert not {"&", "%", "#", "_", "~", "^", "<"} & set(re.sub(r"\\[&%#_]|\^2", "", escape(text)))


def test_write_findings_table_lists_every_finding(tmp_path: Path) -> None:
    found = findings()
    write_findings_table(found, tmp_path)
    rows = body(tmp_path / "findings.tex")
    assert rows[0] == ["claim", "scope", "PLMs", "tasks", "estimate", r"95 \% interval", "adjusted p", "verdict"]
    scopes = [scope for claim in found["claims"].values() for scope in scopes_shown(claim).values()]
    assert len(rows) == 1 + sum(len(LEVELS) if is_tested(scope) else 1 for scope in scopes)
    assert (
        rows[1][0] == "Positions matter less, the larger the PLM (points$^2$ per tenfold increase in parameters)"
        and rows[2][0] == ""
    )
    assert rows[1][1:] == ["overall", "3", "on these tasks", "$-$31.24", "$-$52.4 to $-$11.9", "0.006", "supported"]
    assert rows[3][6] == r"\textless{} 0.001"
    assert ["on similar tasks", "0.42", r"$-$$\infty$ to 2.5", "0.400", "undecided"] in [row[3:] for row in rows]
    assert ["$-$9.1", r"$-$40 to $\infty$"] in [row[4:6] for row in rows]
    assert [row[-1] for row in rows].count("not tested") == 2
    lines = (tmp_path / "findings.md").read_text().splitlines()
    assert lines[2].endswith("| overall | 3 | on these tasks | −31.24 | −52.4 to −11.9 | 0.006 | supported |")
    assert len({line.count("|") for line in lines[: len(rows) + 1]}) == 1
    assert lines[-1].endswith("Margins: chance margin 2.0, full ft margin 2.0, equivalence margin 0.5.")


@pytest.fixture(scope="module")
def paired() -> pd.DataFrame:
    """LoRA errs on a tenth of the rows that full fine-tuning has right; on the other task both are the same."""
    cells = [
        record("bloom-mid", task, placement, "@own", [[score]], 100)
        for task, scores in {"sentiment": (0.8, 0.7), "topics": (0.8, 0.8)}.items()
        for placement, score in zip(("full", "lora"), scores, strict=True)
    ]
    frame = frame_of(cells)
    rows = [
        (np.arange(n) < round(n * score)).astype(np.float32)
        for n, score in zip(frame.n_test, frame.test_score, strict=True)
    ]
    return frame.assign(row_scores=rows)


def test_differences_table_is_paired_and_in_points(paired: pd.DataFrame, tmp_path: Path) -> None:
    samples = sample_means(paired)
    table = differences_table(samples).set_index("task")
    assert list(table.index) == ["sentiment", "topics", MEAN]
    assert table.difference.tolist() == pytest.approx([-10, 0, -5])
    assert -13 < table.low["sentiment"] < -10 < table.high["sentiment"] < -7
    write_differences(paired, tmp_path, samples)
    rows = body(tmp_path / "differences.tex")
    assert rows[0] == ["PLM", "method", "baseline", "sentiment", "topics", MEAN]
    assert rows[1][:3] == ["bloom-mid", "lora", "full"] and rows[1][3].startswith("$-$10.0* ($-$1")
    assert "*" not in rows[1][4] and rows[1][5].startswith("$-$5.0*")
    markdown = (tmp_path / "differences.md").read_text().splitlines()
    assert (
        markdown[2].startswith("| bloom-mid | lora | full | −10.0* (−1")
        and len({x.count("|") for x in markdown[:3]}) == 1
    )
    written = pd.read_csv(tmp_path / "differences.csv")
    assert list(written) == list(differences_table(samples)) and written.difference.tolist() == pytest.approx(
        [-10, 0, -5]
    )


def test_costs_table_without_a_readable_record_is_empty(tmp_path: Path) -> None:
    run = {"seconds": 1.5, "peak_memory_mb": 900, "host": "here", "threads": 2, "versions": {"torch": "2.9"}}
    (tmp_path / "a").mkdir()
    for name, text in (("whole", json.dumps(run)), ("bare", '{"seconds": 2.5}'), ("cut", '{"sec'), ("list", "[1]")):
        (tmp_path / f"a/{name}.json").write_text(text)
    cells = {f"a/{name}": {"model": "m", "budget": name} for name in ("whole", "bare", "cut", "list", "absent")}
    write_costs(cells, tmp_path, tmp_path)
    found = pd.read_csv(tmp_path / "costs.csv", index_col="cell_path")
    assert list(found.index) == list(cells) == list(costs_table(cells, tmp_path).cell_path)
    assert list(found.columns[:3]) == ["model", "budget", "seconds"] and found.columns[-1] == "versions.torch"
    assert found.seconds.dropna().to_dict() == {"a/whole": 1.5, "a/bare": 2.5}
    told = found.loc["a/whole", ["host", "threads", "versions.torch"]].to_list()
    assert told == ["here", 2, 2.9] and found.loc[["a/cut", "a/list", "a/absent"]].iloc[:, 2:].isna().all(axis=None)


def test_verdict_text_follows_verdict_and_interval() -> None:
    for verdict, low, high, phrase in (
        ("supported", -2, -1, "claim's side"),
        ("contradicted", 1, 2, "contradict the claim"),
        ("undecided", -1, 1, "includes 0"),
        ("undecided", None, 1, "includes 0"),
        ("undecided", 1, 2, "unadjusted interval excludes 0"),
        ("undecided", -2, -1, "unadjusted interval excludes 0"),
        ("undecided", None, -1, "unadjusted interval excludes 0"),
    ):
        found = {"verdict": verdict, "estimate": 0.5, "low": low, "high": high, "reason": None}
        assert phrase in verdict_text(found), found
        assert verdict_text(found | {"reason": "one task only."}).endswith(". One task only.")
    untested = found | {"estimate": None, "verdict": "not tested", "reason": "one PLM has no trend"}
    assert verdict_text(untested) == "One PLM has no trend."
