"""`apet show` on finished cells, and its error messages."""

from __future__ import annotations

import json
import re
import shutil
import sys
from io import BytesIO, TextIOWrapper
from itertools import pairwise
from statistics import fmean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apet.analysis.single_run import wilson
from apet.cli.app import main
from apet.cli.render import format_bytes, format_count, table
from apet.cli.show import BARS, plan_lines, show, sparkline
from apet.core.hashing import write_json
from apet.errors import DataError
from apet.study.cell_record import find_cell, write_record
from apet.study.paths import ResultPaths
from finished_cells import GENERATION, Finished, finished
from toy import ROOT

RUN = {
    "cell": "", "trained": [], "seconds": 12.3, "cpu_seconds": 11.0, "peak_memory_mb": 1234, "host": "node7",
    "machine": "x86_64", "processor": "A processor", "device": "cpu", "versions": {"torch": "2.9"}, "resumed": True,
    "finished": "2026-01-02T03:04:05Z",
}  # fmt: skip


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    made = finished(tmp_path_factory.mktemp("study"), num_plans=2, num_seeds=2)
    write_json(made.root / "results" / "runs" / f"{made.cell.path}.json", RUN)
    return made


def results(cell: Finished) -> ResultPaths:
    return ResultPaths(cell.root / "results")


def test_show_accepts_a_path_or_a_folder(cell, capsys, monkeypatch):
    assert main(["show", cell.cell.path, "--results-dir", str(cell.root / "results")]) == 0
    printed = capsys.readouterr().out
    monkeypatch.chdir(cell.root)
    assert main(["show", f"results/cells/{cell.cell.path}"]) == 0
    assert capsys.readouterr().out == printed and printed.splitlines()[0] == cell.cell.path


def test_show_on_a_terminal_without_utf8_has_bars_of_digits(cell, monkeypatch):
    monkeypatch.setattr(sys, "stdout", TextIOWrapper(BytesIO(), "latin-1"))
    assert main(["show", cell.cell.path, "--results-dir", str(cell.root / "results")]) == 0
    sys.stdout.flush()
    printed = sys.stdout.buffer.getvalue().decode("latin-1")
    assert "theta plan0.seed0" in printed and re.search(r"plan0\.seed0 .* [1-8]+ .*step", printed)


def test_show_of_a_copied_cell_equals_the_original(cell, tmp_path):
    copy = shutil.copytree(cell.folder, tmp_path / "copy")
    assert show(copy, results(cell)) == show(cell.folder, results(cell))


def test_plan_table_contains_every_unit_once(cell):
    """Read back by layer, module and structure, the table is the plan."""
    lines = show(cell.folder, results(cell))
    plans = json.loads((cell.folder / "plans.json").read_text())
    assert len(plans) == 2
    for name, plan in plans.items():
        start = next(n for n, line in enumerate(lines) if line.startswith(name.partition(".")[0]))
        for structure, count in plan["structures"].items():
            assert (f"{structure} {count:,}" in lines[start]) is bool(count)
        assert plan["digest"][:12] in lines[start] and str(plan["seed"]) in lines[start]
        layers = lines[start + 1].split()[3:]
        found = {}
        for line in lines[start + 2 : lines.index("", start)]:
            structure, *place, counts = re.split(r"\s{2,}", line.strip(), maxsplit=2)
            stack, _, module = place[0].partition(" ")
            for layer, count in zip(layers, counts.split(), strict=True):
                if count != "·":
                    inside = place[0] if layer == "–" else f"{stack}.{layer}.{module}"
                    found[f"{inside}/{structure}"] = int(count)
        assert found == plan["units"]


def test_scores_have_n_interval_multiplier_and_outcome(cell):
    lines = show(cell.folder, results(cell))
    for run in cell.record["replicates"]:
        name = f"plan{run['plan_index']}.seed{run['seed_index']}"
        curve, score = (line for line in lines if line.startswith(f"  {name}"))
        losses = [loss for _, loss in run["losses"]]
        assert f"{losses[0]:.3f}" in curve and f"{losses[-1]:.3f}" in curve and sparkline(losses) in curve
        assert f"step {run['best_step']} of {run['num_steps']}" in curve
        test, n = run["test"]["score"], run["test"]["n"]
        low, high = wilson(test, n)
        assert f"{test:.4f} (n = {n})  {low:.3f} to {high:.3f}" in score and score.split()[-2:] == ["1", "ok"]
        assert f"{run['validation']['score']:.4f} (n = 16)" in score
        assert any(line.split() == ["θ", name, run["theta_digest"]] for line in lines)
    (mean,) = (line for line in lines if line.startswith("  mean"))
    scores = [run["test"]["score"] for run in cell.record["replicates"]]
    assert f"mean {fmean(scores):.4f} (4 of 4 replicates, S.D. between them {stdev(scores):.4f}, n = 24" in mean
    assert any(cell.record["plm"]["content"] in line for line in lines)
    for file, digest in cell.record["files"].items():
        assert any(line.split() == [file, digest] for line in lines)


def test_run_record_is_shown_or_reported_missing(cell, tmp_path):
    printed = "\n".join(show(cell.folder, results(cell)))
    for part in ("12.3 s, 11.0 s of CPU, at most 1,234 MB", "node7: A processor", "after an interruption", "torch 2.9"):
        assert part in printed
    assert f"no record at {tmp_path}" in show(cell.folder, ResultPaths(tmp_path))[-1]
    write_json(tmp_path / "runs" / f"{cell.cell.path}.json", {key: RUN[key] for key in RUN if key != "host"})
    with pytest.raises(DataError, match=r"runs/.*json: .*missing key 'host'"):
        show(cell.folder, ResultPaths(tmp_path))


def test_none_cell_with_a_classification_head_shows_its_head(tmp_path):
    made = finished(tmp_path, "bert", head="classification", placement="none", budget="@own", num_plans=1)
    lines = show(made.folder, results(made))
    assert any("none at @own: 0 parameters, 0.000%, and a head of 34" in line for line in lines)
    assert any(line.endswith(": nothing") for line in lines)


def test_generation_task_has_no_majority(tmp_path):
    made = finished(tmp_path, task=GENERATION, num_plans=1)
    (line,) = (line for line in show(made.folder, results(made)) if line.startswith("task"))
    assert line == f"task     echo: f1, chance {made.record['task']['chance']:.3f}"


def test_unknown_cell_is_one_message(cell, tmp_path, capsys):
    where = ["--results-dir", str(cell.root / "results")]
    near = f"Did you mean '{cell.cell.path}'"
    unknown = {cell.cell.path[:-1]: near, "x": "unknown cell 'x'", "x*": "x*: no finished cell matches. Run"}
    for name, printed in unknown.items():
        assert main(["show", name, *where]) == 2
        found = capsys.readouterr()
        assert printed in found.err and len(found.err.splitlines()) == 1
    with pytest.raises(DataError, match="no such cell, and "):
        find_cell("x", ResultPaths(tmp_path))


@pytest.mark.parametrize("file", ["metrics.json", "plans.json"])
@pytest.mark.parametrize("content", ["{", "{}", "[]"])
def test_corrupt_record_is_one_message(tmp_path, file, content, capsys):
    made = finished(tmp_path, num_plans=1)
    (made.folder / file).write_text(content)
    assert main(["show", made.cell.path, "--results-dir", str(tmp_path / "results")]) == 2
    found = capsys.readouterr()
    assert file in found.err and "Traceback" not in found.err and not found.out


@pytest.mark.parametrize("key", ["losses", "num_steps", "seeds"])
def test_missing_key_is_named_if_it_is_needed(tmp_path, key):
    made = finished(tmp_path, num_plans=1)
    record = made.record
    del record["replicates"][0][key]
    write_record(made.folder, made.cell.path, record)
    if key == "seeds":  # which nothing that is shown needs
        assert show(made.folder, results(made))
    else:
        with pytest.raises(DataError, match=rf"metrics.json: .*{key}"):
            show(made.folder, results(made))


@given(st.lists(st.floats(-1e6, 1e6), max_size=30))
def test_sparkline_has_one_bar_per_value_in_order(values):
    bars = sparkline(values)
    assert len(bars) == len(values) and set(bars) <= set(BARS)
    heights = [BARS.index(bar) for bar in bars]
    for (one, low), (two, high) in pairwise(zip(values, heights, strict=True)):
        assert (low <= high) if one <= two else (low >= high)
    if len(set(values)) > 1:
        assert min(heights) == 0 and max(heights) == len(BARS) - 1


def test_format_count_and_layer_columns_are_short():
    counts = {
        0: "0", 9999: "9999", 12_345: "12.3k", 99_960: "100k", 123_456: "123k", 999_960: "1.0M", 1_234_567: "1.2M",
        999_999_999: "1.0G", 2_000_000_000: "2.0G", 999_960_000_000: "1.0T",
    }  # fmt: skip
    assert [format_count(n) for n in counts] == list(counts.values())
    plan = {"digest": "d" * 64, "seed": 1, "structures": {"lowrank": 3}, "units": {
        "encoder.10.ffn.up/lowrank": 2, "encoder.2.ffn.up/lowrank": 1}}  # fmt: skip
    assert [line.split() for line in plan_lines("plan0", plan)[1:]] == [
        ["units", "of", "at", "2", "10"], ["lowrank", "encoder", "ffn.up", "1", "2"],
    ]  # fmt: skip


def test_commands_in_export_docs_exist(capsys):
    page = (ROOT / "docs" / "export.md").read_text()
    lines = [line.split()[2:] for line in page.splitlines() if line.startswith("$ apet ")]
    assert len(lines) == 3
    for line in lines:
        assert main([*line, "--results-dir", "/nowhere"]) == 2
        assert "no such cell, and " in capsys.readouterr().err


def test_format_bytes_selects_a_readable_unit():
    expected = {0: "0 B", 999: "999 B", 1500: "1.5 kB", 12_000_000: "12 MB", 10**9: "1.0 GB", 2.7e15: "2,700 TB"}
    assert [format_bytes(n) for n in expected] == list(expected.values())


def test_table_aligns_columns():
    rows = [["name", "n"], ["a", "1,000"]]
    assert table(rows) == ["name  n", "a     1,000"]
    assert table(rows, indent="  ", numbers=True) == ["  name      n", "  a     1,000"]
