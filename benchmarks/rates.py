"""Speed of training and evaluation on one PLM: rows per second, share of the matrix rate, time per generated token.

Training steps, evaluation and plain matrix products alternate in one process with one thread, so that other load
affects all of them. Results are medians over rounds, in CPU seconds.

    python benchmarks/rates.py --plm models/bloom-64x4-… --data data/tasks/bbc_topics-… \
        --written data/tasks/bbc_titles-…
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from apet.config.study_config import LearningRates, TrainingConfig
from apet.evaluation import EncodedSplit
from apet.evaluation.generation import GENERATION_BATCH_SIZE, generate
from apet.models.loading import load_plm
from apet.placement import Budget, MethodSizes, make_plan, resolve
from apet.training.cell import CellInputs
from apet.training.loop import TrainingState, batches
from apet.training.runtime import keep_freed_memory, make_deterministic
from apet.tuning import TunedPLM, initial_theta, split_by_structure

SIDE = 1024
"""Of the square matrices whose product is the machine's rate."""


@dataclass(frozen=True)
class Round:
    """Seconds a row in training and in evaluation; products a second (FLOP/s) of a step and of the machine."""

    training: float
    evaluation: float
    step_rate: float
    machine_rate: float


def main() -> None:
    args = arguments()
    make_deterministic()
    keep_freed_memory()
    plm = load_plm(args.plm, args.plm.name)
    recipe = TrainingConfig(
        **{
            "loss": "label_words",
            "max_steps": 10**6,
            "batch_size": args.batch,
            "max_length": args.length,
            "lr_scheduler_type": "constant",
        },
        **{
            "warmup_ratio": 0.0,
            "num_evals": 1,
            "max_grad_norm": 1.0,
            "gradient_checkpointing": False,
            "lr_multipliers": (1.0,),
        },
        learning_rates=LearningRates(*[1e-4] * 6),
    )
    for placement, budget in (("lora", "@own"), ("uniform", "@lora"), ("full", "@own")):
        rounds = measured(CellInputs.from_folder(plm, args.data, args.length), recipe, placement, budget, args)
        report(args.plm.name, placement, rounds)
    if args.written:
        written(CellInputs.from_folder(plm, args.written, args.length), args)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plm", type=Path, required=True, help="a PLM's folder")
    parser.add_argument("--data", type=Path, required=True, help="a prepared classification task's folder")
    parser.add_argument("--written", type=Path, help="a prepared generation task's folder")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10, help="training steps a round (default: 10)")
    parser.add_argument("--rows", type=int, default=160, help="rows evaluated a round (default: 160)")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=36, help="most tokens of a row")
    return parser.parse_args()


def tuned_with(bench: CellInputs, placement: str, budget: str) -> tuple[TunedPLM, dict[str, torch.Tensor]]:
    """The PLM with a placement's units in it, and θ by structure, at step 0."""
    inventory, methods = bench.plm.inventory, MethodSizes()
    size = resolve(Budget.parse(budget), placement, inventory, methods)
    plan = make_plan(inventory, placement, size, 1, methods)
    parts = split_by_structure(plan, initial_theta(plan, 1, bench.plm.model.get_input_embeddings().weight))
    if bench.head_size:
        parts["head"] = torch.zeros(bench.head_size)
    return TunedPLM(bench.plm, plan), parts


def measured(
    bench: CellInputs, recipe: TrainingConfig, placement: str, budget: str, args: argparse.Namespace
) -> list[Round]:
    """Rounds of a few steps, an evaluation of the first training rows, and plain matrix products."""
    tuned, parts = tuned_with(bench, placement, budget)
    train, objective = bench.data.train, bench.data.objective
    shown = first_rows(train, args.rows)
    order = batches(train.lengths, recipe, seed=1)
    with tuned:
        run = TrainingState.initial(tuned, parts, recipe, 1.0)

        def steps(count: int) -> None:
            for rows in islice(order, count):
                run.optimizer_step(objective.loss(tuned, run.parameters, train, rows, recipe.loss), 1.0)

        counter = FlopCounterMode(display=False)
        with counter:
            steps(args.steps)
        products = counter.get_total_flops() / args.steps
        rounds = []
        for _ in range(args.rounds):
            step = seconds(lambda: steps(args.steps)) / args.steps
            seen = seconds(lambda: objective.evaluate(tuned, run.parameters, shown)) / len(shown)
            rounds.append(Round(step / recipe.batch_size, seen, products / step, machine_rate()))
    return rounds


def first_rows(data: EncodedSplit, count: int) -> EncodedSplit:
    """A split's first rows."""
    return replace(data, **{name: getattr(data, name)[:count] for name in ("names", "ids", "lengths", "labels")})


def machine_rate() -> float:
    """FLOP/s of a product of two large matrices."""
    one, other = torch.randn(2, SIDE, SIDE)
    torch.mm(one, other)
    return 5 * 2 * SIDE**3 / seconds(lambda: [torch.mm(one, other) for _ in range(5)])


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process."""
    start = time.process_time()
    work()
    return time.process_time() - start


def median(rounds: Sequence[Round], of: Callable[[Round], float]) -> float:
    return statistics.median(map(of, rounds))


def report(name: str, placement: str, rounds: Sequence[Round]) -> None:
    training, evaluation = median(rounds, lambda r: 1 / r.training), median(rounds, lambda r: 1 / r.evaluation)
    ratio = median(rounds, lambda r: r.training / r.evaluation)
    share = median(rounds, lambda r: r.step_rate / r.machine_rate)
    print(
        f"{name} {placement:8} {training:7.0f} rows/s trained, {evaluation:7.0f} read, {ratio:.2f} × as many;"
        f" a step reaches {100 * share:.0f} % of {median(rounds, lambda r: r.machine_rate) / 1e9:.0f} GFLOP/s"
    )


def written(bench: CellInputs, args: argparse.Namespace) -> None:
    """Time per token of greedy answers, all rows writing to the end."""
    tuned, parts = tuned_with(bench, "lora", "@own")
    test, longest = bench.test, bench.task["max_new_tokens"]
    shown = first_rows(test, GENERATION_BATCH_SIZE)
    never, rates = -1, []
    with tuned, tuned.merged_for_inference(list(parts.values())):
        for _ in range(args.rounds):
            spent = seconds(lambda: generate(tuned, list(parts.values()), shown, never, longest))
            rates.append(spent / (len(shown) * longest))
    token = 1e3 * statistics.median(rates)
    print(f"{bench.plm.name} writes {len(shown)} rows at a time, {token:.2f} ms for each token of each")


if __name__ == "__main__":
    main()
