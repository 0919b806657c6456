"""Cost model of a study: FLOPs, time and memory, for requests to a scheduler and for estimates. No torch.

A training token takes 2 FLOPs per parameter forward, 2 backward through the activations, and 2 for the gradient of each
trainable parameter: 4N + 2θ. An evaluated token takes 2N (arXiv:2001.08361, section 2.1), and one that an informed
placement reads 6N. N excludes the embeddings, because an embedding is a lookup and few logits are computed. Texts have
their maximum length, and all steps are taken.
Pretraining computes all logits and trains all parameters: 6 FLOPs per parameter and token.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from apet.data.prepared_files import RECORD as TASK_RECORD
from apet.data.prepared_files import read_task
from apet.models.ladder import LadderModel
from apet.models.registry import devices_of, head_of
from apet.placement import PLACEMENTS
from apet.study.cells import Cell, Job
from apet.study.grid import Grid

CPU_FLOPS = 5e10
"""FLOP/s of a CPU core: measured at 4.4e10 to 6.6e10 on ladder models of 0.2 to 1.2 million parameters."""

GPU_FLOPS = 1e14
"""FLOP/s of a GPU: a third of an A100's nominal 312e12 (bfloat16). Assumed, not measured."""

GPU_MIN_PARAMS = 1e7
"""Parameters from which a PLM is assumed to run on a GPU. All ladder models have fewer."""

NUMBER_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
TRAINED_NUMBER_BYTES = 16
"""Memory of one number of θ: its value, its gradient, and AdamW's two moments, 4 bytes each."""

ACTIVATIONS = 24
"""Numbers of each token, block and hidden dimension that a step stores for its backward pass: 10 to 23, measured with
full fine-tuning and LoRA in every family, on texts of 64 to 256 tokens."""

LIBRARIES_MB = 2000
"""Memory of a process that has loaded the libraries and a prepared task."""

START_MINUTES = 10
"""Minutes before the first step: loading libraries, PLM and data from a busy file system."""

MAX_MINUTES = 24 * 60
"""Few clusters let a job run longer. A longer job is retried, and each attempt resumes from the last checkpoint."""


@dataclass(frozen=True)
class Speed:
    """Assumed throughput, used for PLMs without a finished cell."""

    cpu_flops: float = CPU_FLOPS
    """FLOP/s of one CPU core."""
    gpu_flops: float = GPU_FLOPS
    """FLOP/s of one GPU."""
    gpu_min_params: float | None = GPU_MIN_PARAMS
    """Parameters from which a PLM runs on a GPU. None: there is no GPU."""


def has_gpu() -> bool:
    """Return whether this machine has a GPU, as far as its device files tell: loading PyTorch would take seconds."""
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/kfd").exists()


def local_speed(cpu_flops: float = CPU_FLOPS, gpu_flops: float = GPU_FLOPS) -> Speed:
    """Return the assumed throughput of this machine."""
    return Speed(cpu_flops, gpu_flops, GPU_MIN_PARAMS if has_gpu() else None)


CPU_SAFETY_FACTOR, GPU_SAFETY_FACTOR = 10, 30
"""Requests assume devices that are slower by these factors, because a job that exceeds its time is killed. The factor
of a GPU is larger, because GPU_FLOPS was not measured."""

SCHEDULER_SPEED = Speed(CPU_FLOPS / CPU_SAFETY_FACTOR, GPU_FLOPS / GPU_SAFETY_FACTOR, gpu_min_params=1e8)
"""Throughput assumed for requests. A PLM of less than 1e8 parameters may have to run on a CPU core."""


def launch_command(num_devices: int) -> str:
    """Return the start of a command line that runs `apet` in one process per device."""
    if num_devices == 1:
        return "apet"
    # --multi_gpu means several processes, with or without GPUs; port 0 means any free port.
    return (
        f"accelerate launch --multi_gpu --num_machines 1 --num_processes {num_devices} --main_process_port 0"
        " --mixed_precision no --dynamo_backend no --module apet.cli.app"
    )


class CostModel:
    """FLOPs, tokens and memory of a study's cells and jobs.

    Args:
        grid: The study.
        plm_sizes: By PLM, the record that `apet.study.resolve.sizes` returns and a resolved study contains.
    """

    def __init__(self, grid: Grid, plm_sizes: Mapping[str, Mapping[str, Any]]):
        self.grid, self.sizes = grid, plm_sizes
        # A request must not depend on what is prepared.
        self.rows = dict.fromkeys(grid.tasks, _row_limits(grid))

    def trainable_params(self, cell: Cell) -> int:
        """Return the length of a cell's θ, without a classification head."""
        return self.sizes[cell.model]["trainable_params"][f"{cell.placement} {cell.budget}"]

    def trainings(self, cell: Cell) -> int:
        """Return the number of trainings, none if there is nothing to train."""
        trains = self.trainable_params(cell) or head_of(self.grid.models[cell.model]) == "classification"
        return cell.num_trainings if trains else 0

    def tokens(self, cell: Cell) -> int:
        """Return the number of tokens that all trainings of a cell read."""
        return self.trainings(cell) * cell.training.max_steps * cell.training.batch_size * self._row_tokens(cell)

    def flops(self, cell: Cell) -> float:
        """Return the FLOPs of a cell's trainings, their evaluations on validation rows, and its test."""
        params, theta = self.sizes[cell.model]["non_embedding_params"], self.trainable_params(cell)
        rows = self.rows[cell.task]
        evaluated = self.trainings(cell) * cell.training.num_evals * rows["validation"]
        evaluated += cell.num_plans * cell.num_seeds * rows["test"]
        # An answer is generated, and its loss is computed too.
        passes = 2 if self.grid.tasks[cell.task].type == "generation" else 1
        trained = ((4 if theta else 2) * params + 2 * theta) * self.tokens(cell)
        read = cell.num_plans * cell.methods.num_calibration_samples if PLACEMENTS.informed.get(cell.placement) else 0
        return trained + (2 * passes * evaluated + 6 * read) * params * self._row_tokens(cell)

    def pretraining_flops(self, model: str) -> float:
        """Return the FLOPs of pretraining a ladder model."""
        return 6 * self.sizes[model]["num_params"] * self.grid.recipe.max_tokens

    def throughput(self, model: str, speed: Speed) -> tuple[bool, float]:
        """Return True if a PLM is assumed to run on a GPU, and its FLOP/s."""
        on_gpu = speed.gpu_min_params is not None and self.sizes[model]["num_params"] >= speed.gpu_min_params
        return on_gpu, speed.gpu_flops if on_gpu else speed.cpu_flops

    def hours(self, cells: Iterable[Cell], speed: Speed) -> dict[str, float]:
        """Return the hours that cells need, by device: `CPU core` or `GPU`."""
        hours = {"CPU core": 0.0, "GPU": 0.0}
        for cell in cells:
            on_gpu, flops_per_second = self.throughput(cell.model, speed)
            hours["GPU" if on_gpu else "CPU core"] += self.flops(cell) / flops_per_second / 3600
        return hours

    def plm_memory_mb(self, model: str) -> int:
        """Return the memory of a job that pretrains a ladder model or loads a PLM, in MB (10⁶ bytes)."""
        source, size = self.grid.models[model], self.sizes[model]["num_params"]
        if isinstance(source, LadderModel):
            return LIBRARIES_MB + size * TRAINED_NUMBER_BYTES // 10**6
        return LIBRARIES_MB + 1000 * (source.memory_gb or math.ceil(size * NUMBER_BYTES["float32"] / 10**9))

    def memory_mb(self, job: Job) -> int:
        """Return the memory of a training job in MB: PLM, libraries of each process, largest θ, and activations.

        A plan may need more than θ: the gradient of the PLM. The key `memory_gb` of a PLM includes the activations.

        Args:
            job: The job.

        Returns:
            The memory, which a scheduler is asked for.
        """
        largest = max(map(self.trainable_params, job.cells)) * TRAINED_NUMBER_BYTES
        if any(PLACEMENTS.informed.get(cell.placement) for cell in job.cells):
            largest = max(largest, self.sizes[job.model]["non_embedding_params"] * NUMBER_BYTES["float32"])
        others = (devices_of(self.grid.models[job.model]) - 1) * LIBRARIES_MB
        hint = getattr(self.grid.models[job.model], "memory_gb", None)
        activations = 0 if hint else max(map(self.activation_bytes, job.cells))
        return self.plm_memory_mb(job.model) + others + (largest + activations) // 10**6

    def activation_bytes(self, cell: Cell) -> int:
        """Return the memory of the activations of a cell's step, float32, texts at their maximum length."""
        layers, width = self.sizes[cell.model]["layers"], self.sizes[cell.model]["hidden_size"]
        # With gradient checkpointing, the inputs of all blocks and the activations of one.
        stored = layers + ACTIVATIONS if cell.training.gradient_checkpointing else layers * ACTIVATIONS
        return stored * width * cell.training.batch_size * self._row_tokens(cell) * NUMBER_BYTES["float32"]

    def runtime_minutes(self, job: Job) -> int:
        """Return the time to request for a training job in minutes, at most MAX_MINUTES."""
        return _minutes(sum(map(self.flops, job.cells)), self.throughput(job.model, SCHEDULER_SPEED)[1])

    def pretraining_minutes(self, model: str) -> int:
        """Return the time to request for pretraining a ladder model on a CPU in minutes, at most MAX_MINUTES."""
        return _minutes(self.pretraining_flops(model), SCHEDULER_SPEED.cpu_flops)

    def _row_tokens(self, cell: Cell) -> int:
        """Tokens of one row: its longest text, its answer if one is generated, and the virtual tokens of a prompt."""
        task = self.grid.tasks[cell.task]
        virtual = cell.methods.num_virtual_tokens if cell.placement == "prompt" else 0
        return min(cell.training.max_length, task.max_length) + task.max_new_tokens + virtual


def split_rows(grid: Grid, root: Path = Path()) -> dict[str, dict[str, int]]:
    """Count the rows of each split of a study's tasks.

    Args:
        grid: The study.
        root: Folder that contains data/.

    Returns:
        By task and split the rows that are prepared, or else the study's limit, or 0 if neither is known.
    """
    rows = {}
    for task in grid.tasks:
        folder = root / grid.task_folder(task)
        prepared = read_task(folder, grid.task_digests[task])["rows"] if (folder / TASK_RECORD).is_file() else {}
        rows[task] = {**_row_limits(grid), **prepared}
    return rows


def _row_limits(grid: Grid) -> dict[str, int]:
    """Return the study's limit of rows of each split, 0 without a limit."""
    return {split: limit or 0 for split, limit in asdict(grid.study.max_samples).items()}


def _minutes(flops: float, flops_per_second: float) -> int:
    return min(MAX_MINUTES, START_MINUTES + math.ceil(flops / flops_per_second / 60))
