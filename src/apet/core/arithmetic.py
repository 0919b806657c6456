"""The arithmetic of the CPU: which instruction sets compute, and so which machines give the same bytes. No torch."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from functools import cache
from pathlib import Path

from apet.errors import ConfigError, unknown_name

VARIABLE = "APET_ARITHMETIC"
"""Environment variable that chooses one of PINS; without it, the first."""

_AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}

PINS = {
    "portable": {"MKL_CBWR": "AVX2,STRICT", **_AVX2},
    "compatible": {"MKL_CBWR": "COMPATIBLE", **_AVX2},
    "native": {"MKL_CBWR": "AUTO,STRICT"},
}
"""Arithmetic -> environment variables that fix the instruction sets of MKL, PyTorch's own kernels and oneDNN.

portable: the same bytes on every x86-64 CPU of one vendor that has AVX2. compatible: the same on Intel's and AMD's, for
which MKL has different kernels otherwise; its matrix products take more than twice the time. native: the fastest
instructions of this CPU. In each, a result does not depend on where in memory its operands are: MKL promises that only
if MKL_CBWR is set.
"""

REDUCED = {"bfloat16": {"avx512_bf16", "amx_bf16", "bf16"}, "float16": {"avx512_fp16", "amx_fp16"}}
"""Type of reduced precision -> the CPU flags of which any makes its matrix products faster than those in float32.

Without them PyTorch multiplies bfloat16 at 1 to 3 GFLOP/s where float32 takes 25 to 80 (a core of AMD Zen 3).
"""

ONEDNN_ISA = ("SSE41", "AVX", "AVX2", "AVX512_CORE", "AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX512_CORE_AMX")
"""oneDNN's instruction sets, each of which includes those before it."""

ONEDNN_FLAGS = ("sse4_1", "avx", "avx2", "avx512bw", "avx512_bf16", "avx512_fp16", "amx_bf16")
"""The CPU flag that each of ONEDNN_ISA needs."""

MKL_BRANCHES = ("none", "AUTO", "COMPATIBLE", "SSE2", "SSE3", "SSSE3", "SSE4_1", "SSE4_2", "AVX", "AVX2", "AVX512_MIC",
                "AVX512")  # fmt: skip
"""MKL's code branches by number, from 1. On a CPU that is not Intel's, MKL takes AUTO for those from SSSE3 on."""


def mode() -> str:
    """Return the arithmetic that the environment selects.

    Returns:
        A key of PINS.

    Raises:
        ConfigError: `APET_ARITHMETIC` is not one of PINS.
    """
    chosen = os.environ.get(VARIABLE) or next(iter(PINS))
    if chosen not in PINS:
        raise ConfigError(unknown_name("value", chosen, PINS, VARIABLE))
    return chosen


def pin_arithmetic() -> None:
    """Fix the instruction sets of this process and its children.

    The libraries read the variables once, with their first operation, so call this before. A variable that is set
    already stays as it is. A CPU without AVX2, on which PyTorch would crash, is left alone. An unknown arithmetic pins
    nothing: `mode` reports it.
    """
    if {"avx2", "fma"} <= cpu_flags():
        for name, value in PINS.get(os.environ.get(VARIABLE) or next(iter(PINS)), {}).items():
            os.environ.setdefault(name, value)


@cache
def cpu_flags() -> frozenset[str]:
    """Return the features that the kernel says the CPU has; empty where there is no /proc/cpuinfo."""
    return frozenset((_cpuinfo("flags") or _cpuinfo("Features") or "").split())


@cache
def cpu_name() -> str:
    """Return the CPU's marketing name, which does not tell its instruction sets."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def compute_dtype(dtype: str, device: str) -> str:
    """Return the type of numbers to compute in on a device.

    Args:
        dtype: What a PLM is stated to be computed in: float32, bfloat16 or float16.
        device: `cpu` or `cuda`.

    Returns:
        `dtype` if the device multiplies matrices of it faster than of float32, otherwise float32.
    """
    if dtype == "float32":
        return dtype
    if device == "cuda":
        import torch

        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return dtype if dtype == "float16" or has_bfloat16 else "float32"
    return dtype if REDUCED[dtype] & cpu_flags() and _onednn_allows(dtype) else "float32"


def announce_dtype(name: str, stated: str, used: str) -> None:
    """Print one line on standard error if a PLM is computed in another type than it states."""
    if used != stated:
        line = f"PLM {name}: computed in {used} instead of {stated}, which this device does not compute faster"
        print(line, file=sys.stderr, flush=True)


def instruction_sets() -> dict[str, str]:
    """Return the instruction sets that PyTorch's kernels, oneDNN and the BLAS library use in this process.

    Equal values, on CPUs of one vendor, mean equal bytes for equal library versions and one thread.

    Returns:
        Library (`torch`, `onednn`, `blas`) -> name of its instruction set or code branch.
    """
    import torch

    return {"torch": torch.backends.cpu.get_cpu_capability(), "onednn": _onednn_isa(), "blas": _blas()}


def _cpuinfo(key: str) -> str | None:
    """Return the first value of a key of /proc/cpuinfo."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), None)


def _onednn_isa() -> str:
    """Return oneDNN's instruction set: the CPU's best that the environment allows."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return "default"
    has = [isa for isa, flag in zip(ONEDNN_ISA, ONEDNN_FLAGS, strict=True) if flag in cpu_flags()]
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    allowed = ONEDNN_ISA[: ONEDNN_ISA.index(limit) + 1] if limit in ONEDNN_ISA else ONEDNN_ISA
    return next((isa for isa in reversed(has) if isa in allowed), "none")


def _onednn_allows(dtype: str) -> bool:
    """Return whether the environment leaves oneDNN the instructions that multiply this type."""
    needs = {"bfloat16": "AVX512_CORE_BF16", "float16": "AVX512_CORE_FP16"}[dtype]
    isa = _onednn_isa()
    return isa not in ONEDNN_ISA or ONEDNN_ISA.index(isa) >= ONEDNN_ISA.index(needs)


def _blas() -> str:
    """Return the BLAS library's code branch, with the CPU's vendor, by which MKL chooses among kernels."""
    import torch

    if not torch.backends.mkl.is_available():
        return "not MKL"
    vendor = _cpuinfo("vendor_id") or "unknown vendor"
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        branch = MKL_BRANCHES[library.mkl_serv_cbwr_get(1) - 1]  # 1: the branch, without the STRICT flag
    except (OSError, AttributeError, IndexError):  # another build of PyTorch
        branch = os.environ.get("MKL_CBWR", "none")
    return f"MKL {branch} on {vendor}"
