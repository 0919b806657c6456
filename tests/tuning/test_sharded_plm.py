"""A PLM sharded over two processes (gloo, CPU) against one process."""

from __future__ import annotations

import copy
import json
import re
import subprocess
from contextlib import chdir
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.models.bloom import BloomConfig

from apet.cli.app import main
from apet.config.study_config import PretrainingConfig, load_study
from apet.models.inventory import inventory_of_config
from apet.models.ladder import parse_ladder_model
from apet.placement import PLACEMENTS, Budget, Inventory, make_plan, resolve
from apet.study.cell_record import METRICS, PREDICTIONS, THETA
from apet.study.cells import Cell
from apet.study.grid import Grid
from apet.study.resources import launch_command
from apet.tuning import layout
from lab import write_words
from saved import save_plm
from sharded_worker import cases, train_all
from tiny import WORDS
from toy import PARAMS, Checkout

pytestmark = pytest.mark.slow

LAUNCH = launch_command(2).removesuffix("--module apet.cli.app").split()
WORKER = Path(__file__).parent.with_name("sharded_worker.py")
CASES = {name: (inputs, of) for name, inputs, of in cases()}
WITHIN = 1e-4
"""Tolerance in float32, because two processes sum in another order than one."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Train the cells of all cases, by one process and by two."""
    folder = tmp_path_factory.mktemp("sharded")
    done = subprocess.run([*LAUNCH, WORKER, folder / "two"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-5000:]
    train_all(folder / "one")
    return folder / "one", folder / "two"


def moved(of: Cell, inventory: Inventory) -> torch.Tensor:
    """Return a mask of the numbers of θ that have a gradient.

    A key bias cancels in the softmax, so that Adam steps along rounding errors.
    """
    budget = resolve(Budget.parse(of.budget), of.placement, inventory, of.methods)
    counts = torch.ones(budget, dtype=torch.bool)
    if of.placement in PLACEMENTS.informed:  # they choose no key biases
        return counts
    for slot in layout(make_plan(inventory, of.placement, budget, of.seed_of("plan", 0), of.methods)):
        if slot.units.site.name.endswith(".key/bias"):
            counts[slot.start : slot.stop] = False
    return counts


def compare(one: Path, two: Path, of: Cell, inventory: Inventory) -> None:
    """Compare the folders of a cell from one process and from two."""
    counts = moved(of, inventory)
    assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in two.iterdir())
    for name in (path.name for path in one.glob("*.safetensors")):
        single, shared = load_file(one / name), load_file(two / name)
        assert single.keys() == shared.keys()
        for replicate, theta in single.items():
            some = counts if name == THETA else slice(None)
            torch.testing.assert_close(shared[replicate][some], theta[some], atol=WITHIN, rtol=0)
    assert (one / "plans.json").read_bytes() == (two / "plans.json").read_bytes()
    assert pq.read_table(one / PREDICTIONS).equals(pq.read_table(two / PREDICTIONS))
    records = [json.loads((folder / METRICS).read_text()) for folder in (one, two)]
    for single, shared in zip(*(record["replicates"] for record in records), strict=True):
        assert single["plan_digest"] == shared["plan_digest"] and single["best_step"] == shared["best_step"]
        torch.testing.assert_close(*(torch.tensor(r["losses"]) for r in (shared, single)), atol=WITHIN, rtol=0)
        for split in ("validation", "test"):
            assert shared[split]["loss"] == pytest.approx(single[split]["loss"], abs=WITHIN)
            assert shared[split]["score"] == single[split]["score"]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_the_same_cells_as_one(folders, name):
    inputs, of = CASES[name]
    compare(*(folder / name for folder in folders), of, inputs.plm.inventory)


def test_two_processes_generate_the_same_answers_as_one(folders):
    one, two = (json.loads((folder / "answers.json").read_text()) for folder in folders)
    assert one == two
    assert any(len({len(answer) for answer in answers}) > 1 for answers in one.values())  # some end before others


def test_two_processes_twice_write_the_same_bytes(folders):
    first, again = folders[1] / next(iter(CASES)), folders[1] / "again"
    assert {p.name: p.read_bytes() for p in first.iterdir()} == {p.name: p.read_bytes() for p in again.iterdir()}


def test_each_of_two_processes_holds_half_of_the_numbers(folders):
    shares = json.loads((folders[1] / "shares.json").read_text())
    assert len(shares) == 2
    for share in shares:
        assert share["frozen"] == share["theta"] == share["moments"] == pytest.approx(0.5, abs=0.01)
        assert share["gathered"] == [0, 0]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """Make a study of a PLM of the shape of a ladder model, on two devices."""
    checkout = Checkout(tmp_path_factory.mktemp("plm") / "study", wheels=None)
    torch.manual_seed(0)
    values = parse_ladder_model("bloom-32x2").config(PretrainingConfig()) | {"vocab_size": WORDS}
    save_plm(AutoModelForCausalLM.from_config(BloomConfig(**values)), checkout.folder / "plm")
    write_words(checkout.folder)
    study = copy.deepcopy(PARAMS)
    study |= {"models": [{"name": "plm", "source": {"folder": "./plm"}, "num_devices": 2}], "tasks": ["words.yaml"]}
    study["grid"] = [
        {"placements": ["full", "lora"], "budgets": ["@own"]},
        {"placements": ["uniform"], "budgets": [700]},
    ]
    checkout.write(study)
    with chdir(checkout.folder):
        grid = Grid(load_study(Path("params.yaml")), Path("params.yaml"))
        checkout.cells_of_study, checkout.study = grid.cells, f"results/studies/{grid.id[:12]}.json"
        for command in (
            ["resolve", "--out-file", checkout.study],
            ["prepare-task", "--task", "words"],
            ["download-model", "--model", "plm"],
        ):
            assert main(command) == 0
    return checkout


def train(checkout: Checkout, results: str) -> list[str]:
    """Return the arguments of `apet train` for all cells."""
    first, *_ = checkout.cells_of_study
    inputs = ["--model-dir", first.plm_folder, "--data-dir", first.data_folder, "--results-dir", results]
    return ["train", "--resolved", checkout.study, *inputs, *(cell.path for cell in checkout.cells_of_study)]


def test_snakemake_rule_trains_a_ladder_model_on_two_devices(checkout):
    checkout.snakemake("cells", "--printshellcmds")
    output = max((checkout.folder / ".snakemake" / "log").iterdir()).read_text()
    assert f"{launch_command(2)} train" in output
    assert re.search(r"resources: .*\bgpu=2\b", output)
    with chdir(checkout.folder):
        assert main(train(checkout, "alone")) == 0
    roots = [checkout.folder / name for name in ("alone", "results")]
    inventory = inventory_of_config(json.loads((checkout.folder / "plm" / "config.json").read_text()))
    for cell in checkout.cells_of_study:
        compare(*(root / "cells" / cell.path for root in roots), cell, inventory)
        runs = [json.loads((root / "runs" / f"{cell.path}.json").read_text()) for root in roots]
        assert [run["devices"] for run in runs] == [1, 2]


def test_killed_process_is_reported_and_leaves_no_incomplete_cell(checkout):
    done = checkout.run(*LAUNCH, str(WORKER), *train(checkout, "killed"), check=False)
    refused, finished, lost = (cell.path for cell in checkout.cells_of_study)
    assert done.returncode != 0
    # Either the other process raises, or the launcher ends it first.
    assert re.search(f"apet: {lost}: .*another process of this job failed", done.stderr), done.stderr
    root = checkout.folder / "killed"
    assert (root / "cells" / finished / THETA).is_file()
    assert [p.name for p in (root / "cells" / lost).parent.iterdir()] == [Path(finished).name]
    assert json.loads((root / "failed" / f"{refused}.json").read_text())["error"] == "ModelError: refused"
