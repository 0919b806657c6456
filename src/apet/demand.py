"""What a job asks a scheduler for: memory and time, estimated from the PLM and from the block's size. No torch.

Both are first guesses, for a job that gets too little keeps the cells it has finished and is given more.
"""

from __future__ import annotations

from apet.grid import Block, Cell, Grid
from apet.placement import Budget
from apet.plms.ladder import Rung
from apet.plms.registry import devices_of

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


def devices(grid: Grid, block: Block) -> int:
    """How many devices of one machine, and processes, train the block."""
    return devices_of(grid.models[block.model])


def program(devices: int) -> str:
    """The beginning of a command line that runs `apet` in a process for each of so many devices."""
    if devices == 1:
        return "apet"
    # --multi_gpu is the launcher's word for several processes, with or without GPUs; port 0: any that is free.
    return (
        f"accelerate launch --multi_gpu --num_machines 1 --num_processes {devices} --main_process_port 0"
        " --mixed_precision no --dynamo_backend no --module apet.cli"
    )


def memory_mb(grid: Grid, block: Block) -> int:
    """Memory in MB (10⁶ bytes) of a job that trains the block: its PLM, and the largest θ of its cells, of which each
    device has its part; and the libraries in every process.
    """
    theta = max(_theta(cell, parameters(grid, block.model)) for cell in block.cells)
    others = (devices(grid, block) - 1) * LIBRARIES_MB
    return pretraining_mb(grid, block.model) + others + theta * NUMBER_BYTES // 10**6


def minutes(grid: Grid, block: Block) -> int:
    """Time in minutes of a job that trains the block, at most LONGEST_MINUTES.

    A step costs 6 operations for every parameter and token: 2 forward, 4 backward (arXiv:2001.08361, section 2.1).
    """
    size = parameters(grid, block.model)
    tokens = sum(_tokens(cell) for cell in block.cells)
    return _minutes(6 * size * tokens, size)


def pretraining_mb(grid: Grid, model: str) -> int:
    """Memory in MB of a job that pretrains a rung, or loads a PLM."""
    found = grid.models[model]
    if isinstance(found, Rung):
        return LIBRARIES_MB + parameters(grid, model) * NUMBER_BYTES // 10**6
    known = found.memory_gb or (-(-found.parameters * 4 // 10**9) if found.parameters else UNKNOWN_GB)
    return LIBRARIES_MB + known * 1000


def pretraining_minutes(grid: Grid, model: str) -> int:
    """Time in minutes of a job that pretrains a rung."""
    size = parameters(grid, model)
    return _minutes(6 * size * grid.recipe.max_tokens, size)


def parameters(grid: Grid, model: str) -> int:
    """Parameters of a PLM, about: 12 × width² a block, and the word embeddings."""
    found = grid.models[model]
    if isinstance(found, Rung):
        return 12 * found.layers * found.width**2 + grid.recipe.vocab_size * found.width
    return found.parameters or UNKNOWN_GB * 10**9 // 4


def _theta(cell: Cell, size: int) -> int:
    """The length of a cell's θ as far as no inventory is needed: methods' own counts are within a PLM's memory hint."""
    budget = Budget.parse(cell.budget)
    own = cell.placement if budget.placement == "own" else budget.placement
    share = 1 if own == "full" else budget.share or 0
    return budget.count or int(share * size)


def _tokens(cell: Cell) -> int:
    """Tokens that all of a cell's trainings read."""
    training = cell.training
    trainings = cell.draws * cell.reruns * len(training.rate_grid)
    return trainings * training.steps * training.batch * training.length


def _minutes(operations: float, size: int) -> int:
    estimate = START_MINUTES + operations / (CORE if size <= SMALL else GPU) / 60
    return min(LONGEST_MINUTES, round(estimate))
