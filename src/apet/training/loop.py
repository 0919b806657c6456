"""The one training loop: it knows θ, a function from θ to logits, and data, and no method's name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from apet.config import Training
from apet.evaluation import Encoded, Score, predict, score
from apet.tuning import TunedPLM


@dataclass(frozen=True)
class Trained:
    """theta: flat, of the step that was best on validation. losses: (step, mean training loss since the last one)."""

    theta: Tensor
    rate: float
    best_step: int
    validation: Score
    losses: list[tuple[int, float]]
    outcome: str


@dataclass(frozen=True)
class Splits:
    """What training may see: rows of two splits, the label words [labels], the size of the vocabulary."""

    train: Encoded
    validation: Encoded
    words: Tensor
    vocabulary: int

    def targets(self, loss: str) -> tuple[Tensor, Tensor]:
        """The words [k] whose logits the loss compares, and which of them is right in each training row [n].

        labels: the label words alone. vocabulary: every word, as the published code does.
        """
        if loss == "labels":
            return self.words, self.train.labels
        return torch.arange(self.vocabulary), self.words[self.train.labels]


def train(tuned: TunedPLM, parts: dict[str, Tensor], data: Splits, recipe: Training, seed: int, rate: float) -> Trained:
    """Train θ and keep the step that is best on validation (score, then loss, then the earlier one).

    parts: θ at step 0 by structure; not changed. seed: of the data's order. rate: multiplies every learning rate.
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
    words, targets = data.targets(recipe.loss)
    best, losses, recent = None, [], []
    for step, rows in enumerate(batches(len(data.train), recipe, seed), start=1):
        loss = F.cross_entropy(tuned(theta, *data.train.batch(rows), words).float(), targets[rows])
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
            seen = score(predict(tuned, theta, data.validation, data.words), data.validation.labels)
            if best is None or (seen.score, -seen.loss) > (best[1].score, -best[1].loss):
                best = step, seen, flat(theta)
    outcome = "ok" if losses and losses[-1][0] == recipe.steps else "diverged"
    if best is None:
        return _untrained(tuned, parts, data, rate, outcome)
    return Trained(best[2], rate, best[0], best[1], losses, outcome)


def _untrained(tuned: TunedPLM, parts: dict[str, Tensor], data: Splits, rate: float, outcome: str) -> Trained:
    """θ at step 0: of a plan without parameters, or of a run that diverged before the first look at validation."""
    theta = list(parts.values())
    seen = score(predict(tuned, theta, data.validation, data.words), data.validation.labels)
    return Trained(flat(theta), rate, 0, seen, [], outcome)


def flat(theta: list[Tensor]) -> Tensor:
    """θ as one vector of its own."""
    return torch.cat([part.detach() for part in theta]) if theta else torch.zeros(0)


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
