"""How this process holds on to memory."""

from __future__ import annotations

import ctypes
from contextlib import suppress

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
