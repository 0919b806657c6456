"""Estimated costs of a study's cells, in total, by PLM and by task: work, time and bytes on disk. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from apet.models.ladder import LadderModel
from apet.study.cell_record import METRICS
from apet.study.cells import Cell
from apet.study.grid import Grid
from apet.study.paths import ResultPaths
from apet.study.resolve import sizes
from apet.study.resources import NUMBER_BYTES, CostModel, Speed, split_rows
from apet.study.status import read_run

ROW_BYTES, TOKEN_BYTES, RECORD_BYTES = 20, 3, 20_000
"""Bytes on disk of a predicted row, of a generated token, and of a cell's plans and records."""


@dataclass(frozen=True)
class Cost:
    """Cost of some cells."""

    cells: int = 0
    done: int = 0
    replicates: int = 0
    trainings: int = 0
    tokens: int = 0
    """Tokens read in training."""
    flops: float = 0
    """FLOPs of training and evaluation."""
    cpu_hours: float = 0
    gpu_hours: float = 0
    theta_bytes: int = 0
    """Bytes on disk of θ, all replicates."""
    record_bytes: int = 0
    """Bytes on disk of predictions and records."""

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(Cost)))


class CostEstimate:
    """The estimated costs of a study's cells.

    Args:
        grid: The study.
        speed: Throughput to assume for PLMs without a finished cell.
        root: Folder that contains data/, models/ and results/.

    Raises:
        ConfigError: A PLM cannot do one of its tasks.
        BudgetError: A placement cannot meet a budget on a PLM.
    """

    def __init__(self, grid: Grid, speed: Speed, root: Path = Path()):
        self.grid, self.speed, self.root = grid, speed, root
        self.results = ResultPaths(root / "results")
        self.model = CostModel(grid, sizes(grid))
        self.model.rows = split_rows(grid, root)
        self.measured = self._measured()
        self.costs = {cell: self._cost(cell) for cell in grid.cells}

    def total(self, cells: Iterable[Cell] | None = None) -> Cost:
        """Return the sum over some cells; by default over all."""
        return sum((self.costs[cell] for cell in (self.costs if cells is None else cells)), Cost())

    def by(self, key: str) -> dict[str, Cost]:
        """Return the sums over the cells of each `model` or each `task`."""
        sums: dict[str, Cost] = {}
        for cell, cost in self.costs.items():
            name = getattr(cell, key)
            sums[name] = sums.get(name, Cost()) + cost
        return sums

    @property
    def pending(self) -> Cost:
        """The cost of the cells that are not done."""
        return self.total(cell for cell, cost in self.costs.items() if not cost.done)

    def plm_bytes(self, model: str) -> int:
        """Return the bytes of a PLM's weights on disk."""
        source = self.grid.models[model]
        dtype = "bfloat16" if isinstance(source, LadderModel) else source.dtype
        return self.model.sizes[model]["num_params"] * NUMBER_BYTES[dtype]

    def memory_mb(self) -> dict[str, int]:
        """Return by PLM the memory that its largest training job requests, in MB."""
        largest: dict[str, int] = {}
        for job in self.grid.jobs():
            largest[job.model] = max(largest.get(job.model, 0), self.model.memory_mb(job))
        return largest

    def pretraining_hours(self) -> dict[str, float]:
        """Return the CPU hours of each ladder model that is still to be pretrained."""
        missing = [
            model for model in self.grid.pretrained_models if not (self.root / self.grid.plm_record(model)).is_file()
        ]
        return {model: self.model.pretraining_flops(model) / self.speed.cpu_flops / 3600 for model in missing}

    def record(self) -> dict[str, Any]:
        """Return the whole estimate as plain values."""
        memory = self.memory_mb()
        models = {
            model: asdict(cost) | {"plm_bytes": self.plm_bytes(model), "memory_mb": memory[model]}
            for model, cost in self.by("model").items()
        }
        return {
            "study": self.grid.study.study,
            "jobs": len(self.grid.jobs()),
            "total": asdict(self.total()) | {"plm_bytes": sum(map(self.plm_bytes, self.grid.models))},
            "pending": asdict(self.pending),
            "pretraining_cpu_hours": self.pretraining_hours(),
            "models": models,
            "tasks": {task: asdict(cost) for task, cost in self.by("task").items()},
            "assumed": asdict(self.speed) | {"rows": self.model.rows},
            "measured": {model: {"gpu": on_gpu, "flops": flops} for model, (on_gpu, flops) in self.measured.items()},
        }

    def _cost(self, cell: Cell) -> Cost:
        model, replicates = self.model, cell.num_plans * cell.num_seeds
        flops = model.flops(cell)
        on_gpu, flops_per_second = self.measured.get(cell.model) or model.throughput(cell.model, self.speed)
        hours = flops / flops_per_second / 3600
        row_bytes = ROW_BYTES + self.grid.tasks[cell.task].max_new_tokens * TOKEN_BYTES
        return Cost(
            cells=1,
            done=(self.results.cells / cell.path / METRICS).is_file(),
            replicates=replicates,
            trainings=model.trainings(cell),
            tokens=model.tokens(cell),
            flops=flops,
            cpu_hours=0 if on_gpu else hours,
            gpu_hours=hours if on_gpu else 0,
            theta_bytes=replicates * model.trainable_params(cell) * NUMBER_BYTES["float32"],
            record_bytes=RECORD_BYTES + replicates * model.rows[cell.task]["test"] * row_bytes,
        )

    def _measured(self) -> dict[str, tuple[bool, float]]:
        """`throughput` of PLMs with finished cells: their FLOPs over the seconds in their run records."""
        sums: dict[tuple[str, bool], list[float]] = {}
        for cell in self.grid.cells:
            run = read_run(self.results.runs / f"{cell.path}.json") or {}
            on_gpu = run.get("device", "cpu") != "cpu"
            if seconds := run.get("seconds" if on_gpu else "cpu_seconds"):
                total = sums.setdefault((cell.model, on_gpu), [0, 0])
                total[0] += self.model.flops(cell)
                total[1] += seconds
        return {model: (on_gpu, flops / seconds) for (model, on_gpu), (flops, seconds) in sums.items()}
