"""Figures draw the numbers of the tidy table, say n, show what is missing, and are the same bytes twice."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from apet.analysis.components import position_spread
from apet.analysis.means import cell_scores, method_scores
from apet.analysis.tidy import tidy, write_tidy
from apet.figures import FIGURES, draw_all, methods_by_scale, positions_by_scale, score_by_budget, style
from simulated_study import MODELS, TASKS, study

GAPS = ("bloom-mid/topics/lora-@own", "bloom-mid/topics/uniform-@lora", "bloom-mid/topics/uniform-100")


@pytest.fixture(scope="module")
def whole() -> pd.DataFrame:
    return tidy(study())


@pytest.fixture(scope="module")
def gappy() -> pd.DataFrame:
    return tidy([cell for cell in study() if cell[0] not in GAPS])


def words(fig: Figure) -> str:
    """All text of a figure: notes, titles, labels, legend."""
    found = [*fig.texts, *(t for ax in fig.axes for t in (ax.title, ax.xaxis.label, ax.yaxis.label, *ax.texts))]
    found += [t for legend in fig.legends for t in legend.get_texts()]
    return " ".join(t.get_text() for t in found).replace("\n", " ")


def empty_panels(fig: Figure) -> int:
    return sum(bool(ax.patch.get_hatch()) for ax in fig.axes)


def hatched(fig: Figure) -> list:
    return [c for ax in fig.axes for c in ax.collections if c.get_hatch()]


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_says_n_and_its_unit_and_fits_the_page(name: str, whole: pd.DataFrame) -> None:
    fig, data = FIGURES[name](whole)
    text = words(fig)
    assert "topics 400" in text
    assert "sentiment 800" in text
    assert "diverged: 0 of" in text
    assert "parameters" in text
    assert "(%)" in text or "(points)" in text
    assert fig.get_figwidth() == pytest.approx(180 / 25.4)
    assert len(data)
    assert "no data" not in text
    assert not hatched(fig)


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_runs_off_the_page_or_over_another_text(name: str, whole: pd.DataFrame) -> None:
    fig, _ = FIGURES[name](whole)
    with mpl.style.context(["default", style.RC]):
        fig.draw_without_rendering()
    page = fig.bbox
    labels = [*fig.texts, *(t for ax in fig.axes for t in (ax.title, ax.xaxis.label, ax.yaxis.label))]
    labels += [t for ax in fig.axes for t in ax.get_xticklabels() if t.get_text()]
    boxes = [t.get_window_extent() for t in labels if t.get_text() and t.get_visible()]
    boxes += [legend.get_window_extent() for legend in fig.legends]
    for box in boxes:
        assert box.x0 >= page.x0 - 1
        assert box.x1 <= page.x1 + 1
        assert box.y0 >= page.y0 - 1
        assert box.y1 <= page.y1 + 1
    assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    assert min(t.get_fontsize() for t in labels) >= 6


def test_methods_by_scale_draws_the_scores_of_the_table(whole: pd.DataFrame) -> None:
    fig, data = methods_by_scale.draw(whole)
    assert len(data) == len(MODELS) * (len(TASKS) + 1) * 6
    expected = method_scores(whole).set_index(["model", "task", "placement"])
    found = data[data.task.ne(methods_by_scale.MEAN)].set_index(["model", "task", "placement"])
    for column in ("mean", "low", "high"):
        assert found[column].to_numpy() == pytest.approx(100 * expected[column].reindex(found.index).to_numpy())
    panel = next(ax for ax in fig.axes if ax.get_title() == "topics")
    drawn = {tuple(np.round(line.get_ydata(), 6)) for line in panel.lines}
    lora = data[data.task.eq("topics") & data.placement.eq("lora")].sort_values("non_embedding")
    assert tuple(np.round(lora["mean"], 6)) in drawn
    assert (23.7, 23.7) in drawn
    mean = data[data.task.eq(methods_by_scale.MEAN) & data.placement.eq("full")]
    full = whole[whole.placement.eq("full")].groupby("model").score.mean()
    assert dict(zip(mean.model, mean["mean"], strict=True)) == pytest.approx((100 * full).to_dict())


def test_positions_by_scale_draws_the_spread_of_the_table(whole: pd.DataFrame) -> None:
    _, data = positions_by_scale.draw(whole)
    spread = position_spread(whole)
    found = data[data.kind.eq("sd") & data.method.eq("lora")]
    expected = spread[spread.budget.eq("@lora")]
    tasks = found[found.task.ne(positions_by_scale.MEAN)]
    assert tasks.set_index(["model", "task"]).value.to_dict() == pytest.approx(
        (100 * expected.set_index(["model", "task"]).sd).to_dict()
    )
    means = found[found.task.eq(positions_by_scale.MEAN)].set_index("model")
    assert means.value.to_dict() == pytest.approx((100 * expected.groupby("model").sd.mean()).to_dict())
    assert (means.low < means.value).all()
    assert (means.value < means.high).all()
    draws = data[data.kind.eq("draw")]
    assert draws.groupby(["model", "task", "method"]).value.mean().abs().max() == pytest.approx(0, abs=1e-9)
    cells = draws.groupby(["model", "task", "method"]).value.std() / 100
    assert sorted(cells) == pytest.approx(sorted(spread.sd[spread.budget.str.startswith("@")]))


def test_score_by_budget_draws_the_sweep_of_the_table(whole: pd.DataFrame) -> None:
    fig, data = score_by_budget.draw(whole)
    assert len(fig.axes) == len(MODELS) * len(TASKS)
    cells = cell_scores(whole).set_index(["model", "task", "placement", "budget"])
    for row in data.itertuples():
        budget = "0" if row.placement == "none" else row.budget
        cell = cells.loc[(row.model, row.task, row.placement, budget)]
        assert (row.mean, row.low, row.high) == pytest.approx((100 * cell["mean"], 100 * cell.low, 100 * cell.high))
        assert row.tunable == cell.tunable
    panel = next(ax for ax in fig.axes if ax.get_title() == "topics, bloom-mid")
    sweep = data[data.task.eq("topics") & data.model.eq("bloom-mid") & data.placement.eq("uniform")]
    assert panel.lines[0].get_xdata().tolist() == sorted(sweep.tunable)
    assert {20.0, 23.7} <= {round(line.get_ydata()[0], 6) for line in panel.lines}


@pytest.mark.parametrize("name", FIGURES)
def test_missing_cells_are_seen(name: str, gappy: pd.DataFrame) -> None:
    fig, data = FIGURES[name](gappy)
    assert "no data" in words(fig)
    column = "value" if name == "positions_by_scale" else "mean"
    kinds = data[data.get("kind", pd.Series("", index=data.index)) != "plan sd"]
    lost = kinds[kinds[column].isna()]
    assert set(lost.model) == {"bloom-mid"}
    assert "topics" in set(lost.task)
    assert "sentiment" not in set(lost.task)


def test_a_missing_cell_has_its_place_on_the_axis(gappy: pd.DataFrame) -> None:
    fig, _ = methods_by_scale.draw(gappy)
    marks = hatched(fig)
    assert len(marks) == 2
    for mark in marks:
        assert mark.get_offsets()[0][0] == pytest.approx(MODELS["bloom-mid"][0], rel=0.5)


@pytest.mark.parametrize("placements", [{"uniform"}, {"full", "lora"}, {"none"}])
def test_a_study_without_apet_or_methods_is_drawn_as_such(placements: set[str], whole: pd.DataFrame) -> None:
    part = whole[whole.placement.isin(placements)]
    assert empty_panels(positions_by_scale.draw(part)[0]) == (0 if "uniform" in placements else 8)
    fig, _ = methods_by_scale.draw(part)
    assert empty_panels(fig) == (len(TASKS) + 1 if "uniform" in placements else 0)
    assert "Not in this study" in words(fig)
    assert empty_panels(score_by_budget.draw(part)[0]) == 0


def test_generation_has_no_majority_line(whole: pd.DataFrame) -> None:
    part = whole.assign(majority=whole.majority.where(whole.task.ne("topics")))
    fig, data = score_by_budget.draw(part)
    assert data.majority[data.task.eq("topics")].isna().all()
    panel = next(ax for ax in fig.axes if ax.get_title() == "topics, bloom-mid")
    assert "majority share" not in panel.get_legend_handles_labels()[1]
    assert methods_by_scale.draw(part)[1].query("task == 'topics'").chance.unique() == pytest.approx([20.0])


def test_families_are_never_joined_by_a_line(whole: pd.DataFrame) -> None:
    other = whole.assign(family="bert", model=whole.model.str.replace("bloom", "bert"))
    fig, data = methods_by_scale.draw(pd.concat([whole, other], ignore_index=True))
    assert {ax.get_title() for ax in fig.axes if ax.get_title()} == {
        f"{family}: {task}" for family in ("bert", "bloom") for task in (*TASKS, methods_by_scale.MEAN)
    }
    assert all(len(line.get_xdata()) <= len(MODELS) for ax in fig.axes for line in ax.lines)
    assert data.groupby("family").model.nunique().to_dict() == {"bert": 3, "bloom": 3}


def test_files_and_equal_bytes_in_another_process(tmp_path: Path, whole: pd.DataFrame) -> None:
    write_tidy(whole, tmp_path, "ab" * 32)
    draw_all(tmp_path / "tidy.parquet", tmp_path / "a")
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names == {f"{name}.{kind}" for name in FIGURES for kind in ("svg", "png", "csv")}
    script = (
        "import sys; import matplotlib; matplotlib.rcParams['axes.facecolor'] = 'red'; from pathlib import Path; "
        "from apet.figures import draw_all; draw_all(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "tidy.parquet", tmp_path / "b"], check=True)
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    for name in FIGURES:
        pd.testing.assert_frame_equal(
            pd.read_csv(tmp_path / "a" / f"{name}.csv", dtype={"budget": str}),
            FIGURES[name](whole)[1],
            check_dtype=False,
        )


def test_colours_and_markers_are_distinct() -> None:
    colours, markers, labels = zip(*style.LOOKS.values(), strict=True)
    assert len(set(colours)) == len(set(markers)) == len(set(labels)) == len(style.LOOKS)


@pytest.mark.parametrize(("number", "text"), [(1, "1"), (960, "960"), (25_000, "25k"), (1.2e6, "1.2M"), (7e9, "7B")])
def test_short_counts(number: float, text: str) -> None:
    assert style.short(number) == text
