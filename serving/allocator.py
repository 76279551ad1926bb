"""glibc's allocator in a process that lives for months while models come and go. Elsewhere nothing is done.

By default glibc raises the size from which memory is the system's own to that of the largest block it was ever given
back: after the first model most of the next one lies between small things that stay, and cannot be returned. With the
threshold held where it begins, half as much is kept after 45 models under load (docs/experiments.md).
"""

from __future__ import annotations

import contextlib
import ctypes

M_MMAP_THRESHOLD = -3  # malloc.h
INITIAL_BYTES = 128 * 1024  # glibc's own, before it learns


def hold_threshold() -> None:
    """Large blocks are the system's own, and go back to it when they are freed. Before any model is loaded."""
    with contextlib.suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, INITIAL_BYTES)


def return_memory() -> None:
    """Give free memory back to the system: with every model that comes and goes the allocator would keep some more."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
