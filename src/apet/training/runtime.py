"""What must be fixed before the first tensor for the same cell to give the same bytes on one class of machine."""

from __future__ import annotations

import ctypes
import os
import platform
from contextlib import suppress
from typing import Any

import torch

from apet.core.arithmetic import instruction_sets, mode
from apet.core.hashing import versions
from apet.errors import ConfigError
from apet.models.sharding import world_size

THREADS = 1
"""Threads a process: sums over more are taken in another order, and cells side by side use the cores better."""


def make_deterministic(device: str = "cpu") -> None:
    """One thread, deterministic kernels only, no reduced-precision products. Call it at the start of a process.

    device: cpu, or cuda for the first GPU that PyTorch sees. Raises ParamsError where it sees none, and as
    `arithmetic.mode`.
    """
    mode()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    # The deterministic mode also fills fresh memory, which costs time and changes nothing that is read.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # made by its class
    torch.set_float32_matmul_precision("highest")
    if device == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError(f"--device cuda: PyTorch {torch.__version__} sees no GPU here. Allowed: cpu.")
        torch.backends.cudnn.allow_tf32 = False
        # The fused attentions add up their gradients in any order.
        torch.backends.cuda.enable_flash_sdp(False)
        torch.backends.cuda.enable_mem_efficient_sdp(False)
        torch.backends.cuda.enable_cudnn_sdp(False)


def machine_class(dtype: str, device: torch.device) -> dict[str, Any]:
    """What must be equal for equal bytes to be promised: architecture, instruction sets, device, how many of them share
    the PLM, threads, the type of the PLM's numbers, library versions.
    """
    return {
        "machine": platform.machine(),
        "instruction_sets": instruction_sets(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "devices": world_size(),
        "threads": torch.get_num_threads(),
        "dtype": dtype,
        "versions": versions(),
    }


MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1
"""Parameters of glibc's mallopt, as its malloc.h numbers them."""


def keep_freed_memory() -> None:
    """Let the next tensor have the pages of the last one, where the C library is glibc; elsewhere nothing changes.

    By default a freed tensor of more than a few hundred kB goes back to the kernel, and every next one is made of fresh
    pages that must be zeroed first: a third of the time of an evaluation of the ladder's middle rung.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(MMAP_THRESHOLD, 1 << 25)
        library.mallopt(TRIM_THRESHOLD, 1 << 30)


def return_freed_memory() -> None:
    """Give the pages of a large freed tensor back to the kernel at once, where the C library is glibc.

    Where a PLM is in parts its blocks are gathered and freed in turn, and by default leave holes of their size: two
    processes were seen to take more than one then.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 1 << 20)
