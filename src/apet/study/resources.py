"""What a job asks a scheduler for: memory and time, estimated from the PLM and from the block's size. No torch.

Both are first guesses, for a job that gets too little keeps the cells it has finished and is given more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from apet.data.prepare import RECORD as TASK
from apet.data.prepare import read_task
from apet.models.ladder import LadderModel
from apet.models.registry import devices_of, head_of
from apet.placement import Budget
from apet.study.cell_record import METRICS
from apet.study.grid import Cell, Grid, Job
from apet.study.paths import ResultPaths
from apet.study.resolve import sizes
from apet.study.status import read_run

LIBRARIES_MB = 2000
"""Memory of a process that has loaded the libraries and a prepared task."""

UNKNOWN_GB = 16
"""Memory of a PLM whose size only fetching it can tell."""

NUMBER_BYTES = 16
"""One number of θ: itself, its gradient, and two moments of the optimiser, 4 bytes each."""

START_MINUTES = 10
"""Until the first step: libraries, PLM and data over a busy file system."""

LONGEST_MINUTES = 24 * 60
"""Few clusters let a job run longer. A block that takes longer needs several jobs, each going on where one ended."""

SMALL, CORE, GPU = 10**8, 2e10, 2e13
"""PLMs up to `SMALL` parameters are taken to run on one core, larger ones on a GPU, at these operations a second: a
fifth of what either was seen to do."""


def devices(grid: Grid, block: Job) -> int:
    """How many devices of one machine, and processes, train the block."""
    return devices_of(grid.models[block.model])


def launch_command(devices: int) -> str:
    """The beginning of a command line that runs `apet` in a process for each of so many devices."""
    if devices == 1:
        return "apet"
    # --multi_gpu is the launcher's word for several processes, with or without GPUs; port 0: any that is free.
    return (
        f"accelerate launch --multi_gpu --num_machines 1 --num_processes {devices} --main_process_port 0"
        " --mixed_precision no --dynamo_backend no --module apet.cli.app"
    )


def memory_mb(grid: Grid, block: Job) -> int:
    """Memory in MB (10⁶ bytes) of a job that trains the block: its PLM, and the largest θ of its cells, of which each
    device has its part; and the libraries in every process.
    """
    theta = max(_theta(cell, parameters(grid, block.model)) for cell in block.cells)
    others = (devices(grid, block) - 1) * LIBRARIES_MB
    return pretraining_mb(grid, block.model) + others + theta * NUMBER_BYTES // 10**6


def runtime_minutes(grid: Grid, block: Job) -> int:
    """Time in minutes of a job that trains the block, at most LONGEST_MINUTES.

    A step costs 6 operations for every parameter and token: 2 forward, 4 backward (arXiv:2001.08361, section 2.1).
    """
    size = parameters(grid, block.model)
    tokens = sum(_tokens(cell) for cell in block.cells)
    return _minutes(6 * size * tokens, size)


def pretraining_mb(grid: Grid, model: str) -> int:
    """Memory in MB of a job that pretrains a rung, or loads a PLM."""
    found = grid.models[model]
    if isinstance(found, LadderModel):
        return LIBRARIES_MB + parameters(grid, model) * NUMBER_BYTES // 10**6
    known = found.memory_gb or (-(-found.num_parameters * 4 // 10**9) if found.num_parameters else UNKNOWN_GB)
    return LIBRARIES_MB + known * 1000


def pretraining_minutes(grid: Grid, model: str) -> int:
    """Time in minutes of a job that pretrains a rung."""
    size = parameters(grid, model)
    return _minutes(6 * size * grid.recipe.max_tokens, size)


def parameters(grid: Grid, model: str) -> int:
    """Parameters of a PLM, about: 12 × width² a block, and the word embeddings."""
    found = grid.models[model]
    if isinstance(found, LadderModel):
        return 12 * found.layers * found.width**2 + grid.recipe.vocab_size * found.width
    return found.num_parameters or UNKNOWN_GB * 10**9 // 4


def _theta(cell: Cell, size: int) -> int:
    """The length of a cell's θ as far as no inventory is needed: methods' own counts are within a PLM's memory hint."""
    budget = Budget.parse(cell.budget)
    own = cell.placement if budget.placement == "own" else budget.placement
    share = 1 if own == "full" else budget.share or 0
    return budget.count or int(share * size)


def _tokens(cell: Cell) -> int:
    """Tokens that all of a cell's trainings read."""
    training = cell.training
    trainings = cell.num_plans * cell.num_seeds * len(training.lr_multipliers)
    return trainings * training.max_steps * training.batch_size * training.max_length


def _minutes(operations: float, size: int) -> int:
    estimate = START_MINUTES + operations / (CORE if size <= SMALL else GPU) / 60
    return min(LONGEST_MINUTES, round(estimate))


CORE = 5e10
"""Operations a second of a CPU core: rungs of 0.2 to 1.2 million parameters were seen to train at 4.4 to 6.6e10."""

GPU = 1e14
"""Operations a second of a GPU: a third of the 312e12 that an A100 is sold with (bfloat16). Assumed, not measured."""

GPU_FROM = 1e7
"""Parameters of a PLM. The ladder's rungs are below."""

NUMBER = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of one number."""

ROW, WORD, RECORD = 20, 3, 20_000
"""Bytes on disk: of one predicted row, of one token that it wrote, and of a cell's plans and records."""


@dataclass(frozen=True)
class Speed:
    """Operations a second of one CPU core and of one GPU, and the parameters from which on a PLM is taken to run on a
    GPU; where no run record tells better.
    """

    core: float = CORE
    gpu: float = GPU
    gpu_from: float = GPU_FROM


@dataclass(frozen=True)
class Cost:
    """What some cells take. tokens: read in training. operations: of training and evaluation. theta, files: bytes of
    every replicate's θ, and of predictions and records.
    """

    cells: int = 0
    done: int = 0
    replicates: int = 0
    trainings: int = 0
    tokens: int = 0
    operations: float = 0
    cpu_hours: float = 0
    gpu_hours: float = 0
    theta: int = 0
    files: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(Cost)))


class CostEstimate:
    """The costs of a study's cells. root: where data/, models/ and results/ are. Raises as `check_study`."""

    def __init__(self, grid: Grid, speed: Speed, root: Path = Path()):
        self.grid, self.speed, self.root = grid, speed, root
        self.results = ResultPaths(root / "results")
        self.sizes = sizes(grid)
        self.rows = {task: self._rows(task) for task in grid.tasks}
        self.measured = self._measured()
        self.costs = {cell: self._cost(cell) for cell in grid.cells}

    def total(self, of: Iterable[Cell] | None = None) -> Cost:
        """The sum over some cells; all by default."""
        return sum((self.costs[cell] for cell in (self.costs if of is None else of)), Cost())

    def by(self, key: str) -> dict[str, Cost]:
        """The sums over each model's cells, or each task's."""
        found: dict[str, Cost] = {}
        for cell, cost in self.costs.items():
            name = getattr(cell, key)
            found[name] = found.get(name, Cost()) + cost
        return found

    @property
    def left(self) -> Cost:
        """What is still to be done."""
        return self.total(cell for cell, cost in self.costs.items() if not cost.done)

    def plm_bytes(self, model: str) -> int:
        """A PLM's weights on disk."""
        found = self.grid.models[model]
        return self.sizes[model]["parameters"] * NUMBER["bfloat16" if isinstance(found, LadderModel) else found.dtype]

    def memory_mb(self) -> dict[str, int]:
        """Memory that a PLM's largest training job asks for, in MB."""
        found: dict[str, int] = {}
        for block in self.grid.jobs():
            found[block.model] = max(found.get(block.model, 0), memory_mb(self.grid, block))
        return found

    def pretraining(self) -> dict[str, float]:
        """CPU hours of each rung that is not there yet, at 6 operations a number and token: all words are predicted."""
        missing = [
            rung for rung in self.grid.pretrained_models if not (self.root / self.grid.plm_record(rung)).is_file()
        ]
        spent = {rung: 6 * self.sizes[rung]["parameters"] * self.grid.recipe.max_tokens for rung in missing}
        return {rung: operations / self.speed.core / 3600 for rung, operations in spent.items()}

    def _cost(self, cell: Cell) -> Cost:
        replicates = cell.num_plans * cell.num_seeds
        operations = self.operations(cell)
        on_gpu, rate = self._rate(cell.model)
        hours = operations / rate / 3600
        written = self.grid.tasks[cell.task].max_new_tokens * WORD
        return Cost(
            cells=1,
            done=(self.results.cells / cell.path / METRICS).is_file(),
            replicates=replicates,
            trainings=self.trainings(cell),
            tokens=self.tokens(cell),
            operations=operations,
            cpu_hours=0 if on_gpu else hours,
            gpu_hours=hours if on_gpu else 0,
            theta=replicates * self.tuned(cell) * NUMBER["float32"],
            files=RECORD + replicates * self.rows[cell.task]["test"] * (ROW + written),
        )

    def tuned(self, cell: Cell) -> int:
        """Numbers of a cell's θ; a trained head is no part of it."""
        return self.sizes[cell.model]["tunable"][f"{cell.placement} {cell.budget}"]

    def trainings(self, cell: Cell) -> int:
        """One a replicate and rate; none where there is neither a θ nor a head to train."""
        trains = self.tuned(cell) or head_of(self.grid.models[cell.model]) == "classification"
        return cell.num_plans * cell.num_seeds * len(cell.training.lr_multipliers) if trains else 0

    def tokens(self, cell: Cell) -> int:
        """Tokens that all of a cell's trainings read."""
        return self.trainings(cell) * cell.training.max_steps * cell.training.batch_size * self._length(cell)

    def operations(self, cell: Cell) -> float:
        """Floating-point operations of a cell's trainings, their looks at validation, and its test."""
        size, tuned = self.sizes[cell.model]["non_embedding"], self.tuned(cell)
        replicates, rows = cell.num_plans * cell.num_seeds, self.rows[cell.task]
        looks = self.trainings(cell) * cell.training.num_evals
        # A written answer is generated, and its loss measured too.
        passes = 2 if self.grid.tasks[cell.task].type == "generation" else 1
        read = passes * self._length(cell) * (looks * rows["validation"] + replicates * rows["test"])
        return ((4 if tuned else 2) * size + 2 * tuned) * self.tokens(cell) + 2 * size * read

    def _length(self, cell: Cell) -> int:
        """Tokens of one row: its text at the longest, its answer where one is written, a prompt's virtual tokens."""
        task = self.grid.tasks[cell.task]
        virtual = cell.methods.num_virtual_tokens if cell.placement == "prompt" else 0
        return min(cell.training.max_length, task.max_length) + task.max_new_tokens + virtual

    def _rows(self, task: str) -> dict[str, int]:
        """Rows of each split: as prepared, or at most what the study allows; 0 where neither says it."""
        folder = self.root / self.grid.task_folder(task)
        prepared = read_task(folder, self.grid.task_digests[task])["rows"] if (folder / TASK).is_file() else {}
        return {side: prepared.get(side) or most or 0 for side, most in asdict(self.grid.study.max_samples).items()}

    def _rate(self, model: str) -> tuple[bool, float]:
        """Whether a PLM's cells run on a GPU, and the operations a second."""
        if model in self.measured:
            return self.measured[model]
        on_gpu = self.sizes[model]["parameters"] >= self.speed.gpu_from
        return on_gpu, self.speed.gpu if on_gpu else self.speed.core

    def _measured(self) -> dict[str, tuple[bool, float]]:
        """As `_rate`, for PLMs of which cells have run: their operations over their seconds, from the run records."""
        spent: dict[tuple[str, bool], list[float]] = {}
        for cell in self.grid.cells:
            run = read_run(self.results.runs / f"{cell.path}.json") or {}
            on_gpu = run.get("device", "cpu") != "cpu"
            if seconds := run.get("seconds" if on_gpu else "cpu_seconds"):
                sums = spent.setdefault((cell.model, on_gpu), [0, 0])
                sums[0] += self.operations(cell)
                sums[1] += seconds
        return {model: (on_gpu, done / seconds) for (model, on_gpu), (done, seconds) in spent.items()}

    def record(self) -> dict[str, Any]:
        """All of it as plain values."""
        memory = self.memory_mb()
        models = {
            model: asdict(cost) | {"plm_bytes": self.plm_bytes(model), "memory_mb": memory[model]}
            for model, cost in self.by("model").items()
        }
        return {
            "study": self.grid.study.study,
            "jobs": len(self.grid.jobs()),
            "total": asdict(self.total()) | {"plm_bytes": sum(map(self.plm_bytes, self.grid.models))},
            "left": asdict(self.left),
            "pretraining_cpu_hours": self.pretraining(),
            "models": models,
            "tasks": {task: asdict(cost) for task, cost in self.by("task").items()},
            "assumed": asdict(self.speed) | {"rows": self.rows},
            "measured": {model: {"gpu": on_gpu, "rate": rate} for model, (on_gpu, rate) in self.measured.items()},
        }

    def lines(self) -> list[str]:
        """All of it for a person: the whole, by PLM, by task, and what it rests on."""
        total, left, grid = self.total(), self.left, self.grid
        plms = sum(map(self.plm_bytes, grid.models))
        memory = self.memory_mb()
        models = {
            model: [*_cells(cost), _bytes(self.plm_bytes(model)), _bytes(memory[model] * 10**6)]
            for model, cost in self.by("model").items()
        }
        return [
            f"study {grid.study.study}: {total.cells:,} cells ({total.done:,} done), {total.replicates:,} replicates, "
            f"{total.trainings:,} trainings",
            f"jobs   {len(grid.jobs()):,} of training, {len(grid.tasks)} of data, {len(grid.models)} of PLMs",
            f"time   {_hours(total)} in all, {_hours(left)} left; pretraining of rungs that are not there: "
            f"{_of(sum(self.pretraining().values()))} CPU h",
            f"work   {_short(total.tokens)} training tokens, {_short(total.operations)} operations",
            f"disk   PLMs {_bytes(plms)}, θ {_bytes(total.theta)}, predictions and records {_bytes(total.files)}",
            "",
            *_table("PLM", [*COLUMNS, "weights", "memory"], models),
            "",
            *_table("task", COLUMNS, {task: _cells(cost) for task, cost in self.by("task").items()}),
            "",
            *self._assumptions(),
        ]

    def _assumptions(self) -> list[str]:
        unknown = [task for task, rows in self.rows.items() if not rows["validation"] or not rows["test"]]
        said = [
            "operations a token: 4 for each parameter outside the word embeddings (2 where a head alone is trained), "
            "2 for each tuned one",
            f"operations a second, with all the overhead of a step: {self.speed.core:.3g} on a CPU core, and "
            f"{self.speed.gpu:.3g} on a GPU, which PLMs from {self.speed.gpu_from:,.0f} parameters on are taken to get",
            *(f"measured on {model}: {rate:.3g} a second" for model, (_, rate) in sorted(self.measured.items())),
            "texts at their longest, all steps taken; the weights that a job loads and its start are not counted",
        ]
        return said + [f"rows of {', '.join(unknown)} are not known yet: looks at them are not counted"] * bool(unknown)


COLUMNS = ["cells", "done", "trainings", "tokens", "operations", "CPU h", "GPU h", "θ on disk"]


def _cells(cost: Cost) -> list[str]:
    """A row of a table, in the order of COLUMNS."""
    counts = [f"{cost.cells:,}", f"{cost.done:,}", f"{cost.trainings:,}", _short(cost.tokens), _short(cost.operations)]
    return [*counts, _of(cost.cpu_hours), _of(cost.gpu_hours), _bytes(cost.theta)]


def _table(title: str, columns: list[str], rows: Mapping[str, list[str]]) -> list[str]:
    """Names to the left, numbers to the right, each column as wide as it must be."""
    cells = [[title, *columns], *([name, *row] for name, row in rows.items())]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(f"{text:{'>' if n else '<'}{width}}" for n, (text, width) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    ]


def _hours(cost: Cost) -> str:
    return f"{_of(cost.gpu_hours)} GPU h and {_of(cost.cpu_hours)} CPU h"


def _of(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 or not hours else f"{hours:.2g}"


def _short(number: float) -> str:
    return f"{number:.2g}" if number else "0"


def _bytes(number: float) -> str:
    """Bytes in the unit in which they are read best, of powers of 1000."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if number < 1000 or unit == "TB":
            return f"{number:,.0f} {unit}" if number >= 10 or unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    raise AssertionError
