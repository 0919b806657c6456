"""What jobs ask a scheduler for: it follows the PLM and the block, and never falls when either grows."""

from __future__ import annotations

import copy

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from apet.config.study_config import load_study
from apet.models.registry import registry
from apet.study.grid import Grid, Job
from apet.study.resources import (
    LONGEST_MINUTES,
    START_MINUTES,
    devices,
    launch_command,
    memory_mb,
    parameters,
    pretraining_mb,
    runtime_minutes,
)
from toy import PARAMS

T5 = "google/t5-v1_1-xxl"


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Grid:
    axes = [{"placements": ["uniform"], "budgets": [5, 10**9, "1%"]}, {"placements": ["full"], "budgets": ["@own"]}]
    study = copy.deepcopy(PARAMS) | {"models": ["bloom-16x1", "bloom-512x8", T5], "grid": axes, "cells_per_job": 100}
    study["training"]["max_steps"] = 2000
    path = tmp_path_factory.mktemp("demand") / "params.yaml"
    path.write_text(yaml.safe_dump(study))
    return Grid(load_study(path), path)


def block(grid: Grid, model: str, *numbers: int) -> Job:
    (whole,) = (block for block in grid.jobs() if block.model == model)
    return Job(model, 0, tuple(whole.cells[number] for number in numbers or range(len(whole.cells))))


def test_memory_is_the_hint_and_sixteen_bytes_a_number(grid: Grid):
    few, many, share, full = (memory_mb(grid, block(grid, T5, number)) for number in range(4))
    assert pretraining_mb(grid, T5) == 2000 + 1000 * grid.models[T5].memory_gb
    assert few == pretraining_mb(grid, T5) + 2000 * (grid.models[T5].num_devices - 1)  # the libraries in each process
    assert many - few == 16_000
    assert full - few == pytest.approx(16 * grid.models[T5].num_parameters / 1e6, abs=1)
    assert share - few == pytest.approx((full - few) / 100, abs=1)


def test_a_plm_in_parts_asks_for_its_devices_and_is_launched_on_them(grid: Grid):
    assert devices(grid, block(grid, "bloom-16x1")) == 1 and launch_command(1) == "apet"
    assert devices(grid, block(grid, T5)) == registry()[T5].num_devices == 4
    assert "--num_processes 4 " in launch_command(4) and launch_command(4).endswith("--module apet.cli.app")


def test_a_block_asks_for_its_largest_cell_and_for_the_time_of_all(grid: Grid):
    alone = [block(grid, "bloom-512x8", number) for number in range(4)]
    together = block(grid, "bloom-512x8")
    assert memory_mb(grid, together) == max(memory_mb(grid, each) for each in alone)
    work = sum(runtime_minutes(grid, each) - START_MINUTES for each in alone)
    assert runtime_minutes(grid, together) - START_MINUTES == pytest.approx(work, abs=2)


@settings(max_examples=20, deadline=None)
@given(width=st.integers(1, 64), more=st.integers(0, 64), layers=st.integers(1, 48))
def test_a_larger_rung_never_asks_for_less(grid: Grid, width: int, more: int, layers: int):
    rungs = [f"bloom-{16 * w}x{layers}" for w in (width, width + more)]
    study = copy.deepcopy(PARAMS) | {"models": list(dict.fromkeys(rungs))}
    path = grid.params.with_name("rungs.yaml")
    path.write_text(yaml.safe_dump(study))
    both = Grid(load_study(path), path)
    small, large = (next(b for b in both.jobs() if b.model == rung) for rung in rungs)
    assert parameters(both, rungs[0]) <= parameters(both, rungs[1])
    assert memory_mb(both, small) <= memory_mb(both, large)


def test_time_has_a_floor_and_a_ceiling(grid: Grid):
    assert runtime_minutes(grid, block(grid, "bloom-16x1", 0)) == START_MINUTES
    assert START_MINUTES < runtime_minutes(grid, block(grid, "bloom-512x8")) < LONGEST_MINUTES
    assert runtime_minutes(grid, block(grid, T5)) <= LONGEST_MINUTES
