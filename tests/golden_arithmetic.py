"""Digests of arithmetic on this CPU, and those that other CPUs gave (golden_arithmetic.json).

    python tests/golden_arithmetic.py operations bloom plans cell   # digests of this CPU
    python tests/golden_arithmetic.py --record                      # write them into golden_arithmetic.json

In golden_arithmetic.json, the digests under `another CPU` are from an AMD Zen 3, without AVX-512. No change of apet can
change them. The digests under `apet` are from an AMD Zen 4, with AVX-512. Record them again if TRAINER_VERSION rises
or a library is updated. The `compatible` digests were the same on an Intel Haswell that QEMU emulated.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn import functional as F
from transformers import BloomConfig, BloomForCausalLM

from apet.config.study_config import LearningRates, TrainingConfig
from apet.core.arithmetic import (
    PINS,
    VARIABLE,
    cpu_flags,
    cpu_name,
    instruction_sets,
)
from apet.evaluation import ClassificationObjective, EncodedSplit, LabelTrie
from apet.placement import MethodSizes, make_plan, own_count
from apet.study.cells import TRAINER_VERSION, Cell
from apet.training.cell import CellInputs, train_cell
from apet.training.loop import TrainingData, train
from apet.training.runtime import machine_type, make_deterministic
from apet.tuning import TunedPLM, initial_theta_by_structure
from tiny import CONFIGS, WORDS, tiny_plm
from toy import ROOT

GOLDEN = Path(__file__).with_name("golden_arithmetic.json")
VARIABLES = sorted({VARIABLE, *(name for pins in PINS.values() for name in pins)})

BY_HAND = {"MKL_CBWR": "AVX2,STRICT", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
"""Variables of the portable arithmetic. (`another CPU` was measured without STRICT, which matters on Intel only.)"""
DIGESTS = ("operations", "bloom", "plans")


# Computed in a process of its own, for the libraries read the variables once


def digest(*tensors: torch.Tensor) -> str:
    """Hash the bytes of tensors, to 12 digits."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().contiguous().numpy().tobytes())
    return found.hexdigest()[:12]


def operations() -> dict[str, str]:
    """Apply single operations to random numbers."""
    torch.manual_seed(0)
    x, w, b = torch.randn(577, 96), torch.randn(384, 96), torch.randn(384)
    big = torch.randn(64, 37, 96)
    unaligned = torch.empty(577 * 96 + 2)[2:].view(577, 96).copy_(x)
    found = {
        "random": (x, w, b),
        "mm": (x @ w.T,),
        "addmm": (F.linear(x, w, b),),
        "mm, operands unaligned by 8 bytes": (unaligned @ w.T,),
        "mm, few columns": (x @ w[:5].T,),
        "bmm": (torch.bmm(big, big.transpose(1, 2)),),
        "softmax": (F.softmax(x, dim=-1),),
        "log_softmax": (F.log_softmax(w, dim=-1),),
        "layer_norm": (F.layer_norm(x, (96,)),),
        "exp": (x.exp(),),
        "tanh": (x.tanh(),),
        "sigmoid": (x.sigmoid(),),
        "erf": (x.erf(),),
        "log": (x.abs().log(),),
        "rsqrt": (x.abs().rsqrt(),),
        "sum": (x.sum(), x.sum(0), x.sum(1)),
        "norm": (torch.linalg.vector_norm(x), torch.linalg.vector_norm(x, dim=-1)),
        "gelu tanh": (F.gelu(x, approximate="tanh"),),
    }
    return {name: digest(*tensors) for name, tensors in found.items()}


def bloom() -> dict[str, str]:
    """Train biases and attention maps of two small BLOOMs by the library's own code, 30 steps on random ids."""
    return {f"{width}x{layers}": _trained_bloom(width, layers) for width, layers in ((32, 2), (64, 4))}


def _trained_bloom(width: int, layers: int) -> str:
    torch.manual_seed(1)
    dropout = {"hidden_dropout": 0.0, "attention_dropout": 0.0}
    config = BloomConfig(vocab_size=512, hidden_size=width, n_layer=layers, n_head=4, **dropout)
    model = BloomForCausalLM(config).train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("bias" in name or "query_key_value" in name)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-2, fused=True)
    for _ in range(30):
        ids = torch.randint(0, 512, (16, 36))
        F.cross_entropy(model(ids).logits[:, -1], ids[:, 0]).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        optimiser.zero_grad()
    return digest(*trained)


TRAINING = TrainingConfig(
    loss="label_words", max_steps=5, batch_size=8, max_length=8, learning_rates=LearningRates(*8 * (0.01,)),
    lr_multipliers=(1.0,), lr_scheduler_type="linear", warmup_ratio=0.1, num_evals=1, max_grad_norm=1.0,
    gradient_checkpointing=False,
)  # fmt: skip
TASK = {
    "task": "toy", "type": "classification", "metric": "accuracy", "metrics": ["accuracy"],
    "verbalizer": {"a": " a", "b": " b"}, "chance": {"level": 0.5, "uniform": 0.5, "majority": 0.5},
    "rows": {"train": 64, "validation": 32, "test": 48}, "digest": "0", "task_digest": "data",
    "label_counts": {"test": {"a": 24, "b": 24}},
}  # fmt: skip


def rows(count: int, seed: int) -> EncodedSplit:
    """Draw rows whose label is told by word 7 or word 8 at a random place."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, 9, (count,), generator=draw)
    ids = torch.randint(10, WORDS, (count, 8), generator=draw)
    labels = torch.randint(2, (count,), generator=draw)
    ids[torch.arange(count), (torch.rand(count, generator=draw) * (lengths - 1)).long()] = 7 + labels
    return EncodedSplit([str(i) for i in range(count)], ids * (torch.arange(8) < lengths[:, None]), lengths, labels)


def bench(family: str) -> CellInputs:
    """Build a tiny PLM with the toy task."""
    splits = TrainingData(rows(64, 1), rows(32, 2), ClassificationObjective(LabelTrie.from_tokens([[3], [4]])))
    return CellInputs(tiny_plm(family), TASK, splits, rows(48, 3))


def plans() -> dict[str, str]:
    """Train θ of a `uniform` and a `lora` plan for every family, five steps by apet's own loop."""
    return {
        f"{family} {placement}": _trained_theta(bench(family), placement)
        for family in CONFIGS
        for placement in ("uniform", "lora")
    }


def _trained_theta(made: CellInputs, placement: str) -> str:
    inventory = made.plm.inventory
    budget = 700 if placement == "uniform" else own_count(placement, inventory, MethodSizes())
    plan = make_plan(inventory, placement, budget, 3)
    parts = initial_theta_by_structure(made.plm, plan, 4)
    with TunedPLM(made.plm, plan) as tuned:
        trained = train(tuned, parts, made.data, TRAINING, seed=1, lr_multiplier=1.0)
    assert trained.num_steps == trained.best_step == TRAINING.max_steps
    return digest(trained.theta)


def cell() -> dict[str, Any]:
    """Train a cell of four replicates. Returns their records and the class of machine."""
    made, training = (
        bench("bloom"),
        replace(TRAINING, learning_rates=LearningRates(*8 * (0.05,)), max_steps=60, num_evals=4),
    )
    asked = Cell("tiny", "toy", "uniform", "1500", 2, 2, 1, MethodSizes(), training, "plm", "data")
    with tempfile.TemporaryDirectory() as folder:
        record = train_cell(asked, made, Path(folder) / "cell")
    return {"replicates": record["replicates"], "class": machine_type(made.plm.dtype, made.plm.device)}


PARTS: dict[str, Callable[[], Any]] = {"operations": operations, "bloom": bloom, "plans": plans, "cell": cell}


def measure(*parts: str) -> dict[str, Any]:
    """Compute parts here, with the instruction sets that computed them."""
    make_deterministic()
    return {**{part: PARTS[part]() for part in parts}, "instruction_sets": instruction_sets()}


def in_a_process(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python with no variables of arithmetic but those that are given."""
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    run = [sys.executable, *command]
    return subprocess.run(run, env=kept | environment, cwd=ROOT, capture_output=True, text=True, check=False)


def measured(*parts: str, **environment: str) -> dict[str, Any]:
    """Compute parts in a process of its own."""
    done = in_a_process(__file__, *parts, **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def vendor() -> str:
    """Read the CPU's vendor, apart from apet."""
    found = re.search(r"^vendor_id\s*: (\w+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else "unknown"


def versions() -> dict[str, str]:
    """Name the libraries that decide the bytes, without a build's label."""
    return {"torch": torch.__version__.partition("+")[0], "transformers": transformers.__version__}


def record() -> None:
    """Write the digests under `apet`, of this CPU."""
    cpu = f"{cpu_name()} {'with' if 'avx512f' in cpu_flags() else 'without'} AVX-512"
    printed = {"cpu": cpu, "vendor": vendor(), "versions": versions(), "trainer_version": TRAINER_VERSION}
    compatible = measured(*DIGESTS, APET_ARITHMETIC="compatible")
    values = json.loads(GOLDEN.read_text())
    values["apet"] = {**printed, **measured("plans", **BY_HAND), "compatible": compatible}
    GOLDEN.write_text(json.dumps(values, indent=2) + "\n")


if __name__ == "__main__":
    if sys.argv[1:] == ["--record"]:
        record()
    else:
        print(json.dumps(measure(*sys.argv[1:])))
