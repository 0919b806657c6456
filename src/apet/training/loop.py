"""The one training loop: it knows θ, an objective of θ, and data, and no method's or task's name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from apet.config import Training
from apet.evaluation import Encoded, Objective, Score
from apet.tuning import TunedPLM

HEAD = "head"
"""Among the parts that are trained: a classification head's numbers, which are no part of θ."""


@dataclass(frozen=True)
class Trained:
    """theta: flat, of the step that was best on validation, and the head's numbers at that step (none without one).

    losses: (step, mean training loss since the last one).
    """

    theta: Tensor
    head: Tensor
    rate: float
    best_step: int
    validation: Score
    losses: list[tuple[int, float]]
    outcome: str

    @property
    def parts(self) -> list[Tensor]:
        """What a TunedPLM takes as its θ."""
        return [part for part in (self.theta, self.head) if len(part)]


@dataclass(frozen=True)
class Splits:
    """What training may see: rows of two splits, and what is asked about them."""

    train: Encoded
    validation: Encoded
    objective: Objective


def train(tuned: TunedPLM, parts: dict[str, Tensor], data: Splits, recipe: Training, seed: int, rate: float) -> Trained:
    """Train θ and keep the step that is best on validation (score, then loss, then the earlier one).

    parts: θ at step 0 by structure, and then the head's numbers where the PLM has a trained head; not changed. seed: of
    the data's order. rate: multiplies every learning rate. `clip` bounds the gradient of all parts together.
    A loss that is not finite ends the run with outcome `diverged` and the best θ so far (θ at step 0 if none).
    """
    if not parts:
        return _untrained(tuned, parts, data, rate, "ok")
    leaves = {name: part.clone().requires_grad_() for name, part in parts.items()}
    theta = list(leaves.values())
    groups = [{"params": [leaf], "lr": rate * getattr(recipe.rates, name)} for name, leaf in leaves.items()]
    optimiser = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, schedule_of(recipe))
    looks = {recipe.steps * (i + 1) // recipe.evaluations for i in range(recipe.evaluations)}
    best, losses, recent = None, [], []
    for step, rows in enumerate(batches(len(data.train), recipe, seed), start=1):
        loss = data.objective.loss(tuned, theta, data.train, rows, recipe.loss)
        if not torch.isfinite(loss):
            break
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theta, recipe.clip)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        recent.append(loss.detach())
        if step in looks:
            losses.append((step, float(torch.stack(recent).mean())))
            recent = []
            seen = data.objective.evaluate(tuned, theta, data.validation).score
            if best is None or (seen.score, -seen.loss) > (best[1].score, -best[1].loss):
                best = step, seen, kept(leaves)
    outcome = "ok" if losses and losses[-1][0] == recipe.steps else "diverged"
    if best is None:
        return _untrained(tuned, parts, data, rate, outcome)
    return Trained(*best[2], rate, best[0], best[1], losses, outcome)


def _untrained(tuned: TunedPLM, parts: dict[str, Tensor], data: Splits, rate: float, outcome: str) -> Trained:
    """θ at step 0: of a plan without parameters, or of a run that diverged before the first look at validation."""
    seen = data.objective.evaluate(tuned, list(parts.values()), data.validation).score
    return Trained(*kept(parts), rate, 0, seen, [], outcome)


def kept(parts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """θ as one vector of its own, and the head's numbers apart from it."""
    theta = [part.detach() for name, part in parts.items() if name != HEAD]
    head = parts[HEAD].detach().clone() if HEAD in parts else torch.zeros(0)
    return (torch.cat(theta) if theta else torch.zeros(0)), head


def batches(rows: int, recipe: Training, seed: int) -> Iterator[Tensor]:
    """Row numbers [batch] of every step: shuffled epochs, one after another, without a seam."""
    generator = torch.Generator().manual_seed(seed)
    queue = torch.empty(0, dtype=torch.long)
    for _ in range(recipe.steps):
        while len(queue) < recipe.batch:
            queue = torch.cat((queue, torch.randperm(rows, generator=generator)))
        yield queue[: recipe.batch]
        queue = queue[recipe.batch :]


def schedule_of(recipe: Training) -> Callable[[int], float]:
    """Factor of the learning rate before each step: a linear warm-up, then constant, or linear to zero."""
    warm = max(1, round(recipe.warmup * recipe.steps))

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 1.0 if recipe.schedule == "constant" else (recipe.steps - step) / max(1, recipe.steps - warm)

    return factor
