"""Figures: numbers of the tidy table, sample sizes, missing data, layout and equal bytes."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from apet.analysis.claims import AnalysisInputs, position_variance
from apet.analysis.means import MEAN, cell_scores, differences, method_differences, method_scores, methods
from apet.analysis.resampling import sample_means
from apet.analysis.thresholds import thresholds
from apet.analysis.tidy import write_tidy
from apet.analysis.variance import position_components, position_spread
from apet.config.study_config import AnalysisConfig
from apet.figures import (
    FIGURES,
    draw_all,
    methods_by_scale,
    panels,
    positions_by_scale,
    score_by_budget,
    style,
    thresholds_by_scale,
    where_it_helps,
)
from apet.figures.panels import column_blocks
from apet.placement.methods import PLACEMENTS
from simulated_study import MARGINS, MODELS, OWN, TASKS, frame_of, record

GAPS = ("bloom-mid/topics/lora-@own", "bloom-mid/topics/uniform-@lora", "bloom-mid/topics/uniform-100")
KEPT_TO = {"bias_only": 0.1, "top": 0.0, "token_only": -0.1}
"""Restricted placements of the simulated study, and by how much each is better than APET everywhere."""


def cells(seed: int = 1) -> list:
    """Every method at its own count and APET at each, with scores that rise with the number of parameters; two reruns
    of APET's plans at the matched budgets; and three restricted placements at 100 parameters."""
    rng = np.random.default_rng(seed)
    found = []
    for model, (_, parameters) in MODELS.items():
        own = {name: int(share * parameters) for name, share in OWN.items()}
        spent = [(name, "@own", own[name], (1, 2), 0.0) for name in OWN] + [("none", "0", 0, (1, 1), 0.0)]
        spent += [("uniform", f"@{name}", own[name], (3, 2), 0.0) for name in OWN if name != "full"]
        spent += [("uniform", budget, int(budget), (3, 1), 0.0) for budget in ("1", "100", "10000")]
        spent += [(name, "100", 100, (2, 1), better) for name, better in KEPT_TO.items()]
        for task, (_, _, majority, n) in TASKS.items():
            for placement, budget, count, shape, better in spent:
                rise = np.interp(np.log10(count + 1), [0.5, 3], [0, 0.3])
                true = majority - 0.02 + rise + better + rng.normal(0, 0.01, shape)
                found.append(record(model, task, placement, budget, rng.binomial(n, true) / n, count))
    return found


def evidence_of(frame: pd.DataFrame) -> AnalysisInputs:
    return AnalysisInputs(frame, sample_means(frame), frame.attrs["margins"])


def kept(frame: pd.DataFrame, mask: pd.Series) -> AnalysisInputs:
    """The evidence of a part of the table."""
    return evidence_of(frame[mask].reset_index(drop=True))


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return frame_of(cells())


@pytest.fixture(scope="module")
def whole(frame: pd.DataFrame) -> AnalysisInputs:
    return evidence_of(frame)


@pytest.fixture(scope="module")
def drawn(whole: AnalysisInputs) -> dict[str, tuple[Figure, pd.DataFrame]]:
    """Every figure of the whole study."""
    return {name: draw(whole) for name, draw in FIGURES.items()}


@pytest.fixture(scope="module")
def gappy(frame: pd.DataFrame) -> AnalysisInputs:
    """A study in which three cells are missing, as aggregating lists them."""
    part = frame[~frame.cell_path.isin(GAPS)].reset_index(drop=True)
    gaps = frame[frame.cell_path.isin(GAPS)].drop_duplicates("cell_path")[["model", "task", "placement", "budget"]]
    part.attrs["missing"] = gaps.assign(reason="it failed").to_dict("records")
    return evidence_of(part)


@pytest.fixture(scope="module")
def large() -> AnalysisInputs:
    """Nine PLMs of three families on eleven tasks, of which one family does not do three; few cells of each."""
    rows = []
    for family, size in itertools.product(("bert", "bloom", "t5"), (3_000_000, 110_000_000, 7_000_000_000)):
        for task in range(8 if family == "bert" else 11):
            plan = [("full", "@own", size, (1, 2)), ("lora", "@own", size // 30, (1, 2))]
            plan += [("uniform", str(10**x), 10**x, (2, 1)) for x in (0, 2, 4)]
            for placement, budget, count, shape in plan:
                path, made = record("bloom-mid", "topics", placement, budget, np.full(shape, 0.2 + 0.06 * task), count)
                made["cell"] |= {"model": f"owner/{family}_L-12_H-{size}_uncased", "task": f"a_task_{task}"}
                made["plm"] |= {"family": family, "non_embedding_params": size}
                rows.append((f"{family}{size}/{task}/{path}", made))
    return evidence_of(frame_of(rows))


def words(fig: Figure) -> str:
    """All text of a figure: notes, titles, labels, legend."""
    found = [*fig.texts, *(t for ax in fig.axes for t in (ax.title, ax.xaxis.label, ax.yaxis.label, *ax.texts))]
    found += [t for legend in fig.legends for t in legend.get_texts()]
    found += [note.get_title() for ax in fig.axes if (note := ax.get_legend())]
    return " ".join(t.get_text() for t in found).replace("\n", " ")


def empty_panels(fig: Figure) -> int:
    return sum(bool(ax.patch.get_hatch()) for ax in fig.axes)


def hatched(fig: Figure) -> list:
    return [c for ax in fig.axes for c in ax.collections if c.get_hatch()]


def panel(fig: Figure, row: int, column: int, columns: int = len(MODELS)):
    return fig.axes[row * columns + column]


@pytest.mark.parametrize("name", FIGURES)
def test_figures_state_sample_sizes_and_units_and_fit_the_page(name: str, drawn: dict) -> None:
    fig, data = drawn[name]
    text = words(fig)
    assert "topics 400" in text
    assert "sentiment 800" in text
    assert "Diverged" not in text and "Missing" not in text
    assert "95 % interval" in text
    assert "parameters" in text or name == "noise_floor"
    assert "(%)" in text or "(points)" in text or name == "thresholds_by_scale"
    assert fig.get_figwidth() == pytest.approx(180 / 25.4)
    assert len(data)
    assert "no data" not in text
    assert not hatched(fig)


def boxes_of(fig: Figure) -> list:
    """The places of all text that stands outside of panels, and of the legends; none below 6 points."""
    with mpl.style.context(["default", style.RC]):
        fig.draw_without_rendering()
    shown = [ax for ax in fig.axes if ax.axison]
    labels = [*fig.texts, *(t for ax in shown for t in (ax.title, ax.xaxis.label, ax.yaxis.label))]
    for axis in (axis for ax in shown for axis in (ax.xaxis, ax.yaxis)):
        low, high = sorted(axis.get_view_interval())
        labels += [
            tick.label1
            for tick in axis.get_major_ticks()
            if low <= tick.get_loc() <= high and tick.label1.get_visible()
        ]
    labels = [t for t in labels if t.get_text() and t.get_visible() and t.get_window_extent().width]
    assert min(t.get_fontsize() for t in labels) >= 6
    return [t.get_window_extent() for t in labels] + [legend.get_window_extent() for legend in fig.legends]


def check_layout(fig: Figure) -> None:
    boxes, page = boxes_of(fig), fig.bbox
    for box in boxes:
        assert box.x0 >= page.x0 - 1
        assert box.x1 <= page.x1 + 1
        assert box.y0 >= page.y0 - 1
        assert box.y1 <= page.y1 + 1
    overlaps = [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    assert not [pair for pair in overlaps if not np.allclose(pair[0].bounds, pair[1].bounds)]


@pytest.mark.parametrize("name", FIGURES)
def test_figures_have_no_text_off_the_page_or_overlapping(name: str, drawn: dict) -> None:
    check_layout(drawn[name][0])


@pytest.mark.slow
def test_where_it_helps_of_every_restricted_placement_has_no_overlapping_text(frame: pd.DataFrame) -> None:
    part = frame[frame.placement.isin(["full", "uniform", "bias_only"])]
    copies = [part[part.placement.eq("bias_only")].assign(placement=name) for name in where_it_helps.RESTRICTED]
    table = pd.concat([part[part.placement.ne("bias_only")], *copies], ignore_index=True)
    table.attrs = frame.attrs
    check_layout(where_it_helps.draw(evidence_of(table))[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", FIGURES)
def test_figures_of_the_papers_study_fit_a_page(name: str, large: AnalysisInputs) -> None:
    fig, data = FIGURES[name](large)
    assert fig.get_figheight() * 25.4 <= panels.PAGE + 1
    if data.empty:
        return
    check_layout(fig)
    if name in ("methods_by_scale", "score_by_budget"):
        assert words(fig).count("not in this study") == (3 if name == "methods_by_scale" else 9)
    if name == "methods_by_scale":
        means = data[data.task.eq(MEAN) & data.placement.eq("full") & data.family.eq("bert")]
        assert means["mean"].tolist() == pytest.approx([100 * np.mean(0.2 + 0.06 * np.arange(8))] * 3)


def test_methods_by_scale_draws_the_scores_of_the_table(whole: AnalysisInputs, drawn: dict) -> None:
    fig, data = drawn["methods_by_scale"]
    assert len(data) == len(MODELS) * (len(TASKS) + 1) * 6
    expected = method_scores(whole.samples).set_index(["model", "task", "placement"])
    found = data[data.task.ne(MEAN)].set_index(["model", "task", "placement"])
    for column in ("mean", "low", "high"):
        assert found[column].to_numpy() == pytest.approx(100 * expected[column].reindex(found.index).to_numpy())
    topics = next(ax for ax in fig.axes if ax.get_title() == "topics")
    lines = {tuple(np.round(np.asarray(line.get_ydata(), float), 6)) for line in topics.lines}
    lora = data[data.task.eq("topics") & data.placement.eq("lora")].sort_values("non_embedding_params")
    assert tuple(np.round(lora["mean"], 6)) in lines
    assert (23.7, 23.7) in lines
    mean = data[data.task.eq(MEAN) & data.placement.eq("full")]
    full = whole.frame[whole.frame.placement.eq("full")].groupby("model").test_score.mean()
    assert dict(zip(mean.model, mean["mean"], strict=True)) == pytest.approx((100 * full).to_dict())


def test_positions_by_scale_draws_the_spread_of_the_table(whole: AnalysisInputs, drawn: dict) -> None:
    _, data = drawn["positions_by_scale"]
    spread = position_spread(whole.frame)
    found = data[data.kind.eq("sd") & data.method.eq("lora")]
    expected = spread[spread.budget.eq("@lora")]
    tasks = found[found.task.ne(MEAN)]
    assert tasks.set_index(["model", "task"]).value.to_dict() == pytest.approx(
        (100 * expected.set_index(["model", "task"]).sd).to_dict()
    )
    means = found[found.task.eq(MEAN)].set_index("model")
    assert means.value.to_dict() == pytest.approx((100 * expected.groupby("model").sd.mean()).to_dict())
    assert (means.low < means.value).all()
    assert (means.value < means.high).all()
    plans = data[data.kind.eq("plan")]
    assert plans.groupby(["model", "task", "method"]).value.mean().abs().max() == pytest.approx(0, abs=1e-9)
    cells = plans.groupby(["model", "task", "method"]).value.std() / 100
    assert sorted(cells) == pytest.approx(sorted(spread.sd[spread.budget.str.startswith("@")]))


def test_positions_by_scale_plan_variance_is_not_truncated_and_has_the_findings_intervals(
    whole: AnalysisInputs, drawn: dict
) -> None:
    _, data = drawn["positions_by_scale"]
    cells = position_components(whole.frame).set_index(["model", "task", "budget"]).component
    variance = data[data.kind.eq("plan variance") & data.task.ne(MEAN)]
    keys = pd.MultiIndex.from_arrays([variance.model, variance.task, "@" + variance.method])
    assert variance.value.to_numpy() == pytest.approx(1e4 * cells.reindex(keys).to_numpy())
    assert (variance.value < 0).any()
    assert data.value[data.kind.eq("plan sd")].min() == 0
    lora = whole.frame[whole.frame.budget.eq("@lora")].reset_index(drop=True)
    claim_data = position_variance(AnalysisInputs(lora, whole.samples, MARGINS))
    small = claim_data.table.model.eq("bloom-small").to_numpy()
    expected = claim_data.combine(small / small.sum())
    at = data.kind.eq("plan variance") & data.task.eq(MEAN) & data.model.eq("bloom-small") & data.method.eq("lora")
    row = data[at].iloc[0]
    assert (row.value, row.low, row.high) == pytest.approx((expected.value, *expected.interval))


def test_positions_by_scale_of_single_plans_has_no_sd_and_no_dots(frame: pd.DataFrame) -> None:
    fig, data = positions_by_scale.draw(kept(frame, frame.plan_index.eq(0)))
    text = words(fig)
    assert "one plan: no S.D." in text and "no data" not in text and "APET, one plan" not in text
    assert "plan" not in set(data.kind) and data.value[data.kind.eq("method")].notna().all()
    assert data.num_plans[data.kind.eq("sd")].eq(1).all() and not hatched(fig)


def test_score_by_budget_draws_the_sweep_of_the_table(whole: AnalysisInputs, drawn: dict) -> None:
    fig, data = drawn["score_by_budget"]
    assert len(fig.axes) == len(MODELS) * len(TASKS)
    cells = cell_scores(whole.samples).set_index(["model", "task", "placement", "budget"])
    for row in data.itertuples():
        cell = cells.loc[(row.model, row.task, row.placement, row.budget if row.placement != "none" else "0")]
        assert (row.mean, row.low, row.high) == pytest.approx((100 * cell["mean"], 100 * cell.low, 100 * cell.high))
        assert row.trainable_params == cell.trainable_params
    lines = panel(fig, sorted(TASKS).index("topics"), list(MODELS).index("bloom-mid")).lines
    sweep = data[data.task.eq("topics") & data.model.eq("bloom-mid") & data.placement.eq("uniform")]
    assert lines[0].get_xdata().tolist() == sorted(sweep.trainable_params)
    assert {20.0, 23.7} <= {round(line.get_ydata()[0], 6) for line in lines if len(line.get_ydata())}


def test_thresholds_are_the_same_in_both_figures(whole: AnalysisInputs, drawn: dict) -> None:
    (sweep, wide), (_, long) = drawn["score_by_budget"], drawn["thresholds_by_scale"]
    table = thresholds(whole.samples, MARGINS).set_index(["model", "task", "kind"])
    assert len(long) == len(MODELS) * len(TASKS) * 2
    for row in long.itertuples():
        expected = table.loc[(row.model, row.task, row.threshold)]
        numbers = [10**expected.log10, 10**expected.low, 10**expected.high]
        assert [row.value, row.low, row.high] == pytest.approx(numbers)
        pair = wide[wide.model.eq(row.model) & wide.task.eq(row.task)].iloc[0]
        name = f"{row.threshold}_threshold"
        assert [pair[name], pair[f"{name}_low"], pair[f"{name}_high"]] == pytest.approx(numbers)
        if not row.censored:
            ax = panel(sweep, sorted(TASKS).index(row.task), list(MODELS).index(row.model))
            marks = [line.get_xdata()[0] for line in ax.lines if len(line.get_xdata()) == 1]
            assert any(mark == pytest.approx(row.value) for mark in marks)


def test_thresholds_by_scale_draws_a_censored_threshold_as_a_hollow_arrow(frame: pd.DataFrame) -> None:
    hard = frame.placement.eq("uniform") & frame.budget.isin(["1", "100"]) | frame.placement.eq("full")
    fig, data = thresholds_by_scale.draw(kept(frame, hard))
    high = data[data.threshold.eq("full_ft")]
    assert high.censored.eq("above").all()
    assert np.isinf(high.value).all()
    assert "above all numbers tested" in words(fig)
    assert "full-FT 0 of 6" in words(fig)
    solid = [line for line in fig.axes[1].lines if line.get_markersize() == style.RC["lines.markersize"]]
    assert not [line for line in solid if line.get_marker() != "None" and len(line.get_xdata())]
    hollow = [line for line in fig.axes[1].lines if line.get_markerfacecolor() == "white" and len(line.get_xdata())]
    assert sum(len(line.get_xdata()) for line in hollow) == 6
    assert {y for line in hollow for y in line.get_ydata()} == {100}


def test_where_it_helps_draws_paired_differences_from_apet(whole: AnalysisInputs, drawn: dict) -> None:
    _, data = drawn["where_it_helps"]
    chosen = whole.samples.select(whole.samples.cells.placement.isin([*KEPT_TO, "uniform"]))
    expected = differences(
        chosen, lambda cells: cells.assign(placement=cells.placement.where(cells.placement.eq("uniform"), "uniform"))
    )
    keys = ["model", "task", "placement", "budget"]
    expected = expected[expected.placement.ne("uniform")].set_index(keys)
    assert len(data) == len(MODELS) * (len(TASKS) + 1) * len(KEPT_TO) == len(expected)
    for column in ("difference", "low", "high"):
        found = data.set_index(keys)[column]
        assert found.to_numpy() == pytest.approx(100 * expected[column].reindex(found.index).to_numpy())
    means = data[data.task.eq(MEAN)].groupby("placement")
    assert (means.low.min()["bias_only"] > 0) and (means.high.max()["token_only"] < 0)
    assert data.n_test.gt(0).all() and data.num_replicates.eq(2).all()


def test_where_it_helps_fills_markers_of_significant_differences(drawn: dict) -> None:
    fig, data = drawn["where_it_helps"]
    told = data[data.task.eq(MEAN)].set_index(["model", "placement"]).p_adjusted < 0.05
    assert told.any() and not told.all()
    for column, model in enumerate(MODELS):
        for name in KEPT_TO:
            marker = style.STYLES[name][1]
            mark = next(
                line for line in fig.axes[column].lines if line.get_marker() == marker and len(line.get_xdata())
            )
            assert (mark.get_markerfacecolor() != "white") == told[(model, name)]


def test_where_it_helps_without_restricted_placements_is_empty(frame: pd.DataFrame) -> None:
    fig, data = where_it_helps.draw(kept(frame, ~frame.placement.isin(KEPT_TO)))
    assert len(fig.axes) == 1 and "No restricted placement is in this study." in words(fig) and data.empty


def test_where_it_helps_has_a_panel_for_each_plm_with_restricted_placements(frame: pd.DataFrame) -> None:
    model = next(iter(MODELS))
    fig, data = where_it_helps.draw(kept(frame, ~frame.placement.isin(KEPT_TO) | frame.model.eq(model)))
    assert [ax.get_title() for ax in fig.axes if ax.axison] == [model] and data.difference.notna().all()


@pytest.mark.parametrize("figure", [where_it_helps, positions_by_scale])
def test_figures_of_one_task_mention_no_mean_over_tasks(frame: pd.DataFrame, figure: ModuleType) -> None:
    several, one = (words(figure.draw(kept(frame, mask))[0]) for mask in (frame.task.notna(), frame.task.eq("topics")))
    assert "mean over tasks" in several and "one task" in several
    assert "over tasks" not in one and "one task" not in one and "mean over" not in one


def test_noise_floor_draws_seeds_test_rows_and_differences(whole: AnalysisInputs, drawn: dict) -> None:
    _, data = drawn["noise_floor"]
    places = data.set_index(["kind", "model", "task", "placement"]).sort_index()
    cells = methods(whole.samples).cells.set_index(["model", "task", "placement"])
    lora = cells.loc[("bloom-mid", "topics", "lora")]
    row = places.loc[("seeds", "bloom-mid", "topics", "lora")]
    assert row.value == pytest.approx(100 * lora.error * np.sqrt(2))
    assert row.low < row.value < row.high
    apet = position_components(whole.frame[whole.frame.budget.str.startswith("@")])
    apet = apet[apet.model.eq("bloom-mid") & apet.task.eq("topics")]
    assert places.loc[("seeds", "bloom-mid", "topics", "uniform")].value == pytest.approx(
        100 * np.sqrt(apet.within.mean())
    )
    row = places.loc[("test rows", "bloom-mid", "topics", "")]
    scores = whole.frame[whole.frame.model.eq("bloom-mid") & whole.frame.task.eq("topics")].test_score
    assert row.value == pytest.approx(100 * np.median(np.sqrt(scores * (1 - scores) / 400)))
    found = method_differences(whole.samples)
    pairs = found[found.model.eq("bloom-mid") & found.task.eq("topics")]
    row = places.loc[("difference", "bloom-mid", "topics", "")]
    assert row.value == pytest.approx(50 * np.median(pairs.high - pairs.low))
    assert row.n == len(pairs)


@pytest.mark.parametrize("name", FIGURES)
def test_figures_mark_missing_cells(name: str, gappy: AnalysisInputs) -> None:
    fig, data = FIGURES[name](gappy)
    assert "Missing: 3 cells." in words(fig)
    if name in ("noise_floor", "thresholds_by_scale"):
        return
    assert "no data" in words(fig)
    column = {"positions_by_scale": "value", "where_it_helps": "difference"}.get(name, "mean")
    lost = data[data[column].isna()]
    assert set(lost.model) == {"bloom-mid"}
    assert "topics" in set(lost.task)
    assert "sentiment" not in set(lost.task)


@pytest.mark.parametrize("name", FIGURES)
def test_figures_mark_no_cells_that_the_study_does_not_plan(name: str, frame: pd.DataFrame) -> None:
    planned = ~frame.model.eq("bloom-large") | ~(
        frame.budget.isin(["@lora", "100"]) | frame.placement.isin(["lora", "full"])
    )
    planned &= ~(frame.placement.eq("prompt") & frame.task.eq("topics"))
    fig, data = FIGURES[name](kept(frame, planned))
    assert "no data" not in words(fig) and not hatched(fig) and not empty_panels(fig)
    assert len(data)
    if name == "positions_by_scale":
        assert len({ax.get_xlim() for ax in fig.axes}) == 1


def test_score_by_budget_of_a_pair_without_data_has_a_panel(frame: pd.DataFrame) -> None:
    gone = frame.model.eq("bloom-mid") & frame.task.eq("topics")
    part = frame[~gone].reset_index(drop=True)
    keys = ["model", "task", "placement", "budget"]
    excluded = score_by_budget.draw(evidence_of(part))[0]
    part.attrs["missing"] = frame[gone].drop_duplicates("cell_path")[keys].assign(reason="it failed").to_dict("records")
    lost = score_by_budget.draw(evidence_of(part))[0]
    assert (empty_panels(excluded), empty_panels(lost)) == (0, 1)
    assert "not in this study" in words(excluded)
    assert "not in this study" not in words(lost)


def test_note_of_missing_cells_covers_no_point() -> None:
    fig = Figure(figsize=(3, 2))
    ax = fig.subplots()
    x = np.array([0.0, 0.0, 1.0, 0.6, 0.8, 0.9])
    ax.plot(x, 1 - x, "o")
    ax.plot(x, x, "o")
    ax.plot([0.02, 0.98], [0.02, 0.98], "o")
    panels.note_missing(ax, ["APET 100"])
    fig.draw_without_rendering()
    box = ax.get_legend().get_window_extent()
    assert not any(box.contains(*ax.transData.transform(xy)) for line in ax.lines for xy in line.get_xydata())


def test_legend_of_long_labels_fits_the_page() -> None:
    with mpl.style.context(["default", style.RC]):
        fig, grid = panels.panels(1, 1, 50, "")
        for index in range(6):
            grid[0, 0].plot([], [], label=f"{index} a label of many characters, as of differences")
        panels.legend(fig, grid.flat, 6)
    assert len(fig.legends) == 1
    check_layout(fig)


def test_methods_by_scale_marks_a_missing_cell_on_the_axis(gappy: AnalysisInputs) -> None:
    fig, _ = methods_by_scale.draw(gappy)
    marks = hatched(fig)
    assert len(marks) == 2
    for mark in marks:
        assert mark.get_offsets()[0][0] == pytest.approx(MODELS["bloom-mid"][0], rel=0.5)


@pytest.mark.parametrize(
    ("placements", "empty"),
    [
        ({"uniform"}, {"methods_by_scale", "where_it_helps"}),
        ({"full", "lora"}, {"positions_by_scale", "thresholds_by_scale", "where_it_helps"}),
        ({"none"}, {"positions_by_scale", "thresholds_by_scale", "where_it_helps"}),
        ({"top"}, {"methods_by_scale", "positions_by_scale", "score_by_budget", "thresholds_by_scale"}),
    ],
)
def test_figures_contain_only_placements_of_the_study(
    placements: set[str], empty: set[str], frame: pd.DataFrame
) -> None:
    """A figure without any has no numbers and one sentence. Panels, legend and note name no other placement."""
    part = kept(frame, frame.placement.isin(placements))
    for name, draw in FIGURES.items():
        fig, data = draw(part)
        assert data.empty == (name in empty), name
        assert not data.empty or (len(fig.axes) == 1 and "in this study." in words(fig))
        labels = {text.get_text() for legend in fig.legends for text in legend.get_texts()}
        absent = {style.STYLES[other][2] for other in style.STYLES if other not in placements}
        assert not labels & absent, name
    assert [len(thresholds_by_scale.draw(part)[0].axes)] == [1]


@pytest.mark.parametrize("name", FIGURES)
def test_figures_of_one_plm_one_task_and_one_replicate_are_drawn(name: str, frame: pd.DataFrame) -> None:
    one = frame.model.eq("bloom-mid") & frame.task.eq("topics") & frame.plan_index.eq(0) & frame.seed_index.eq(0)
    fig, data = FIGURES[name](kept(frame, one))
    check_layout(fig)
    assert len(data)


@pytest.mark.parametrize("name", FIGURES)
def test_figures_count_diverged_replicates(name: str, frame: pd.DataFrame) -> None:
    lost = (
        frame.budget.isin(["@own", "100"])
        & frame.model.eq("bloom-mid")
        & frame.seed_index.eq(0)
        & frame.plan_index.eq(0)
    )
    lost |= frame.cell_path.isin(GAPS)
    part = frame.assign(test_score=frame.test_score.mask(lost), outcome=frame.outcome.mask(lost, "diverged"))
    part["row_scores"] = [
        np.empty(0, np.float32) if gone else rows for gone, rows in zip(lost, part.row_scores, strict=True)
    ]
    fig, _ = FIGURES[name](evidence_of(part))
    assert f"Diverged: {lost.sum()} of {len(part)} replicates." in words(fig)


def test_score_by_budget_of_generation_has_no_majority_line(frame: pd.DataFrame) -> None:
    part = frame.assign(chance_majority=frame.chance_majority.where(frame.task.ne("topics")))
    evidence = evidence_of(part)
    fig, data = score_by_budget.draw(evidence)
    assert data.chance_majority[data.task.eq("topics")].isna().all()
    topics = panel(fig, sorted(TASKS).index("topics"), 1)
    assert "majority share" not in topics.get_legend_handles_labels()[1]
    assert methods_by_scale.draw(evidence)[1].query("task == 'topics'").chance.unique() == pytest.approx([20.0])


@pytest.mark.parametrize("name", ["score_by_budget", "methods_by_scale"])
def test_figures_explain_chance_of_f1_only_if_a_task_uses_it(name: str, frame: pd.DataFrame) -> None:
    assert "always class 1" not in words(FIGURES[name](evidence_of(frame))[0])
    assert "always class 1" in words(FIGURES[name](evidence_of(frame.assign(metric="f1")))[0])
    text = words(FIGURES[name](evidence_of(frame.assign(metric="mcc")))[0])
    assert "times 100; chance is 0" in text and "test Matthews correlation (× 100)" in text


@pytest.mark.parametrize("name", ["methods_by_scale", "thresholds_by_scale"])
def test_figures_join_no_families_by_lines(name: str, frame: pd.DataFrame) -> None:
    other = frame.assign(family="bert", model=frame.model.str.replace("bloom", "bert"))
    both = pd.concat([frame, other], ignore_index=True)
    both.attrs = frame.attrs
    fig, data = FIGURES[name](evidence_of(both))
    assert [ax.get_title() for ax in fig.axes if ax.get_title()] == ["bert", "bloom"]
    assert all(len(line.get_xdata()) <= len(MODELS) for ax in fig.axes for line in ax.lines)
    assert data.groupby("family").model.nunique().to_dict() == {"bert": 3, "bloom": 3}


def test_column_blocks_keep_families_together() -> None:
    sizes = {"a": 3, "b": 5, "c": 3, "d": 12}
    found = pd.DataFrame([(f, i, f"{f}{i:02}") for f, n in sizes.items() for i in range(n)])
    found.columns = ["family", "non_embedding_params", "model"]
    blocks = [[name[0] for name in block] for block in column_blocks(found, 9)]
    assert ["".join(block) for block in blocks] == ["aaabbbbb", "ccc", "d" * 9, "ddd"]


@pytest.mark.slow
def test_draw_all_writes_equal_bytes_in_another_process(tmp_path: Path, frame: pd.DataFrame) -> None:
    few = kept(frame, frame.model.eq("bloom-mid") & frame.task.eq("topics"))
    write_tidy(few.frame, tmp_path, "ab" * 32, AnalysisConfig(**MARGINS))
    script = (
        "import sys; import matplotlib; matplotlib.rcParams['axes.facecolor'] = 'red'; from pathlib import Path; "
        "from apet.figures import draw_all; draw_all(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    other = subprocess.Popen([sys.executable, "-c", script, tmp_path / "tidy.parquet", tmp_path / "b"])
    draw_all(tmp_path / "tidy.parquet", tmp_path / "a")
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names == {f"{name}.{kind}" for name in FIGURES for kind in ("svg", "png", "csv")}
    assert other.wait() == 0
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


@pytest.mark.parametrize("name", FIGURES)
def test_numbers_of_a_figure_are_read_back(name: str, drawn: dict, tmp_path: Path) -> None:
    _, data = drawn[name]
    style.save(Figure(), data, tmp_path, "numbers")
    text = dict.fromkeys(("budget", "placement", "censored"), str)
    read = pd.read_csv(tmp_path / "numbers.csv", dtype=text, keep_default_na=False, na_values={
        column: [""] for column in data.columns if column not in text
    })  # fmt: skip
    strings = {column: data[column].fillna("") for column in text if column in data}
    pd.testing.assert_frame_equal(read, data.assign(**strings), check_dtype=False)


def test_figures_have_a_caption_with_a_question() -> None:
    for name in FIGURES:
        title, _, text = sys.modules[f"apet.figures.{name}"].__doc__.partition("\n\n")
        assert ": " in title and title.endswith("?") and len(text) > 100


def test_placement_styles_are_distinct() -> None:
    _, markers, labels = zip(*style.STYLES.values(), strict=True)
    assert len(set(markers)) == len(set(labels)) == len(style.STYLES)
    own = [colour for name, (colour, *_) in style.STYLES.items() if name not in where_it_helps.RESTRICTED]
    assert len(set(own)) == len(own)
    restricted = {style.STYLES[name][0] for name in where_it_helps.RESTRICTED}
    limits = {colour for colour, *_ in style.THRESHOLDS.values()}
    assert not (restricted | limits) & set(own) and not restricted & limits
    assert set(PLACEMENTS.names) == set(style.STYLES)
    assert not any("_" in label for label in labels)


def test_plm_name_wraps_after_separators() -> None:
    assert style.plm_name("google/bert_uncased_L-4_H-512", 13) == "bert_uncased_\nL-4_H-512"
    assert style.plm_name("bloom-mid", 20) == "bloom-mid"


@pytest.mark.parametrize(("budget", "name"), [("@lora", "LoRA's count"), ("10000", "10k"), ("1%", "1%")])
def test_budget_name_of_a_method_names_its_count(budget: str, name: str) -> None:
    assert style.budget_name(budget) == name


@pytest.mark.parametrize(
    ("number", "text"),
    [(1, "1"), (960, "960"), (25_000, "25k"), (999_700, "1M"), (1.2e6, "1.2M"), (999_999_999, "1B"), (7e9, "7B")],
)
def test_short_rounds_to_three_digits_with_a_unit(number: float, text: str) -> None:
    assert style.short(number) == text
