"""Whole cells a step, as the published code trains; single shuffled tokens are `cytosae.tokens.TokenStream`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from cytosae.tokens import TokenOrder, TokenStore, TokenStream

#: Tokens from which means, thresholds and the PCA line are measured.
SAMPLE = 100_000


def sample_positions(n: int, seed: int, size: int = SAMPLE) -> npt.NDArray[np.int64]:
    """At most `size` of `n` positions, in order, without repetition."""
    if n <= size:
        return np.arange(n, dtype=np.int64)
    return np.sort(np.random.Generator(np.random.Philox(key=[seed, 2**32])).choice(n, size, replace=False))


class CellStream:
    """Whole cells a step, as the published code trains: ``cells_per_step`` cells, every token of each.

    Parameters
    ----------
    store, rows
        The tokens, and the rows that may be used.
    cells_per_step, seed
        Cells a step, and the seed of their order; an epoch's remainder is left out.
    kind
        Kind of token.
    """

    def __init__(
        self, store: TokenStore, rows: npt.NDArray[np.int64], cells_per_step: int, seed: int, kind: str
    ) -> None:
        self._store, self._rows, self._kind = store, rows, kind
        self._order = TokenOrder(len(rows), cells_per_step, seed)
        self.batch = self._order.batch
        self._per_cell = store.read(rows[:1], kind=kind).shape[1]
        self.n_tokens = len(rows) * self._per_cell

    @property
    def record(self) -> dict[str, str]:
        """What must be written down, beside the seed, to get the same order again."""
        return {"order": "cells"}

    def at(self, step: int) -> torch.Tensor:
        """Tokens of a step: [cells_per_step * tokens of a cell, d_in] in the stored type."""
        return self.cells_at(step).flatten(0, 1)

    def cells_at(self, step: int) -> torch.Tensor:
        """The same, [cells_per_step, tokens of a cell, d_in]."""
        return self._store.read(self._rows[self._order.at(step)], kind=self._kind)

    def sample(self, n: int, seed: int) -> torch.Tensor:
        """About `n` tokens, all of some cells drawn without repetition."""
        chosen = sample_positions(len(self._rows), seed, max(1, n // self._per_cell))
        return self._store.read(self._rows[chosen], kind=self._kind).flatten(0, 1)


Stream = CellStream | TokenStream
