"""Arithmetic of the CPU: the variables that pin it, the types it computes in, and the bytes that other CPUs gave.

    python tests/test_arithmetic.py operations bloom plans cell   # digests of this CPU
    python tests/test_arithmetic.py --record     # write them into golden_arithmetic.json

In golden_arithmetic.json, the digests under `another CPU` are from an AMD Zen 3, without AVX-512. No change of apet can
change them. The digests under `apet` are from an AMD Zen 4, with AVX-512. Record them again if TRAINER_VERSION rises
or a library is updated. The `compatible` digests were the same on an Intel Haswell that QEMU emulated.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.nn import functional as F
from transformers import BloomConfig, BloomForCausalLM

from apet.cli.status_summary import status_lines
from apet.config.study_config import LearningRates, TrainingConfig
from apet.core import arithmetic
from apet.core.arithmetic import (
    PINS,
    VARIABLE,
    announce_dtype,
    compute_dtype,
    cpu_flags,
    cpu_name,
    instruction_sets,
    pin_arithmetic,
)
from apet.core.records import write_json_record
from apet.evaluation import ClassificationObjective, EncodedSplit, LabelTrie
from apet.models.loading import load_plm
from apet.placement import MethodSizes, make_plan, own_count
from apet.study.cells import TRAINER_VERSION, Cell
from apet.study.status import Status, differences
from apet.training.cell import CellInputs, train_cell
from apet.training.loop import TrainingData, train
from apet.training.runtime import machine_type, make_deterministic
from apet.tuning import TunedPLM, initial_theta_by_structure
from saved import save_plm
from tiny import CONFIGS, WORDS, tiny_plm
from toy import ROOT

GOLDEN = Path(__file__).with_name("golden_arithmetic.json")
VARIABLES = sorted({VARIABLE, *(name for pins in PINS.values() for name in pins)})
HAS_AVX2 = {"avx2", "fma"} <= cpu_flags()
needs_avx2 = pytest.mark.skipif(
    not HAS_AVX2, reason="apet pins nothing on a CPU without AVX2, and promises nothing there"
)

WITH_MKL = {"mm", "addmm", "mm, operands unaligned by 8 bytes", "mm, few columns", "bmm", "exp", "erf", "log"}
"""Operations that MKL computes, by kernels that differ between vendors; PyTorch's own give the same bytes on all."""
BY_HAND = {"MKL_CBWR": "AVX2,STRICT", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
"""Variables of the portable arithmetic. (`another CPU` was measured without STRICT, which matters on Intel only.)"""
DIGESTS = ("operations", "bloom", "plans")
LOWERED = {"MKL_CBWR": "COMPATIBLE", "ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}
"""Variables that make of this CPU a machine of another class, with older instructions."""
SCORE = 1 / 32
"""Largest difference of a score between classes of machine: one row of validation. Measured on AMD Zen 4: 0."""
LOSS = 1e-3
"""The same of a loss, in nats. Measured on AMD Zen 4: 1e-5 after 60 steps, 1e-3 after 120."""


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


# The variables


def variables(**environment: str) -> dict[str, str]:
    """Import apet in a process, and return the variables of arithmetic that it has then."""
    tell = f"import apet, json, os; print(json.dumps({{n: os.environ[n] for n in {VARIABLES} if n in os.environ}}))"
    done = in_a_process("-c", tell, **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_avx2
def test_import_without_variables_pins_the_portable_arithmetic():
    assert variables() == PINS["portable"] == BY_HAND


@needs_avx2
@pytest.mark.parametrize("chosen", PINS)
def test_import_with_a_chosen_arithmetic_pins_it(chosen):
    assert variables(APET_ARITHMETIC=chosen) == {VARIABLE: chosen, **PINS[chosen]}


def test_every_arithmetic_sets_the_reproducible_mode_of_mkl():
    assert all("MKL_CBWR" in pins for pins in PINS.values())
    assert set(PINS["native"]) == {"MKL_CBWR"}


@needs_avx2
@pytest.mark.parametrize("name", PINS["portable"])
@pytest.mark.parametrize("value", ["COMPATIBLE", ""])
def test_import_with_a_variable_of_the_user_s_leaves_it(name, value):
    assert variables(**{name: value}) == {**PINS["portable"], name: value}


def test_import_with_an_unknown_arithmetic_pins_nothing():
    assert variables(APET_ARITHMETIC="fast") == {VARIABLE: "fast"}


def test_a_command_with_an_unknown_arithmetic_names_variable_value_and_allowed_ones():
    done = in_a_process("-m", "apet.cli.app", "status", APET_ARITHMETIC="fast")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "apet: APET_ARITHMETIC: unknown value 'fast'. Allowed: compatible, native, portable.\n"


@pytest.mark.parametrize("flags", [set(), {"avx2"}, {"fma"}, {"sse4_1", "avx", "fma"}])
def test_a_cpu_without_avx2_or_fma_is_left_alone(monkeypatch, flags):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(arithmetic, "cpu_flags", lambda: frozenset(flags))
    pin_arithmetic()
    assert not set(VARIABLES) & set(os.environ)


# The type of numbers

ZEN3 = {"sse4_1", "avx", "avx2", "fma"}
ZEN4 = {*ZEN3, "avx512bw", "avx512_bf16"}
SAPPHIRE_RAPIDS = {*ZEN4, "avx512_fp16", "amx_bf16"}
NEOVERSE = {"asimd", "bf16"}


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[set[str], str | None], None]:
    """Feign a CPU by its flags, and oneDNN's limit."""

    def feign(flags: set[str], limit: str | None) -> None:
        monkeypatch.setattr(arithmetic, "cpu_flags", lambda: frozenset(flags))
        monkeypatch.setattr(platform, "machine", lambda: "aarch64" if flags == NEOVERSE else "x86_64")
        monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
        if limit is not None:
            monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)

    return feign


@pytest.mark.parametrize(
    ("flags", "limit", "bfloat16", "float16"),
    [
        (ZEN3, None, "float32", "float32"),
        (ZEN3, "AVX512_CORE_AMX", "float32", "float32"),
        (ZEN4, None, "bfloat16", "float32"),
        (ZEN4, "", "bfloat16", "float32"),
        (ZEN4, "ALL", "bfloat16", "float32"),
        (ZEN4, "AVX512_CORE_BF16", "bfloat16", "float32"),
        (ZEN4, "AVX512_CORE", "float32", "float32"),
        (ZEN4, "AVX2", "float32", "float32"),
        (ZEN4, "avx2", "float32", "float32"),
        (SAPPHIRE_RAPIDS, None, "bfloat16", "float16"),
        (SAPPHIRE_RAPIDS, "AVX512_CORE_BF16", "bfloat16", "float32"),
        (SAPPHIRE_RAPIDS, PINS["portable"]["ONEDNN_MAX_CPU_ISA"], "float32", "float32"),
        (NEOVERSE, None, "bfloat16", "float32"),
        (NEOVERSE, "AVX2", "bfloat16", "float32"),
        (set(), None, "float32", "float32"),
    ],
)  # fmt: skip
def test_a_type_is_computed_in_where_flags_and_limit_allow_its_instructions(cpu, flags, limit, bfloat16, float16):
    cpu(flags, limit)
    found = [compute_dtype(dtype, "cpu") for dtype in ("float32", "bfloat16", "float16")]
    assert found == ["float32", bfloat16, float16]


def test_another_type_than_stated_is_announced_in_one_line(capsys):
    announce_dtype("mini", "bfloat16", "bfloat16")
    assert capsys.readouterr() == ("", "")
    announce_dtype("mini", "bfloat16", "float32")
    printed = capsys.readouterr()
    assert (
        printed.out == ""
        and printed.err.count("\n") == 1
        and re.search("mini: .*float32 instead of bfloat16", printed.err)
    )


@pytest.mark.parametrize(
    ("flags", "used"), [(ZEN3, "float32"), (ZEN4, "bfloat16")], ids=["without bfloat16", "with bfloat16"]
)
def test_a_plm_stated_in_bfloat16_is_loaded_in_what_the_cpu_computes_faster(cpu, tmp_path, capfd, flags, used):
    saved = tiny_plm("bloom", fused=False).model
    write_json_record(save_plm(saved, tmp_path) / "snapshot.json", {"dtype": "bfloat16"})
    capfd.readouterr()
    cpu(flags, None)
    plm = load_plm(tmp_path, "mini")
    assert (plm.dtype, plm.model.dtype) == (used, getattr(torch, used))
    weight = saved.get_input_embeddings().weight
    assert torch.equal(plm.model.get_input_embeddings().weight, weight.to(plm.model.dtype))
    line = "PLM mini: computed in float32 instead of bfloat16, which this device does not compute faster\n"
    assert capfd.readouterr() == ("", line if used == "float32" else "")


def test_a_plm_stated_in_bfloat16_under_the_portable_pins_is_loaded_in_float32(cpu, tmp_path):
    write_json_record(save_plm(tiny_plm("bloom", fused=False).model, tmp_path) / "snapshot.json", {"dtype": "bfloat16"})
    cpu(SAPPHIRE_RAPIDS, PINS["portable"]["ONEDNN_MAX_CPU_ISA"])
    plm = load_plm(tmp_path, "mini")
    assert (plm.dtype, plm.model.dtype) == ("float32", torch.float32)


# Bytes


@pytest.fixture(scope="module")
def default() -> dict[str, Any]:
    """All parts under the arithmetic without variables."""
    return measured(*PARTS)


@pytest.fixture(scope="module")
def by_hand() -> dict[str, Any]:
    """The digests under variables that were set before the start."""
    return measured(*DIGESTS, **BY_HAND)


@pytest.fixture(scope="module")
def compatible() -> dict[str, Any]:
    """The digests under the arithmetic that is the same on CPUs of two vendors."""
    return measured(*DIGESTS, APET_ARITHMETIC="compatible")


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return json.loads(GOLDEN.read_text())


def is_of_another_vendor(there: dict[str, Any], here: dict[str, Any]) -> bool:
    """Tell by CPU and BLAS library whether MKL's kernels are others than there; then the class must say so."""
    others = platform.machine() != "x86_64" or not torch.backends.mkl.is_available() or vendor() != there["vendor"]
    assert others is (here["instruction_sets"] != there["instruction_sets"])
    return others


def vendor() -> str:
    """Read the CPU's vendor, apart from apet."""
    found = re.search(r"^vendor_id\s*: (\w+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else "unknown"


def versions() -> dict[str, str]:
    """Name the libraries that decide the bytes, without a build's label."""
    return {"torch": torch.__version__.partition("+")[0], "transformers": transformers.__version__}


def only_with_versions(there: dict[str, Any]) -> None:
    """Skip the test with libraries that are not the locked ones; a test below guards the lock itself."""
    here = versions()
    if others := {name: here[name] for name, version in there["versions"].items() if here[name] != version}:
        pytest.skip(f"digests are of {there['versions']}, and these are {others}")


def test_golden_digests_are_of_the_locked_versions(golden):
    locks = "\n".join((ROOT / "envs" / name).read_text() for name in ("torch.lock", "requirements.lock"))
    locked = {name: re.search(rf"^{name}==([\d.]+)", locks, re.MULTILINE)[1] for name in ("torch", "transformers")}
    remedy = f"measure {GOLDEN.name} again, on two CPUs"
    assert golden["another CPU"]["versions"] == {"torch": locked["torch"]}, remedy
    assert golden["apet"]["versions"] == locked, remedy


@pytest.mark.slow
@needs_avx2
def test_operations_give_the_bytes_of_another_cpu(golden, default):
    """Compare MKL's operations on CPUs of one vendor, and PyTorch's own on all."""
    there = golden["another CPU"]
    only_with_versions(there)
    left_out = WITH_MKL if is_of_another_vendor(there, default) else set()
    names = there["operations"].keys() - left_out
    assert {n: default["operations"][n] for n in names} == {n: there["operations"][n] for n in names}


@pytest.mark.slow
@needs_avx2
def test_trained_blooms_have_the_bytes_of_another_cpu(golden, default):
    there = golden["another CPU"]
    only_with_versions(there)
    if is_of_another_vendor(there, default):
        pytest.skip("MKL's products differ between vendors; those of the compatible arithmetic are compared below")
    assert default["bloom"] == there["bloom"]


@pytest.mark.slow
@needs_avx2
def test_trained_thetas_have_the_recorded_bytes(golden, default):
    there = golden["apet"]
    record = f"say python tests/{Path(__file__).name} --record"
    assert there["trainer_version"] == TRAINER_VERSION, record
    only_with_versions(there)
    if is_of_another_vendor(there, default):
        pytest.skip("MKL's products differ between vendors; those of the compatible arithmetic are compared below")
    assert default["plans"] == there["plans"]


@pytest.mark.slow
@needs_avx2
@pytest.mark.parametrize("part", DIGESTS)
def test_pins_of_the_import_and_variables_set_by_hand_give_the_same_bytes(default, by_hand, part):
    """Compare two runs on this CPU, of whichever vendor."""
    assert by_hand["instruction_sets"] == default["instruction_sets"]
    assert by_hand[part] == default[part]


@pytest.mark.slow
@needs_avx2
@pytest.mark.parametrize("part", DIGESTS)
def test_the_compatible_arithmetic_gives_the_bytes_of_another_vendor_s_cpu(golden, compatible, part):
    only_with_versions(golden["apet"])
    if not torch.backends.mkl.is_available():
        pytest.skip("this build of PyTorch multiplies matrices without MKL")
    assert compatible[part] == golden["apet"]["compatible"][part]


@pytest.mark.slow
@needs_avx2
def test_lower_instruction_sets_are_another_class_of_machine_and_give_nearly_the_same_scores(default):
    lowered = measured("cell", **LOWERED)
    here, there = default["cell"], lowered["cell"]
    assert here["class"]["instruction_sets"] == default["instruction_sets"]
    found = differences(there["class"], here["class"])
    assert {"onednn", "torch"} <= {line.partition(":")[0] for line in found} <= {"blas", "onednn", "torch"}
    printed = status_lines(Status({"a/b/c": here["class"], "a/b/d": there["class"]}, {}, {}, []), 0)
    (line,) = (line for line in printed if line.startswith("machines: 1 cell trained on another machine type"))
    assert line.endswith(f": {'; '.join(found)}") and "onednn: SSE41 there, AVX2 here" in line
    for one, other in zip(here["replicates"], there["replicates"], strict=True):
        assert one["theta_digest"] != other["theta_digest"]
        for split in ("validation", "test"):
            assert one[split]["score"] == pytest.approx(other[split]["score"], abs=SCORE)
            assert one[split]["loss"] == pytest.approx(other[split]["loss"], abs=LOSS)
        assert one["losses"] == [[step, pytest.approx(loss, abs=LOSS)] for step, loss in other["losses"]]
    assert min(one["test"]["score"] for one in here["replicates"]) > 0.85  # which chance does not give


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
