"""Table of tasks from simulated records."""

from __future__ import annotations

import copy

import pytest

from apet.analysis.aggregate import tasks_table, write_tasks
from simulated_study import MODELS, TASKS, study


@pytest.fixture(scope="module")
def records() -> list[dict]:
    return [record for _, record in study()]


def test_tasks_table_has_a_row_per_task_and_plm(records):
    table = tasks_table(records)
    assert set(zip(table.task, table.model, strict=True)) == {(task, model) for task in TASKS for model in MODELS}
    assert len(table) == len(TASKS) * len(MODELS)


def test_tasks_table_has_label_shares_chance_and_truncation_of_the_records(records):
    row = tasks_table(records).iloc[0]
    n = row.test
    assert row.rarest_label == pytest.approx((n // 4) / n) and row.commonest_label == pytest.approx((n - n // 4) / n)
    _, uniform, majority, _ = TASKS[row.task]
    assert row.chance == max(uniform, majority)
    assert (row.mean_tokens, row.longest_tokens, row.truncated) == (30.5, 36, 0.25)


def test_tasks_table_of_generation_has_no_label_shares(records, tmp_path):
    record = copy.deepcopy(records[0])
    record["task"] |= {"name": "titles", "metric": "rouge_l", "majority": None, "chance": 0.02}
    record["task"]["label_counts"] = {"test": {}}
    (row,) = tasks_table([record]).itertuples()
    assert row.rarest_label is None and row.chance == 0.02
    write_tasks([record], tmp_path)
    head, line = (tmp_path / "tasks.csv").read_text().splitlines()
    assert head.startswith("task,model,metric,") and line.startswith("titles,")
