"""Arithmetic of the CPU: the variables that pin it, the types it computes in, and the bytes that other CPUs gave."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from apet.cli.status_summary import status_lines
from apet.core import arithmetic
from apet.core.arithmetic import (
    PINS,
    VARIABLE,
    announce_dtype,
    compute_dtype,
    cpu_flags,
    pin_arithmetic,
)
from apet.core.records import write_json_record
from apet.models.loading import load_plm
from apet.study.cells import TRAINER_VERSION
from apet.study.status import Status, differences
from golden_arithmetic import BY_HAND, DIGESTS, GOLDEN, PARTS, VARIABLES, in_a_process, measured, vendor, versions
from saved import save_plm
from tiny import tiny_plm
from toy import ROOT

HAS_AVX2 = {"avx2", "fma"} <= cpu_flags()
needs_avx2 = pytest.mark.skipif(
    not HAS_AVX2, reason="apet pins nothing on a CPU without AVX2, and promises nothing there"
)

WITH_MKL = {"mm", "addmm", "mm, operands unaligned by 8 bytes", "mm, few columns", "bmm", "exp", "erf", "log"}
"""Operations that MKL computes, by kernels that differ between vendors; PyTorch's own give the same bytes on all."""
LOWERED = {"MKL_CBWR": "COMPATIBLE", "ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}
"""Variables that make of this CPU a machine of another class, with older instructions."""
SCORE = 1 / 32
"""Largest difference of a score between classes of machine: one row of validation. Measured on AMD Zen 4: 0."""
LOSS = 1e-3
"""The same of a loss, in nats. Measured on AMD Zen 4: 1e-5 after 60 steps, 1e-3 after 120."""


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
    record = "run python tests/golden_arithmetic.py --record"
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
