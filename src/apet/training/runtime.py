"""Process setup: determinism and memory."""

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
"""Threads of a process. More would change the order of sums, and cells in parallel use the cores better."""


def make_deterministic(device: str = "cpu") -> None:
    """Set one thread, deterministic kernels and full-precision products. Call it at the start of a process.

    Args:
        device: `cpu`, or `cuda` for the first visible GPU.

    Raises:
        ConfigError: PyTorch sees no GPU, or the arithmetic is unknown (see `arithmetic.mode`).
    """
    mode()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(THREADS)
    torch.use_deterministic_algorithms(True)
    # Deterministic mode also fills uninitialized memory, which takes time and changes no value that is read.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # set by its class
    torch.set_float32_matmul_precision("highest")
    if device == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError(f"--device cuda: PyTorch {torch.__version__} sees no GPU. Use --device cpu.")
        torch.backends.cudnn.allow_tf32 = False
        # The gradients of fused attention are sums in varying order.
        torch.backends.cuda.enable_flash_sdp(False)
        torch.backends.cuda.enable_mem_efficient_sdp(False)
        torch.backends.cuda.enable_cudnn_sdp(False)


def machine_type(dtype: str, device: torch.device) -> dict[str, Any]:
    """Return the machine type, within which retraining a cell gives equal bytes.

    Args:
        dtype: dtype in which the PLM is computed.
        device: device of the PLM.

    Returns:
        Architecture, instruction sets, device, number of devices that share the PLM, threads, dtype, library versions.
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


TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's `mallopt`, as numbered in malloc.h."""


def keep_freed_memory() -> None:
    """Let glibc reuse the pages of freed tensors. Does nothing with another C library.

    By default glibc returns tensors above a few hundred kB to the kernel, and each new tensor gets fresh pages that
    must be zeroed first. This took a third of the time of an evaluation of the ladder's middle model.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(MMAP_THRESHOLD, 1 << 25)
        library.mallopt(TRIM_THRESHOLD, 1 << 30)


def return_freed_memory() -> None:
    """Let glibc return the pages of freed tensors to the kernel at once. Does nothing with another C library.

    The blocks of a sharded PLM are gathered and freed in turn. By default they leave holes of their size, so that two
    processes were measured to need more memory than one.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 1 << 20)
