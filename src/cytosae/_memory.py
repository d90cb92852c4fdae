"""Large pages for large tensors, and freed memory kept at hand, so that nobody has to set a variable."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

#: Smaller tensors are left alone.
_LEAST = 8 << 20
_HUGE = 2 << 20
#: Of mallopt(3): blocks from this size on are mapped on their own (32 MB is the most glibc takes), and so much is kept.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _LARGEST_BLOCK, _KEPT = -1, -3, 32 << 20, 512 << 20
_ADVICE: int | None = getattr(mmap, "MADV_HUGEPAGE", None)


def large_pages(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor itself, its memory advised to lie in pages of 2 MB; best before it is first written.

    Only on Linux, on the processor, for tensors above 8 MB; elsewhere, and where the system refuses, nothing happens.
    """
    size = tensor.numel() * tensor.element_size()
    advise = _madvise()
    if advise is not None and tensor.device.type == "cpu" and size >= _LEAST:
        start = -(-tensor.data_ptr() // _HUGE) * _HUGE
        end = (tensor.data_ptr() + size) // _HUGE * _HUGE
        if end > start:
            advise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _ADVICE)
    return tensor


def zeros_like(tensor: torch.Tensor) -> torch.Tensor:
    """Zeros of its shape and type, in large pages where it is large."""
    return large_pages(torch.empty_like(tensor)).zero_()


def copy_of(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous copy, in large pages where it is large."""
    return large_pages(torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)).copy_(tensor)


@contextmanager
def kept_memory() -> Iterator[None]:
    """Within it, freed memory stays with the process: a forward pass asks for the same pages again and again.

    With glibc only (elsewhere nothing happens), whose own thresholds would hand blocks of some megabytes back to the system at
    every turn, to be zeroed and mapped anew; at the end everything unused is handed back.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    libc.mallopt(_MMAP_THRESHOLD, _LARGEST_BLOCK)
    libc.mallopt(_TRIM_THRESHOLD, _KEPT)
    try:
        yield
    finally:  # as glibc itself would have them after a block of 32 MB
        libc.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_BLOCK)
        libc.malloc_trim(ctypes.c_size_t(0))


@cache
def _glibc() -> Any:
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version, libc.mallopt, libc.malloc_trim  # noqa: B018
    except (OSError, AttributeError, TypeError):
        return None
    return libc


@cache
def _madvise() -> Any:
    if _ADVICE is None:
        return None
    try:
        return ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
