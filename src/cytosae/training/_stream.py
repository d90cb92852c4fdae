"""What a training step takes: shuffled tokens, or all tokens of shuffled cells; a pure function of (seed, step)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cytosae.tokens import TokenOrder, TokenStore

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

    def __init__(self, store: TokenStore, rows: npt.NDArray[np.int64], cells_per_step: int, seed: int, kind: str) -> None:
        self._store, self._rows, self._kind = store, rows, kind
        self._order = TokenOrder(len(rows), cells_per_step, seed)
        self.step_size = self._order.batch
        self._per_cell = store.read(rows[:1], kind=kind).shape[1]
        self.n_tokens = len(rows) * self._per_cell

    def at(self, step: int) -> torch.Tensor:
        """Tokens of a step: [cells_per_step * tokens of a cell, d_in] in the stored type."""
        return self.cells_at(step).flatten(0, 1)

    def cells_at(self, step: int) -> torch.Tensor:
        """The same, [cells_per_step, tokens of a cell, d_in]."""
        return self._store.read(self._rows[self._order.at(step)], kind=self._kind)

    def sample(self, seed: int) -> torch.Tensor:
        """At most `SAMPLE` tokens, of cells drawn without repetition."""
        chosen = sample_positions(len(self._rows), seed, max(1, SAMPLE // self._per_cell))
        return self._store.read(self._rows[chosen], kind=self._kind).flatten(0, 1)


class ShuffledTokens:
    """Shuffled single tokens from memory.

    Parameters
    ----------
    tokens
        [n, d_in] in their stored type.
    batch, seed
        Tokens a step, and the seed of their order.
    """

    def __init__(self, tokens: torch.Tensor, batch: int, seed: int) -> None:
        self._tokens = tokens
        self._order = TokenOrder(len(tokens), batch, seed)
        self.step_size = self._order.batch
        self.n_tokens = len(tokens)

    def at(self, step: int) -> torch.Tensor:
        """Tokens of a step [batch, d_in]."""
        return self._tokens[torch.from_numpy(self._order.at(step))]

    def sample(self, seed: int) -> torch.Tensor:
        """At most `SAMPLE` tokens, without repetition."""
        return self._tokens[torch.from_numpy(sample_positions(len(self._tokens), seed))]


Stream = CellStream | ShuffledTokens | Any
