"""Peak memory of LoRA on one PLM, apet and PEFT with a plain PyTorch loop: `python benchmarks/memory.py FOLDER`.

Both train rank 8 on query and value with AdamW for a few steps of 8 rows × 128 tokens and a loss over the full
vocabulary at the last position, in float32 and bfloat16, with and without gradient checkpointing. Each run is a
separate process with one thread; medians over repeats that alternate between the sides. See README.md.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

RANK, ROWS, LENGTH, STEPS = 8, 8, 128, 2
SIDES = ("apet", "peft", "peft-last")
"""peft-last computes only the logits of the last position, an option of the library that is rarely used."""


@dataclass(frozen=True)
class Run:
    """Resident memory in MB: loaded, before the first step; peak, from then on. seconds: a step."""

    loaded: float
    peak: float
    seconds: float


def resident(key: str) -> float:
    """VmRSS (now) or VmHWM (most since the last reset) of this process, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{key}:"))


def measured(model: Any, train: Callable[[], float]) -> Run:
    """Run `train`, which returns the seconds a step took; the high-water mark counts from its start."""
    gc.collect()
    # Weights of a mapped file are resident only once they have been read.
    for parameter in model.parameters():
        parameter.sum()
    Path("/proc/self/clear_refs").write_text("5")
    loaded = resident("VmRSS")
    seconds = train()
    return Run(loaded, resident("VmHWM"), seconds)


def apet(folder: Path, dtype: str, checkpointing: bool) -> Run:
    """A cell's own training: the loop, its two looks at validation, the best θ kept."""
    import torch

    from apet.config.study_config import LearningRates, TrainingConfig
    from apet.core.records import write_json_record
    from apet.evaluation import ClassificationObjective, EncodedSplit, LabelTrie
    from apet.models.loading import load_plm
    from apet.placement import MethodSizes, make_plan, own_count
    from apet.training.loop import TrainingData, train
    from apet.tuning import TunedPLM, initial_theta, split_by_structure

    with TemporaryDirectory() as snapshot:
        for file in folder.iterdir():
            (Path(snapshot) / file.name).symlink_to(file.resolve())
        write_json_record(Path(snapshot) / "snapshot.json", {"dtype": dtype})
        plm = load_plm(Path(snapshot), "plm")
    methods = MethodSizes(lora_rank=RANK)
    plan = make_plan(plm.inventory, "lora", own_count("lora", plm.inventory, methods), 1, methods)
    parts = split_by_structure(plan, initial_theta(plan, 1, plm.word_embeddings))
    ids = torch.randint(len(plm.word_embeddings), (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))
    rows = EncodedSplit(
        [str(i) for i in range(ROWS)], ids, torch.full((ROWS,), LENGTH), torch.zeros(ROWS, dtype=torch.long)
    )
    rates = LearningRates(**dict.fromkeys(LearningRates.__dataclass_fields__, 1e-3))
    recipe = TrainingConfig("full_vocab", STEPS, ROWS, LENGTH, rates, (1.0,), "constant", 0.0, 2, 1.0, checkpointing)

    def loop() -> float:
        start = time.monotonic()
        with TunedPLM(plm, plan, recipe.gradient_checkpointing) as tuned:
            train(
                tuned,
                parts,
                TrainingData(rows, rows, ClassificationObjective(LabelTrie.from_tokens([[5], [6]]))),
                recipe,
                seed=1,
                lr_multiplier=1.0,
            )
        return (time.monotonic() - start) / STEPS

    return measured(plm.model, loop)


def peft(folder: Path, dtype: str, checkpointing: bool, keep: int) -> Run:
    """The ordinary way. keep: logits of how many last positions the library computes; 0: of all, its default."""
    import torch
    from peft import LoraConfig, get_peft_model
    from torch.nn import functional as F
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(model, config).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    words = model.get_input_embeddings().weight.shape[0]
    ids = torch.randint(words, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))
    mask, target = torch.ones_like(ids), torch.full((ROWS,), 5)

    def loop() -> float:
        theta = [p for p in model.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(theta, lr=1e-3, weight_decay=0.0)
        start = time.monotonic()
        for _ in range(STEPS):
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=keep).logits[:, -1]
            F.cross_entropy(logits.float(), target).backward()
            torch.nn.utils.clip_grad_norm_(theta, 1.0)
            optimiser.step()
            optimiser.zero_grad()
        return (time.monotonic() - start) / STEPS

    return measured(model, loop)


def child(side: str, folder: Path, dtype: str, checkpointing: bool) -> Run:
    import torch

    from apet.core.arithmetic import compute_dtype

    torch.set_num_threads(1)
    dtype = compute_dtype(dtype, "cpu")
    if side == "apet":
        return apet(folder, dtype, checkpointing)
    return peft(folder, dtype, checkpointing, keep=1 if side == "peft-last" else 0)


def start(side: str, folder: Path, dtype: str, checkpointing: bool) -> Run:
    """One run in a process of its own."""
    command = [sys.executable, __file__, str(folder), "--side", side, "--dtype", dtype]
    command += ["--checkpointing"] if checkpointing else []
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Run(**json.loads(done.stdout.splitlines()[-1]))


def table(folder: Path, repeats: int) -> None:
    from apet.core.arithmetic import compute_dtype

    print(
        f"{'dtype':9} {'recompute':9} {'side':10} {'loaded':>7} {'peak':>7} {'above':>7} {'s/step':>7}  MB; apet / side"
    )
    for dtype in dict.fromkeys(compute_dtype(dtype, "cpu") for dtype in ("float32", "bfloat16")):
        for checkpointing in (False, True):
            runs: dict[str, list[Run]] = {side: [] for side in SIDES}
            for _ in range(repeats):
                for side in SIDES:
                    runs[side].append(start(side, folder, dtype, checkpointing))
            middle = {side: _median(found) for side, found in runs.items()}
            ours = middle["apet"]
            for side, run in middle.items():
                above = run.peak - run.loaded
                ratios = f"peak {ours.peak / run.peak:.2f}, above {(ours.peak - ours.loaded) / above:.2f}"
                print(
                    f"{dtype:9} {'yes' if checkpointing else 'no':9} {side:10} {run.loaded:7.0f} {run.peak:7.0f} "
                    f"{above:7.0f} {run.seconds:7.2f}  {ratios}",
                    flush=True,
                )


def _median(runs: list[Run]) -> Run:
    return Run(**{key: statistics.median(asdict(run)[key] for run in runs) for key in asdict(runs[0])})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a PLM of the llama family with its safetensors")
    parser.add_argument("--repeats", type=int, default=3, help="runs a side and setting (default: 3)")
    parser.add_argument("--side", choices=SIDES, help="one run alone, printed as JSON")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--checkpointing", action="store_true")
    args = parser.parse_args()
    if args.side:
        print(json.dumps(asdict(child(args.side, args.folder, args.dtype, args.checkpointing))))
    else:
        table(args.folder, args.repeats)


if __name__ == "__main__":
    main()
