"""Measured costs of cells: bytes, memory, FLOPs, and times of training steps and of inference.

Times differ between runs, and a machine is faster at one moment than at another. So the cells take turns in one
process, and a time is compared only with those of the same round. Costs do not depend on the values of θ, which stays
at step 0.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from apet.core.arithmetic import cpu_name
from apet.evaluation import ClassificationObjective, EncodedSplit, GenerationObjective, generate, predict
from apet.models.loading import PLM, load_plm
from apet.placement import PLACEMENTS, Budget, Plan, resolve
from apet.study.cells import Cell
from apet.study.measurements import Measurement
from apet.training.cell import CellInputs, plan_of, replicate_name, tensors_of
from apet.training.loop import HEAD, TrainingState, batches, flatten
from apet.training.runtime import keep_freed_memory, machine_type, make_deterministic
from apet.tuning import TunedPLM, initial_theta_by_structure, tune

ROUNDS, EXAMPLES = 5, 16
"""Rounds, and test rows that a cell reads in each."""


def measure(measurement: Measurement, project: Path, device: str = "cpu", rounds: int = ROUNDS) -> dict[str, Any]:
    """Measure the costs of cells of one PLM and one task.

    Args:
        measurement: the cells.
        project: project directory, with the folders data/ and models/.
        device: `cpu` or `cuda`.
        rounds: number of rounds.

    Returns:
        The record: model, task, cells, conditions, and `methods` with the costs of each cell: `trainable_params`,
        `saved_bytes`, `peak_memory_mb` (10⁶ bytes; None if nothing is trained), `inference_flops` (of one example,
        merged), and lists with one entry per round, in milliseconds: `train_ms` of a step (empty if nothing is
        trained), `inference_ms` of one example with the tuned parts in place, and `merged_ms`.

    Raises:
        ModelError: the PLM cannot be loaded.
        DataError: the prepared task is missing or corrupt.
    """
    make_deterministic(device)
    keep_freed_memory()
    cells = measurement.cells
    plm, data = load_plm(project / cells[0].plm_folder, measurement.model, device=device), cells[0].data_folder
    lengths = {cell.training.max_length for cell in cells}
    inputs = {length: CellInputs.from_folder(plm, project / data, length) for length in lengths}
    methods = [Method.of(cell, inputs[cell.training.max_length]) for cell in cells]
    # Counts come first: they execute all code once, so that no time includes a first execution.
    costs = [method.counts() for method in methods]
    for number in range(rounds):
        for method, cost in zip(methods, costs, strict=True):
            for name, milliseconds in method.times(number).items():
                cost[name].append(round(milliseconds, 6))
    return {
        "model": measurement.model,
        "task": measurement.task,
        "cells": [cell.path for cell in cells],
        "rounds": rounds,
        "examples": len(methods[0].examples),
        "clock": "wall" if plm.device.type == "cuda" else "CPU time of one thread",
        "memory": "allocated on the GPU" if plm.device.type == "cuda" else "tensors, counted by PyTorch's profiler",
        "host": platform.node(),
        "processor": cpu_name(),
        **machine_type(plm.dtype, plm.device),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "methods": costs,
    }


@dataclass(frozen=True)
class Method:
    """One cell to measure, with plan 0 and seed 0."""

    cell: Cell
    inputs: CellInputs
    plan: Plan

    @classmethod
    def of(cls, cell: Cell, inputs: CellInputs) -> Method:
        """Make the plan of a cell."""
        budget = resolve(Budget.parse(cell.budget), cell.placement, inputs.plm.inventory, cell.methods)
        return cls(cell, inputs, plan_of(cell, inputs, budget, 0))

    @cached_property
    def examples(self) -> EncodedSplit:
        """The first test rows."""
        test = self.inputs.test
        return replace(test, row_ids=test.row_ids[:EXAMPLES], ids=test.ids[:EXAMPLES], lengths=test.lengths[:EXAMPLES])

    def counts(self) -> dict[str, Any]:
        """Return the costs that are counted, and empty lists for times."""
        return {
            "placement": self.cell.placement,
            "budget": self.cell.budget,
            "trainable_params": self.plan.budget,
            "saved_bytes": self._saved_bytes(),
            "peak_memory_mb": self._peak_memory(),
            "inference_flops": self._flops(),
            "train_ms": [],
            "inference_ms": [],
            "merged_ms": [],
        }

    def times(self, number: int) -> dict[str, float]:
        """Return the milliseconds of a round, by name. Its training rows are those of all cells with equal batches."""
        parameters, config, found = self._parameters(), self.cell.training, {}
        first, second = islice(batches(self.inputs.data.train.lengths, config, number), 2)
        with self._tuned() as tuned:
            if parameters:
                state = TrainingState.initial(tuned, parameters, config, 1.0)
                self._step(tuned, state, first)  # it allocates the optimizer's state
                found["train_ms"] = self._milliseconds(lambda: self._step(tuned, state, second))
            theta = tuned.distribute(list(parameters.values()))
            found["inference_ms"] = self._milliseconds(lambda: self._answer(tuned, theta)) / len(self.examples)
            with tuned.merged_for_inference(theta):
                found["merged_ms"] = self._milliseconds(lambda: self._answer(tuned, theta)) / len(self.examples)
        return found

    def _parameters(self) -> dict[str, Tensor]:
        """Return what a training starts from: θ by structure, and the classification head."""
        plm, head_size = self.inputs.plm, self.inputs.head_size
        theta = initial_theta_by_structure(plm, self.plan, self.cell.seed_of("start", 0, 0))
        return theta | ({HEAD: torch.zeros(head_size)} if head_size else {})

    def _tuned(self) -> TunedPLM:
        return tune(self.inputs.plm, self.plan, self.cell.training.gradient_checkpointing)

    def _step(self, tuned: TunedPLM, state: TrainingState, rows: Tensor) -> None:
        """Take a training step with a learning rate of 0, at which no training diverges."""
        data, kind = self.inputs.data, self.cell.training.loss
        state.optimizer_step(data.objective.loss(tuned, state.parameters, data.train, rows, kind), 0.0)

    def _answer(self, tuned: TunedPLM, theta: Sequence[Tensor]) -> None:
        objective = self.inputs.data.objective
        if isinstance(objective, ClassificationObjective):
            predict(tuned, theta, self.examples, objective.trie)
        else:
            assert isinstance(objective, GenerationObjective)
            generate(tuned, theta, self.examples, objective.end_ids[0], objective.max_new_tokens)

    def _milliseconds(self, work: Callable[[], None]) -> float:
        """Return the time of a call, on the CPU without the time of waiting for a core."""
        on_gpu = self.inputs.plm.device.type == "cuda"
        clock = time.perf_counter if on_gpu else time.process_time
        synchronize = torch.cuda.synchronize if on_gpu else lambda: None
        synchronize()
        start = clock()
        work()
        synchronize()
        return 1000 * (clock() - start)

    def _saved_bytes(self) -> int:
        """Bytes of θ, plan, chosen scalars and head, as in the files of a cell with one replicate."""
        name, (theta, head) = replicate_name(0, 0), flatten(self._parameters())
        plan = json.dumps({name: self.plan.record()}, indent=2, ensure_ascii=False) + "\n"
        tensors = [{name: theta}, *([{name: head}] if len(head) else [])]
        if self.cell.placement in PLACEMENTS.informed:
            tensors.append({f"plan0/{site}": indices for site, indices in tensors_of(self.plan).items()})
        return len(plan.encode()) + sum(len(save(file, {"format": "pt"})) for file in tensors)

    def _peak_memory(self) -> float | None:
        """Peak of tensor bytes in two training steps on the longest rows, the PLM included, in MB."""
        parameters, config = self._parameters(), self.cell.training
        rows = self.inputs.data.train.lengths.argsort(descending=True, stable=True)[: config.batch_size]

        def work() -> None:
            with self._tuned() as tuned:
                state = TrainingState.initial(tuned, parameters, config, 1.0)
                for _ in range(2):  # the second has the optimizer's state from the start
                    self._step(tuned, state, rows)

        return peak_bytes(work, self.inputs.plm) / 1e6 if parameters else None

    def _flops(self) -> float:
        """FLOPs of the matrix products of one example, with everything merged that can be."""
        theta = list(self._parameters().values())
        with self._tuned() as tuned:
            theta = tuned.distribute(theta)
            with tuned.merged_for_inference(theta), FlopCounterMode(display=False) as counter:
                self._answer(tuned, theta)
        return counter.get_total_flops() / len(self.examples)


def peak_bytes(work: Callable[[], None], plm: PLM) -> int:
    """Return the peak of tensor bytes during a call, with those of the PLM.

    On a GPU, PyTorch's allocator knows the peak. On the CPU, its profiler reports every allocation and release of the
    allocator of tensors, also inside operations. The memory of a process is no substitute: it includes libraries and
    freed pages, and grows only.

    Args:
        work: the call.
        plm: the PLM, which is already loaded.

    Returns:
        Bytes.
    """
    if plm.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(plm.device)
        work()
        return torch.cuda.max_memory_allocated(plm.device)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or each start and stop is a line on standard error
    with torch.autograd.profiler.profile(use_kineto=True, profile_memory=True) as profiler:
        work()
    assert profiler.kineto_results is not None
    events = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    storages = {tensor.untyped_storage() for tensor in (*plm.model.parameters(), *plm.model.buffers())}
    frozen = {storage.data_ptr(): storage.nbytes() for storage in storages}
    return sum(frozen.values()) + max(accumulate(changes), default=0)
