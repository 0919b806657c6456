"""Interrupted cells resume from checkpoints to the same bytes."""

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
from apet.training.checkpoint import MAX_WRITE_SHARE, CellCheckpoint
from apet.training.loop import TrainerCallback, TrainingState, train
from apet.tuning import TunedPLM
from lab import Lab, train_and_signal
from toy_cells import CONFIG, INPUTS, cell, contents, start

OFTEN = ("--checkpoint-interval", "0.02")
SEED, SIGNALS = 7, 3
MACHINE = {"machine": "here"}
SPEC = cell(num_plans=2, num_seeds=1, training=replace(CONFIG, max_steps=12, lr_multipliers=(0.3, 1.0)))
STEPS = 3 * 12


class CountingProgress(CellProgress):
    """Progress that counts steps, and sends its process SIGTERM in one of them."""

    def __init__(self, signal_at: int = 0) -> None:
        super().__init__("toy", 1)
        self.taken, self.signal_at = 0, signal_at

    def step(self, *args: object) -> None:
        self.taken += 1
        if self.taken == self.signal_at:
            os.kill(os.getpid(), signal.SIGTERM)


def attempt(
    folder: Path, signal_at: int = 0, identity: str = "this", machine=None, interval: float = 1e9
) -> CountingProgress:
    """Train the cell in this process, with the checkpoint `folder`/checkpoint and the result `folder`/cell."""
    progress, signals = CountingProgress(signal_at), SignalHandler()
    checkpoint = CellCheckpoint(folder / "checkpoint", identity, machine or MACHINE, signals, interval)
    callbacks = JobCallbacks(checkpoint, progress, None, folder / "logs")
    with signals.install(), signals.deferred():
        train_cell(SPEC, INPUTS, folder / "cell", callbacks)
    return progress


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("uninterrupted") / "cell"
    train_cell(SPEC, INPUTS, folder)
    return contents(folder)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    lab = Lab(tmp_path_factory.mktemp("lab"))
    lab.train("uninterrupted", lab.cells["uniform"])
    return lab


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_train_command_killed_repeatedly_writes_the_same_bytes(lab, number):
    draw, one, name = random.Random(SEED), lab.cells["uniform"], f"after-{number.name}"
    statuses = [train_and_signal(lab, name, one, number, draw.uniform(0, 0.3), *OFTEN) for _ in range(SIGNALS)]
    assert set(statuses) == {-signal.SIGKILL if number == signal.SIGKILL else 75}, lab.output()
    lab.train(name, one)
    assert lab.contents(name, one) == lab.contents("uninterrupted", one)
    assert lab.output().count(f"resuming from {name}/checkpoints") >= SIGNALS - 1
    assert lab.checkpoint_times(name, one) == {}


@pytest.mark.parametrize("step", [1, 5, 12, 13, 30, STEPS - 1, STEPS])
def test_train_cell_after_a_signal_resumes_at_the_same_step(tmp_path, uninterrupted, step):
    with pytest.raises(Interrupted, match="SIGTERM"):
        attempt(tmp_path, signal_at=step)
    assert not (tmp_path / "cell").exists()
    assert attempt(tmp_path).taken == STEPS - step
    assert contents(tmp_path / "cell") == uninterrupted


def test_train_cell_with_a_signal_in_every_step_writes_the_same_bytes(tmp_path, uninterrupted):
    for _ in range(STEPS):
        with pytest.raises(Interrupted):
            attempt(tmp_path, signal_at=1)
    attempt(tmp_path)
    assert contents(tmp_path / "cell") == uninterrupted


def test_checkpoint_of_a_short_cell_is_not_written(tmp_path):
    attempt(tmp_path, interval=60.0)
    assert not (tmp_path / "checkpoint").exists()


@pytest.mark.parametrize("damage", ["cut", "flipped", "record", "empty"])
def test_checkpoint_that_is_corrupt_is_reported_and_ignored(tmp_path, uninterrupted, capfd, damage):
    with pytest.raises(Interrupted):
        attempt(tmp_path, signal_at=30)
    for path in (tmp_path / "checkpoint").iterdir():
        content = bytearray(path.read_bytes())
        if damage == "flipped":
            content[-1] ^= 1
        elif damage == "record":
            place = content.index(b"losses") + 13
            content[place] = ord("8") if content[place] == ord("7") else ord("7")
        path.write_bytes({"cut": content[:-5], "empty": b""}.get(damage, content))
    assert attempt(tmp_path).taken == STEPS
    assert "corrupt checkpoint, ignored" in capfd.readouterr().err
    assert contents(tmp_path / "cell") == uninterrupted


def test_checkpoint_of_another_cell_is_reported_and_ignored(tmp_path, uninterrupted, capfd):
    with pytest.raises(Interrupted):
        attempt(tmp_path, signal_at=30, identity="another")
    assert attempt(tmp_path).taken == STEPS
    assert "checkpoint of another cell, PLM or data" in capfd.readouterr().err
    assert contents(tmp_path / "cell") == uninterrupted


def test_checkpoint_of_another_machine_type_is_used_with_a_warning(tmp_path, capfd):
    with pytest.raises(Interrupted):
        attempt(tmp_path, signal_at=30, machine={"machine": "there"})
    assert attempt(tmp_path).taken == STEPS - 30
    assert "another machine type" in capfd.readouterr().err


def test_training_state_restored_at_any_step_gives_the_same_result():
    """Steps with and without an evaluation, the last step, and divergence with a non-finite loss."""
    plan, parts = start()

    class SaveOrRestore(TrainerCallback):
        def __init__(self, states: list, at: int | None) -> None:
            self.states, self.at = states, at

        def on_train_begin(self, state: TrainingState) -> None:
            if self.at is not None:
                state.load_state_dict(self.states[self.at])

        def on_step_end(self, state: TrainingState) -> None:
            if self.at is None:
                self.states.append(cloned(state.state_dict()))

    with TunedPLM(INPUTS.plm, plan) as tuned:
        for rate, outcome in ((1.0, "ok"), (1e20, "diverged")):
            config, states = replace(CONFIG, max_steps=8, max_grad_norm=1e15 if outcome == "diverged" else 1.0), []
            first = train(tuned, parts, INPUTS.data, config, 1, rate, SaveOrRestore(states, None))
            assert first.outcome == outcome
            for at in range(len(states)):
                resumed = train(tuned, parts, INPUTS.data, config, 1, rate, SaveOrRestore(states, at))
                assert torch.equal(resumed.theta, first.theta)
                assert (resumed.losses, resumed.best_step, resumed.num_steps) == (
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


def test_train_does_not_use_the_global_random_state():
    """A checkpoint does not hold the state of PyTorch's generator, so training must not use it."""
    plan, parts = start()
    with TunedPLM(INPUTS.plm, plan) as tuned:
        thetas = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            before = torch.get_rng_state()
            thetas.append(train(tuned, parts, INPUTS.data, replace(CONFIG, max_steps=8), 1, 1.0).theta)
            assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*thetas)


def test_checkpoint_load_returns_the_saved_value(tmp_path):
    value = {
        "a": [torch.arange(3), {"b": torch.tensor(2.5)}, torch.zeros(0)],
        "half": torch.ones(2, 2, dtype=torch.bfloat16),
        "numbers": [1, 0.1 + 0.2, None, True, "ä", math.inf],
    }
    CellCheckpoint(tmp_path, "id", MACHINE, SignalHandler(), 0.0).save("name", lambda: value)
    loaded = CellCheckpoint(tmp_path, "id", MACHINE, SignalHandler()).load("name")
    assert loaded["numbers"] == value["numbers"]
    assert torch.equal(loaded["a"][0], value["a"][0]) and loaded["a"][1]["b"].item() == 2.5 and len(loaded["a"][2]) == 0
    assert torch.equal(loaded["half"], value["half"]) and loaded["half"].dtype == torch.bfloat16
    assert CellCheckpoint(tmp_path, "id", MACHINE, SignalHandler()).load("other") is None


def test_checkpoint_that_is_slow_to_write_is_written_less_often(tmp_path):
    checkpoint = CellCheckpoint(tmp_path, "id", MACHINE, SignalHandler(), 0.0)
    checkpoint.save_running("name", lambda: {"a": torch.zeros(3_000_000)})
    written = checkpoint.next_write
    checkpoint.save_running("name", lambda: pytest.fail("it was written again at once"))
    assert checkpoint.next_write == written
    assert 0 < MAX_WRITE_SHARE < 1


def test_prune_archives_checkpoints_of_other_studies_and_restore_returns_them(tmp_path):
    grid = SimpleNamespace(cells=[SPEC], tasks={}, models={}, pretrained_models={})
    other = SimpleNamespace(cells=[replace(SPEC, seed=2)], tasks={}, models={}, pretrained_models={})
    for spec in (SPEC, *other.cells):
        for root, name in (("checkpoints", f"{spec.path}/plan0.seed0.safetensors"), ("failed", f"{spec.path}.json")):
            path = tmp_path / "results" / root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")
    archived = f"results/checkpoints/{other.cells[0].path}"
    assert prune(grid, tmp_path) == [archived]
    assert [p.stem for p in tmp_path.glob("results/failed/*/*/*.json")] == [SPEC.path.rpartition("/")[2]]
    assert (tmp_path / "results/checkpoints" / SPEC.path).is_dir() and not (tmp_path / archived).exists()
    assert restore(other, tmp_path) == [archived]
    assert (tmp_path / archived / "plan0.seed0.safetensors").exists()
