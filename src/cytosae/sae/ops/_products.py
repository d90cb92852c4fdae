"""Dense products with factors of a lower type, biases among their columns, worked on in blocks that stay in the cache."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch

from cytosae._memory import large_pages

#: Tokens and latents of a block: what is done to its codes is done while they are in the cache.
TOKENS, LATENTS = 4096, 1024
#: Factors are padded to a multiple of so many columns.
_MULTIPLE = 32


@dataclass(frozen=True)
class Factors:
    """Makes the factors of products of one type.

    A bias is added inside the product, before its result is rounded: one factor gets three columns of ones, the other the
    bias in three parts that survive the type.
    """

    dtype: torch.dtype

    def of(self, a: torch.Tensor, *columns: torch.Tensor) -> torch.Tensor:
        """`a` [n, d] and further columns, padded with zeros."""
        n, d = a.shape
        out = torch.zeros(n, -(-(d + len(columns)) // _MULTIPLE) * _MULTIPLE, dtype=self.dtype, device=a.device)
        out[:, :d] = a
        for i, column in enumerate(columns):
            out[:, d + i] = column.flatten()
        return out

    def parts(self, values: torch.Tensor) -> list[torch.Tensor]:
        """Three summands of float32 values."""
        found = []
        for _ in range(3):
            found.append(values.to(self.dtype))
            values = values - found[-1].float()
        return found


class Room:
    """Memory for a large matrix that is needed anew in every step: fresh memory costs more than the product that fills it."""

    def __init__(self) -> None:
        """Nothing yet."""
        self._store: torch.Tensor | None = None
        self._lent: weakref.ref[torch.Tensor] | None = None

    def borrow(self, n: int, m: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """A matrix [n, m]: the one of the step before, if nobody holds it any longer and it is large enough."""
        held = self._lent is not None and self._lent() is not None
        if held or self._store is None or self._store.dtype != dtype or self._store.numel() < n * m:
            self._store = large_pages(torch.empty(n * m, dtype=dtype, device=device))
        lent = self._store[: n * m].view(n, m)
        self._lent = weakref.ref(lent)
        return lent

    def clear(self) -> None:
        """Give the memory back."""
        self._store = None


def blocks(n: int, size: int) -> list[slice]:
    """Slices of `size` that make up `n`."""
    return [slice(a, min(n, a + size)) for a in range(0, n, size)]
