"""The table of methods: the numbers of the tidy table, and gaps that can be seen."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from apet.analysis.table import MEAN, methods_table, write_table
from apet.analysis.tidy import tidy
from simulated_study import MODELS, record, study


def test_entries_are_mean_sd_and_n_in_per_cent() -> None:
    cells = [
        record("bloom-mid", "topics", "lora", "@own", [[0.8, 0.7]], 19_200),
        record("bloom-mid", "topics", "none", "0", [[0.2]], 0),
        record("bloom-mid", "topics", "uniform", "@lora", [[0.5], [0.6], [0.7]], 19_200),
        record("bloom-mid", "topics", "uniform", "100", [[0.1]], 100),
    ]
    markdown, long = methods_table(tidy(cells))
    lines = markdown.splitlines()
    assert lines[0] == "| PLM | method | tunable parameters | topics | mean over tasks |"
    assert lines[2] == "| bloom-mid | lora | 19,200 | 75.0 ± 7.1 (2) | 75.0 ± 7.1 (2) |"
    assert lines[3] == "| bloom-mid | none | 0 | 20.0 (1) | 20.0 (1) |"
    assert lines[4] == "| bloom-mid | APET @lora | 19,200 | 60.0 ± 10.0 (3) | 60.0 ± 10.0 (3) |"
    assert lines[5] == ""
    assert long["mean"].tolist() == pytest.approx([75, 75, 20, 20, 60, 60])


def test_every_row_of_the_study_and_its_means() -> None:
    frame = tidy(study())
    _, long = methods_table(frame)
    assert len(long) == len(MODELS) * 10 * 3
    assert list(long.model.unique()) == list(MODELS)
    lora = frame[frame.placement.eq("lora") & frame.model.eq("bloom-large")]
    row = long[long.model.eq("bloom-large") & long.placement.eq("lora")].set_index("task")
    assert row.loc["topics", "mean"] == pytest.approx(100 * lora.score[lora.task.eq("topics")].mean())
    assert row.loc[MEAN, "mean"] == pytest.approx(100 * lora.score.mean())


def test_a_missing_cell_is_seen_in_its_column_and_in_the_mean() -> None:
    markdown, long = methods_table(tidy([c for c in study() if c[0] != "bloom-mid/topics/lora-@own"]))
    line = next(line for line in markdown.splitlines() if line.startswith("| bloom-mid | lora"))
    assert line.count("no data") == 2
    gap = long[long.model.eq("bloom-mid") & long.placement.eq("lora")].set_index("task")
    assert gap.loc["topics", "n"] == 0
    assert gap["mean"].isna().to_dict() == {"sentiment": False, "topics": True, MEAN: True}


def test_equal_bytes_whatever_the_order(tmp_path: Path) -> None:
    frame = tidy(study())
    write_table(frame, tmp_path / "a")
    write_table(frame.sample(frac=1, random_state=1), tmp_path / "b")
    for name in ("methods.md", "methods.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert len(pd.read_csv(tmp_path / "a" / "methods.csv")) == len(methods_table(frame)[1])
