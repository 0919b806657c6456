"""The training loop. It works on parameters, an objective and data, and is the same for every method and task."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice, pairwise
from statistics import fmean
from typing import Any, Self

import torch
from torch import Tensor

from apet.config.study_config import TrainingConfig
from apet.evaluation import EncodedSplit, Objective, Score
from apet.tuning import TunedPLM, gather

HEAD = "head"
"""Key of a classification head among the trained parameters. All other keys belong to θ."""

EXPLOSION_FACTOR = 100.0
"""Training has diverged if the loss exceeds this multiple of the first step's loss, or of 1 nat if that is larger."""


@dataclass(frozen=True)
class TrainingData:
    """The data that training may see, and the objective on it."""

    train: EncodedSplit
    """Rows to train on."""
    validation: EncodedSplit
    """Rows by which the best step is selected."""
    objective: Objective
    """Loss and evaluation."""


@dataclass(frozen=True)
class TrainingResult:
    """A finished training."""

    theta: Tensor
    """θ at the best step, flat, shape [budget]."""
    head: Tensor
    """The classification head at the best step, flat. Empty if the PLM has none."""
    lr_multiplier: float
    """Factor on all learning rates."""
    best_step: int
    """Step of the best evaluation."""
    validation: Score
    """Score of the best evaluation."""
    losses: list[tuple[int, float]]
    """(step, mean training loss since the previous entry), one for each evaluation."""
    num_steps: int
    """Optimizer steps taken."""
    stopped: str | None
    """`early_stopping` or `divergence` if training ended before its last step, otherwise None."""

    @property
    def outcome(self) -> str:
        """`ok` or `diverged`."""
        return "diverged" if self.stopped == "divergence" else "ok"

    @property
    def parameters(self) -> list[Tensor]:
        """θ and the head as consecutive tensors, without empty ones."""
        return [tensor for tensor in (self.theta, self.head) if len(tensor)]

    def state_dict(self) -> dict[str, Any]:
        """Return all fields as numbers and tensors."""
        return vars(self) | {"validation": asdict(self.validation)}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> TrainingResult:
        """Restore a result from `state_dict`."""
        return cls(**{**state, "validation": Score(**state["validation"])})


@dataclass
class TrainingState:
    """The state of one training.

    `state_dict` is all that a training needs to continue to the same bytes: batches and learning rates are functions of
    seed and step, and nothing else is random.
    """

    config: TrainingConfig
    """Hyperparameters."""
    leaves: dict[str, Tensor]
    """Trained tensors by name."""
    optimizer: torch.optim.Optimizer | None
    """AdamW over the leaves. None if there are none."""
    best: tuple[Tensor, Tensor]
    """θ and head, flat, of the best evaluation. The initial values before the first one."""
    losses: list[float] = field(default_factory=list)
    """Training loss of every step so far, in nats."""
    evals: list[tuple[int, Score]] = field(default_factory=list)
    """(step, score on validation), one for each evaluation."""

    @classmethod
    def initial(
        cls, tuned: TunedPLM, parameters: Mapping[str, Tensor], config: TrainingConfig, lr_multiplier: float
    ) -> TrainingState:
        """Create the state at step 0. A parameter group of the optimizer holds its highest learning rate as `peak`."""
        leaves = tuned.leaves(parameters)
        peaks = {name: lr_multiplier * getattr(config.learning_rates, name.partition(".")[0]) for name in leaves}
        groups = [{"params": [leaf], "peak": peaks[name]} for name, leaf in leaves.items()]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True) if groups else None
        return cls(config, leaves, optimizer, flatten(parameters))

    @property
    def step(self) -> int:
        """Steps taken."""
        return len(self.losses)

    @property
    def parameters(self) -> list[Tensor]:
        """The trained tensors, in the order that a TunedPLM reads them."""
        return list(self.leaves.values())

    @property
    def best_eval(self) -> tuple[int, Score]:
        """The evaluation with the highest score. The lower loss decides ties, then the earlier step."""
        return max(self.evals, key=lambda entry: (entry[1].score, -entry[1].loss))

    @property
    def has_diverged(self) -> bool:
        """True if the last loss is not finite or has exploded."""
        if not self.losses:
            return False
        first, last = self.losses[0], self.losses[-1]
        return not math.isfinite(last) or last > EXPLOSION_FACTOR * max(1.0, first)

    @property
    def stopped(self) -> str | None:
        """`early_stopping`, `divergence` or None."""
        patience = self.config.early_stopping_patience
        if patience and self.evals and len(self.evals) - 1 - self.evals.index(self.best_eval) >= patience:
            return "early_stopping"
        return "divergence" if self.has_diverged else None

    @property
    def is_finished(self) -> bool:
        """True if no step is left."""
        return not self.leaves or self.step == self.config.max_steps or self.stopped is not None

    def optimizer_step(self, loss: Tensor, lr_factor: float) -> None:
        """Record a loss and take one step down its gradient, unless the loss shows divergence.

        Args:
            loss: training loss, a scalar with a gradient.
            lr_factor: factor of the learning-rate schedule for this step.
        """
        self.losses.append(loss.item())
        if self.has_diverged:
            return
        assert self.optimizer is not None  # training without leaves is finished before its first step
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * lr_factor
        self.optimizer.step()
        self.optimizer.zero_grad()

    def record_eval(self, score: Score) -> None:
        """Record a score on validation and save the parameters if it is the best. A non-finite loss is divergence."""
        if not math.isfinite(score.loss):
            self.losses[-1] = score.loss
            return
        self.evals.append((self.step, score))
        if self.best_eval is self.evals[-1]:
            self.best = flatten(self.leaves)

    def loss_curve(self) -> list[tuple[int, float]]:
        """Return (step, mean training loss since the previous evaluation) for each evaluation."""
        edges = [0, *(step for step, _ in self.evals if step)]
        return [(end, fmean(self.losses[start:end])) for start, end in pairwise(edges)]

    @property
    def _moments(self) -> dict[Tensor, Any]:
        """The optimizer's state by leaf."""
        return self.optimizer.state if self.optimizer is not None else {}

    def state_dict(self) -> dict[str, Any]:
        """Return numbers and tensors from which `load_state_dict` restores this state."""
        return {
            "leaves": {name: leaf.detach() for name, leaf in self.leaves.items()},
            "moments": {name: dict(self._moments[leaf]) for name, leaf in self.leaves.items()},
            "best": list(self.best),
            "losses": self.losses,
            "evals": [[step, asdict(score)] for step, score in self.evals],
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of a training with the same configuration and parameters."""
        for name, leaf in self.leaves.items():
            leaf.copy_(state["leaves"][name])
            self._moments[leaf] = {key: x.to(leaf.device) for key, x in state["moments"][name].items()}
        self.best = tuple(state["best"])
        self.losses = list(state["losses"])
        self.evals = [(step, Score(**score)) for step, score in state["evals"]]


class TrainerCallback:
    """Base class of callbacks on one training, which do nothing here.

    A context manager, so that a callback can release resources however training ends.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def on_train_begin(self, state: TrainingState) -> None:
        """Run at step 0. May restore a saved state into `state`."""

    def on_step_end(self, state: TrainingState) -> None:
        """Run after each step and its evaluation."""


def train(
    tuned: TunedPLM,
    parameters: Mapping[str, Tensor],
    data: TrainingData,
    config: TrainingConfig,
    seed: int,
    lr_multiplier: float,
    callback: TrainerCallback = TrainerCallback(),  # noqa: B008 (it has no state)
) -> TrainingResult:
    """Train θ, and a classification head if the PLM has one, and select the step that is best on validation.

    Training ends early with outcome `diverged` if a loss is not finite or explodes, and with outcome `ok` after
    `early_stopping_patience` evaluations without improvement. The result holds the best parameters so far, which are
    the initial ones before the first evaluation.

    Args:
        tuned: the PLM with the plan's units.
        parameters: initial float32 tensors: θ by structure, then the head under `HEAD`. They are not changed.
        data: training and validation rows with their objective.
        config: hyperparameters.
        seed: seed of the order of the training rows.
        lr_multiplier: factor on every learning rate.
        callback: callback on this training.

    Returns:
        The parameters of the best step, its score, and the loss curve.
    """
    state, objective = TrainingState.initial(tuned, parameters, config, lr_multiplier), data.objective
    callback.on_train_begin(state)
    schedule, eval_at = lr_schedule(config), eval_steps(config)
    row_batches = islice(batches(data.train.lengths, config, seed), state.step, None)
    while not state.is_finished:
        rows, lr_factor = next(row_batches), schedule(state.step)
        state.optimizer_step(objective.loss(tuned, state.parameters, data.train, rows, config.loss), lr_factor)
        if state.step in eval_at and not state.has_diverged:
            state.record_eval(objective.evaluate(tuned, state.parameters, data.validation).score)
        callback.on_step_end(state)
    if not state.evals:  # nothing to train, or divergence before the first evaluation
        initial = tuned.distribute([tensor for tensor in state.best if len(tensor)])
        state.evals.append((0, objective.evaluate(tuned, initial, data.validation).score))
    return TrainingResult(*state.best, lr_multiplier, *state.best_eval, state.loss_curve(), state.step, state.stopped)


def flatten(parameters: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return copies of θ and of the head, each as one flat vector."""
    theta = gather([tensor for name, tensor in parameters.items() if name != HEAD])
    return theta, gather([parameters[HEAD]] if HEAD in parameters else [])


def eval_steps(config: TrainingConfig) -> set[int]:
    """Return the steps after which validation is evaluated. They are evenly spaced and include the last step."""
    return {config.max_steps * (i + 1) // config.num_evals for i in range(config.num_evals)}


def batches(lengths: Tensor, config: TrainingConfig, seed: int) -> Iterator[Tensor]:
    """Yield the row numbers of every step, from an endless sequence of shuffled epochs.

    To reduce padding, `bucket_factor` batches are taken from the sequence at a time, formed from rows of similar length
    and yielded in random order. A batch may span two epochs.

    Args:
        lengths: tokens of each training row, shape [n].
        config: hyperparameters, for `batch_size` and `bucket_factor`.
        seed: seed of epochs and of the order of batches.

    Yields:
        Row numbers, shape [batch_size].
    """
    generator = torch.Generator().manual_seed(seed)
    bucket_size = config.batch_size * config.bucket_factor
    queue = torch.empty(0, dtype=torch.long)
    while True:
        while len(queue) < bucket_size:
            queue = torch.cat((queue, torch.randperm(len(lengths), generator=generator)))
        bucket, queue = queue[:bucket_size], queue[bucket_size:]
        bucket = bucket[lengths[bucket].argsort(stable=True)].view(config.bucket_factor, config.batch_size)
        yield from bucket[torch.randperm(config.bucket_factor, generator=generator)]


def lr_schedule(config: TrainingConfig) -> Callable[[int], float]:
    """Make the learning-rate schedule.

    The factor rises linearly to 1 during warm-up. Afterwards it is constant or falls linearly to 0.

    Args:
        config: hyperparameters, for `max_steps`, `warmup_ratio` and `lr_scheduler_type`.

    Returns:
        A function from the steps taken to the learning-rate factor of the next step.
    """
    warmup_steps = max(1, round(config.warmup_ratio * config.max_steps))

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        if config.lr_scheduler_type == "constant":
            return 1.0
        return (config.max_steps - step) / max(1, config.max_steps - warmup_steps)

    return factor
