"""A cell that is killed goes on where it was, and comes out with the bytes of one that never was."""

from __future__ import annotations

import math
import os
import random
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from apet.core.progress import CellProgress
from apet.core.signals import SignalHandler
from apet.errors import Interrupted
from apet.study.archive import prune, restore
from apet.training.callbacks import JobCallbacks
from apet.training.cell import train_cell
from apet.training.checkpoint import SHARE, CellCheckpoint
from apet.training.loop import TrainerCallback, TrainingState, train
from apet.tuning import TunedPLM
from lab import Lab, hit
from test_training import BENCH, RECIPE, cell, contents, start

OFTEN = ("--checkpoint-interval", "0.02")
SEED, HITS = 7, 4
MACHINE = {"machine": "here"}
SPEC = cell(draws=2, reruns=1, training=replace(RECIPE, max_steps=12, lr_multipliers=(0.3, 1.0)))
STEPS = 2 * 2 * 12


class Counting(CellProgress):
    """Counts the steps that are taken, and is hit by a real signal in one of them."""

    def __init__(self, hit_in: int = 0) -> None:
        super().__init__("toy", 1)
        self.taken, self.hit_in = 0, hit_in

    def step(self, *args: object) -> None:
        self.taken += 1
        if self.taken == self.hit_in:
            os.kill(os.getpid(), signal.SIGTERM)


def attempt(folder: Path, hit_in: int = 0, identity: str = "this", machine=None, every: float = 1e9) -> Counting:
    """Train the cell in this process, from what is kept in `folder`, into `folder`/cell."""
    report, stop = Counting(hit_in), SignalHandler()
    kept = CellCheckpoint(folder / "kept", identity, machine or MACHINE, stop, every)
    journal = JobCallbacks(kept, report, None, folder / "logs")
    with stop.install(), stop.deferred():
        train_cell(SPEC, BENCH, folder / "cell", journal)
    return report


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole") / "cell"
    train_cell(SPEC, BENCH, folder)
    return contents(folder)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    made = Lab(tmp_path_factory.mktemp("lab"))
    made.train("whole", made.cells["uniform"])
    return made


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_a_process_hit_again_and_again_gives_the_bytes_of_one_left_alone(lab, number):
    draw, one, name = random.Random(SEED), lab.cells["uniform"], f"hit-{number.name}"
    statuses = [hit(lab, name, one, number, draw.uniform(0, 0.3), *OFTEN) for _ in range(HITS)]
    assert set(statuses) == {-signal.SIGKILL if number == signal.SIGKILL else 75}, lab.said()
    lab.train(name, one)
    assert lab.contents(name, one) == lab.contents("whole", one)
    assert lab.said().count(f"going on from {name}/checkpoints") >= HITS - 1
    assert lab.kept(name, one) == {}


@pytest.mark.parametrize("step", [1, 5, 12, 13, 30, STEPS - 1, STEPS])
def test_a_warning_costs_no_step(tmp_path, whole, step):
    with pytest.raises(Interrupted, match="SIGTERM"):
        attempt(tmp_path, hit_in=step)
    assert not (tmp_path / "cell").exists()
    assert attempt(tmp_path).taken == STEPS - step
    assert contents(tmp_path / "cell") == whole


def test_a_warning_in_every_step_still_ends_in_the_same_bytes(tmp_path, whole):
    for _ in range(STEPS):
        with pytest.raises(Interrupted):
            attempt(tmp_path, hit_in=1)
    attempt(tmp_path)
    assert contents(tmp_path / "cell") == whole


def test_a_short_cell_writes_nothing(tmp_path):
    attempt(tmp_path, every=60.0)
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize("damage", ["cut", "flipped", "record", "empty"])
def test_a_damaged_file_is_said_and_not_trusted(tmp_path, whole, capfd, damage):
    with pytest.raises(Interrupted):
        attempt(tmp_path, hit_in=30)
    for path in (tmp_path / "kept").iterdir():
        content = bytearray(path.read_bytes())
        if damage == "flipped":
            content[-1] ^= 1
        elif damage == "record":
            place = content.index(b"losses") + 13
            content[place] = ord("8") if content[place] == ord("7") else ord("7")
        path.write_bytes({"cut": content[:-5], "empty": b""}.get(damage, content))
    assert attempt(tmp_path).taken == STEPS
    assert "damaged, not used" in capfd.readouterr().err
    assert contents(tmp_path / "cell") == whole


def test_what_another_cell_has_kept_is_said_and_not_used(tmp_path, whole, capfd):
    with pytest.raises(Interrupted):
        attempt(tmp_path, hit_in=30, identity="another")
    assert attempt(tmp_path).taken == STEPS
    assert "kept for another cell, PLM or data" in capfd.readouterr().err
    assert contents(tmp_path / "cell") == whole


def test_what_another_class_of_machine_has_kept_is_used_and_said(tmp_path, capfd):
    with pytest.raises(Interrupted):
        attempt(tmp_path, hit_in=30, machine={"machine": "there"})
    assert attempt(tmp_path).taken == STEPS - 30
    assert "another class of machine" in capfd.readouterr().err


def test_a_run_goes_on_from_any_of_its_steps_alike():
    """After a step, after a look, and after the end: also where the run diverged, whose loss is not finite."""
    plan, parts = start()

    class Jump(TrainerCallback):
        def __init__(self, states: list, at: int | None) -> None:
            self.states, self.at = states, at

        def begin(self, run: TrainingState) -> None:
            if self.at is not None:
                run.load_state_dict(self.states[self.at])

        def step(self, run: TrainingState) -> None:
            if self.at is None:
                self.states.append(cloned(run.state_dict()))

    with TunedPLM(BENCH.plm, plan) as tuned:
        for rate, outcome in ((1.0, "ok"), (1e20, "diverged")):
            recipe, states = replace(RECIPE, max_steps=8, max_grad_norm=1e30 if outcome == "diverged" else 1.0), []
            first = train(tuned, parts, BENCH.data, recipe, 1, rate, Jump(states, None))
            assert first.outcome == outcome
            for at in range(len(states)):
                again = train(tuned, parts, BENCH.data, recipe, 1, rate, Jump(states, at))
                assert torch.equal(again.theta, first.theta)
                assert (again.losses, again.best_step, again.num_steps) == (
                    first.losses,
                    first.best_step,
                    first.num_steps,
                )


def cloned(value):
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: cloned(part) for key, part in value.items()}
    return [cloned(part) for part in value] if isinstance(value, list) else value


def test_training_draws_from_no_state_but_its_seed():
    """What a resumed run could not bring back: PyTorch's own generator is neither read nor moved."""
    plan, parts = start()
    with TunedPLM(BENCH.plm, plan) as tuned:
        found = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            before = torch.get_rng_state()
            found.append(train(tuned, parts, BENCH.data, replace(RECIPE, max_steps=8), 1, 1.0).theta)
            assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*found)


def test_kept_values_come_back_as_they_were(tmp_path):
    value = {
        "a": [torch.arange(3), {"b": torch.tensor(2.5)}, torch.zeros(0)],
        "half": torch.ones(2, 2, dtype=torch.bfloat16),
        "numbers": [1, 0.1 + 0.2, None, True, "ä", math.inf],
    }
    CellCheckpoint(tmp_path, "id", MACHINE, SignalHandler(), 0.0).finished("name", lambda: value)
    found = CellCheckpoint(tmp_path, "id", MACHINE, SignalHandler()).find("name")
    assert found["numbers"] == value["numbers"]
    assert torch.equal(found["a"][0], value["a"][0]) and found["a"][1]["b"].item() == 2.5 and len(found["a"][2]) == 0
    assert torch.equal(found["half"], value["half"]) and found["half"].dtype == torch.bfloat16
    assert CellCheckpoint(tmp_path, "id", MACHINE, SignalHandler()).find("other") is None


def test_writing_takes_a_small_share_of_the_time(tmp_path):
    """Where writing takes long, it waits longer than the time that was asked for."""
    kept = CellCheckpoint(tmp_path, "id", MACHINE, SignalHandler(), 0.0)
    kept.under_way("name", lambda: {"a": torch.zeros(3_000_000)})
    written = kept.next
    kept.under_way("name", lambda: pytest.fail("it was written again at once"))
    assert kept.next == written
    assert 0 < SHARE < 1


def test_prune_archives_checkpoints_of_other_studies_and_restore_brings_them_back(tmp_path):
    grid = SimpleNamespace(cells=[SPEC], tasks={}, models={}, pretrained_models={})
    other = SimpleNamespace(cells=[replace(SPEC, seed=2)], tasks={}, models={}, pretrained_models={})
    for spec in (SPEC, *other.cells):
        for root, name in (("progress", f"{spec.path}/plan0.seed0.safetensors"), ("failed", f"{spec.path}.json")):
            path = tmp_path / "results" / root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
    moved = f"results/checkpoints/{other.cells[0].path}"
    assert prune(grid, tmp_path) == [moved]
    assert [p.stem for p in tmp_path.glob("results/failed/*/*/*.json")] == [SPEC.path.rpartition("/")[2]]
    assert (tmp_path / "results/checkpoints" / SPEC.path).is_dir() and not (tmp_path / moved).exists()
    assert restore(other, tmp_path) == [moved]
    assert (tmp_path / moved / "plan0.seed0.safetensors").exists()
