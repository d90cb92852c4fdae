"""Large pages for large tensors, asked of the system where it has them, so that nobody has to set a variable."""

from __future__ import annotations

import ctypes
import mmap
from functools import cache
from typing import Any

import torch

#: Smaller tensors are left alone.
_LEAST = 8 << 20
_HUGE = 2 << 20
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


@cache
def _madvise() -> Any:
    if _ADVICE is None:
        return None
    try:
        return ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
