"""The one training loop: it knows θ, an objective of θ, and data, and no method's or task's name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice, pairwise
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from apet.config.study_config import TrainingConfig
from apet.evaluation import EncodedSplit, Objective, Score
from apet.tuning import TunedPLM, gather

HEAD = "head"
"""Among the parts that are trained: a classification head's numbers, which are no part of θ."""

EXPLODED = 100.0
"""A loss above so many times the first step's (or 1 nat, where that is more) has exploded."""


@dataclass(frozen=True)
class TrainingResult:
    """theta: flat, of the step that was best on validation, and the head's numbers at that step (none without one).

    losses: (step, mean training loss since the last one). num_steps: taken. outcome: `ok` or `diverged`. stopped: what
    ended the run before its last step, `patience` or `divergence`; None where it took all.
    """

    theta: Tensor
    head: Tensor
    lr_multiplier: float
    best_step: int
    validation: Score
    losses: list[tuple[int, float]]
    num_steps: int
    stopped: str | None

    @property
    def outcome(self) -> str:
        return "diverged" if self.stopped == "divergence" else "ok"

    @property
    def parts(self) -> list[Tensor]:
        """What a TunedPLM takes as its θ."""
        return [part for part in (self.theta, self.head) if len(part)]

    def state_dict(self) -> dict[str, Any]:
        """All of it as numbers and tensors, from which `of` makes it again."""
        return vars(self) | {"validation": asdict(self.validation)}

    @classmethod
    def from_state_dict(cls, values: Mapping[str, Any]) -> TrainingResult:
        return cls(**{**values, "validation": Score(**values["validation"])})


@dataclass(frozen=True)
class TrainingData:
    """What training may see: rows of two splits, and what is asked about them."""

    train: EncodedSplit
    validation: EncodedSplit
    objective: Objective


@dataclass
class TrainingState:
    """One training at one rate: all that the loop works on, and all that must be kept to go on to the same bytes.

    theta: the trained parts by name, as leaves. best: θ and the head's numbers at the best look (at step 0 before the
    first). losses: one a step so far, so their number is the step; the order of the data and the schedule are
    functions of seed and step, and nothing else is drawn. evals: (step, score on validation).
    """

    recipe: TrainingConfig
    theta: dict[str, Tensor]
    optimizer: torch.optim.Optimizer | None
    best: tuple[Tensor, Tensor]
    losses: list[float] = field(default_factory=list)
    evals: list[tuple[int, Score]] = field(default_factory=list)

    @classmethod
    def start(cls, tuned: TunedPLM, parts: Mapping[str, Tensor], recipe: TrainingConfig, rate: float) -> TrainingState:
        """At step 0. Every group of the optimiser has its highest learning rate as `peak`."""
        leaves = tuned.leaves(parts)
        peaks = {name: rate * getattr(recipe.learning_rates, name.partition(".")[0]) for name in leaves}
        groups = [{"params": [leaf], "peak": peaks[name]} for name, leaf in leaves.items()]
        optimiser = torch.optim.AdamW(groups, weight_decay=0.0, fused=True) if groups else None
        return cls(recipe, leaves, optimiser, flat(parts))

    @property
    def step(self) -> int:
        return len(self.losses)

    @property
    def parts(self) -> list[Tensor]:
        """What a TunedPLM takes as its θ."""
        return list(self.theta.values())

    @property
    def diverged(self) -> bool:
        """Whether the last step's loss is not finite, or has exploded."""
        last, first = (self.losses[-1], self.losses[0]) if self.losses else (0.0, 0.0)
        return not math.isfinite(last) or last > EXPLODED * max(1.0, first)

    @property
    def stopped(self) -> str | None:
        """What ended the run before its last step."""
        patience = self.recipe.early_stopping_patience
        if patience and self.looks and len(self.looks) - 1 - self.looks.index(self.best_eval) >= patience:
            return "patience"
        return "divergence" if self.diverged else None

    @property
    def is_over(self) -> bool:
        return not self.theta or self.step == self.recipe.max_steps or self.stopped is not None

    @property
    def best_eval(self) -> tuple[int, Score]:
        """By score, then by loss, then the earlier one."""
        return max(self.looks, key=lambda look: (look[1].score, -look[1].loss))

    @property
    def moments(self) -> dict[Tensor, Any]:
        """What the optimiser knows of each leaf; nothing where there are none."""
        return self.optimizer.state if self.optimizer is not None else {}

    def optimizer_step(self, loss: Tensor, factor: float) -> None:
        """One step down the gradient of a loss, which is not taken where the loss says that the run has diverged."""
        self.losses.append(loss.item())
        if self.diverged:
            return
        assert self.optimizer is not None  # without leaves the run is over before
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parts, self.recipe.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        self.optimizer.step()
        self.optimizer.zero_grad()

    def record_eval(self, seen: Score) -> None:
        """Write down the score on validation, and keep θ if it is the best so far. With a loss that is not finite, the
        run has diverged at this step.
        """
        if not math.isfinite(seen.loss):
            self.losses[-1] = seen.loss
            return
        self.looks.append((self.step, seen))
        if self.best_eval is self.looks[-1]:
            self.best = flat(self.theta)

    def curve(self) -> list[tuple[int, float]]:
        """(step, mean training loss since the last one) at every look."""
        edges = [0, *(step for step, _ in self.looks if step)]
        return [(end, fmean(self.losses[start:end])) for start, end in pairwise(edges)]

    def state_dict(self) -> dict[str, Any]:
        """Numbers and tensors from which `restore` goes on."""
        return {
            "theta": {name: leaf.detach() for name, leaf in self.theta.items()},
            "optimiser": {name: dict(self.moments[leaf]) for name, leaf in self.theta.items()},
            "best": list(self.best),
            "losses": self.losses,
            "looks": [[step, asdict(seen)] for step, seen in self.looks],
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the run, begun alike, that `state` was taken of."""
        for name, leaf in self.theta.items():
            leaf.copy_(state["theta"][name])
            self.moments[leaf] = {key: x.to(leaf.device) for key, x in state["optimiser"][name].items()}
        self.best = tuple(state["best"])
        self.losses = list(state["losses"])
        self.looks = [(step, Score(**seen)) for step, seen in state["looks"]]


class TrainerCallback:
    """Who goes along with a run: told when it begins, where it may be set further, and after every step.

    A context manager, for what must be closed however the run ends.
    """

    def __enter__(self) -> TrainerCallback:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def on_train_begin(self, run: TrainingState) -> None:
        """At step 0."""

    def on_step_end(self, run: TrainingState) -> None:
        """After a step, and the look that belongs to it."""


def train(
    tuned: TunedPLM,
    parts: Mapping[str, Tensor],
    data: TrainingData,
    recipe: TrainingConfig,
    seed: int,
    rate: float,
    watch: TrainerCallback = TrainerCallback(),  # noqa: B008 (it holds nothing)
) -> TrainingResult:
    """Train θ and keep the step that is best on validation (score, then loss, then the earlier one).

    parts: θ at step 0 by structure, and then the head's numbers where the PLM has a trained head; not changed. seed: of
    the data's order. rate: multiplies every learning rate. `clip` bounds the gradient of all parts together.
    A loss that is not finite or has exploded ends the run with outcome `diverged` and the best θ so far (θ at step 0 if
    none); so does `patience`, so many looks in a row without a better one, with outcome `ok`.

    A look at validation is one piece of work: a run that is killed in it takes it again, from the last step kept.
    """
    run, objective = TrainingState.start(tuned, parts, recipe, rate), data.objective
    watch.on_train_begin(run)
    factor, looks = schedule_of(recipe), eval_steps(recipe)
    order = islice(batches(data.train.lengths, recipe, seed), run.step, None)
    while not run.is_over:
        rows = next(order)
        run.optimizer_step(objective.loss(tuned, run.parts, data.train, rows, recipe.loss), factor(run.step))
        if run.step in looks and not run.diverged:
            run.record_eval(objective.evaluate(tuned, run.parts, data.validation).score)
        watch.on_step_end(run)
    if not run.looks:  # nothing to train, or it diverged before the first look: θ at step 0
        begun = tuned.distribute([part for part in run.best if len(part)])
        run.looks.append((0, objective.evaluate(tuned, begun, data.validation).score))
    return TrainingResult(*run.best, rate, *run.best_eval, run.curve(), run.step, run.stopped)


def flat(parts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """θ as one vector of its own, and the head's numbers apart from it."""
    return gather([part for name, part in parts.items() if name != HEAD]), gather(
        [parts[HEAD]] if HEAD in parts else []
    )


def eval_steps(recipe: TrainingConfig) -> set[int]:
    """The steps after which validation is looked at, the last one among them."""
    return {recipe.max_steps * (i + 1) // recipe.num_evals for i in range(recipe.num_evals)}


def batches(lengths: Tensor, recipe: TrainingConfig, seed: int) -> Iterator[Tensor]:
    """Row numbers [batch] of every step: shuffled epochs, one after another, without a seam, of rows of lengths [n].

    `buckets` batches are drawn at a time, cut by length and taken in random order, so that little padding is computed.
    """
    generator = torch.Generator().manual_seed(seed)
    queue = torch.empty(0, dtype=torch.long)
    while True:
        while len(queue) < recipe.batch_size * recipe.bucket_factor:
            queue = torch.cat((queue, torch.randperm(len(lengths), generator=generator)))
        drawn, queue = queue.split(
            (recipe.batch_size * recipe.bucket_factor, len(queue) - recipe.batch_size * recipe.bucket_factor)
        )
        drawn = drawn[lengths[drawn].argsort(stable=True)].view(recipe.bucket_factor, recipe.batch_size)
        yield from drawn[torch.randperm(recipe.bucket_factor, generator=generator)]


def schedule_of(recipe: TrainingConfig) -> Callable[[int], float]:
    """Factor of the learning rate before each step: a linear warm-up, then constant, or linear to zero."""
    warm = max(1, round(recipe.warmup_ratio * recipe.max_steps))

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return (
            1.0
            if recipe.lr_scheduler_type == "constant"
            else (recipe.max_steps - step) / max(1, recipe.max_steps - warm)
        )

    return factor
