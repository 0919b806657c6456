"""Cost of each arithmetic mode: CPU time of a training step and of an evaluation.

Each measurement is a separate process, because the instruction sets are fixed before PyTorch loads. Processes of the
three modes alternate; ratios are within a repeat, medians over repeats.

    python benchmarks/arithmetic.py --plm ladder/bloom-64x4 --data data/tasks/bbc_topics-… --repeats 5
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from apet.core.arithmetic import PINS, VARIABLE, cpu_name, instruction_sets

STEPS, ROWS, LENGTH = 40, 160, 36


def measure(plm: Path, data: Path) -> dict[str, float]:
    """Return CPU milliseconds of a step of LoRA, a step of full fine-tuning, and an evaluation of ROWS rows."""
    from rates import measured

    from apet.config.study_config import LearningRates, TrainingConfig
    from apet.models.loading import load_plm
    from apet.training.cell import CellInputs
    from apet.training.runtime import keep_freed_memory, make_deterministic

    make_deterministic()
    keep_freed_memory()
    recipe = TrainingConfig(
        max_steps=10**6, max_length=LENGTH, learning_rates=LearningRates(*[1e-4] * 6), num_evals=1,
        lr_scheduler_type="constant", warmup_ratio=0.0,
    )  # fmt: skip
    bench = CellInputs.from_folder(load_plm(plm, plm.name), data, LENGTH)
    args = argparse.Namespace(steps=STEPS, rows=ROWS, rounds=3)
    found = {}
    for placement in ("lora", "full"):
        rounds = measured(bench, recipe, placement, "@own", args)
        found[placement] = 1e3 * recipe.batch_size * statistics.median(r.training for r in rounds)
    return found | {"evaluation": 1e3 * ROWS * statistics.median(r.evaluation for r in rounds)}


def child(arithmetic: str, args: argparse.Namespace) -> dict[str, float]:
    """Measure in a process with this arithmetic."""
    environment = {key: value for key, value in os.environ.items() if key not in PINS["portable"]}
    command = [sys.executable, __file__, "--plm", str(args.plm), "--data", str(args.data), "--child"]
    options = {"check": True, "capture_output": True, "text": True, "env": {**environment, VARIABLE: arithmetic}}
    return json.loads(subprocess.run(command, **options).stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plm", type=Path, required=True, help="a PLM's folder")
    parser.add_argument("--data", type=Path, required=True, help="a prepared classification task's folder")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args.plm, args.data)))
        return
    repeats = [{name: child(name, args) for name in PINS} for _ in range(args.repeats)]
    print(f"{args.plm.name} on {cpu_name()} ({instruction_sets()['torch']} here), {args.repeats} repeats")
    for work in repeats[0]["portable"]:
        base = statistics.median(repeat["portable"][work] for repeat in repeats)
        ratios = [statistics.median(r[name][work] / r["portable"][work] for r in repeats) for name in PINS]
        listed = ", ".join(f"{name} {ratio:.2f} ×" for name, ratio in zip(PINS, ratios, strict=True))
        print(f"  {work:10} {base:6.1f} ms portable; {listed}")


if __name__ == "__main__":
    main()
