"""What training reads: batches of shuffled tokens, a pure function of (seed, epoch, step), from memory or from disk."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cytosae._errors import CytosaeError
from cytosae.tokens._order import TokenOrder
from cytosae.tokens._store import TORCH, TokenStore

#: Bytes of tokens kept in memory. A fixed number and not what happens to be free: it decides the order.
MEMORY_LIMIT = 4 * 2**30
#: Neighbouring tokens that stay together where the tokens do not fit: half a row of DINOv2's grid. Measured with a fifth in
#: memory, the variance of the batches' means is 1.06, 1.17 and 1.46 times the ideal with runs of 4, 16 and 64; shorter runs
#: mean more reads for the same bytes.
RUN = 8
#: Tokens read at once while a block is gathered.
_READ = 4096
#: Share of the limit that two blocks take; the rest is for the order itself and for what is being read.
_HELD = 7 / 8


class TokenStream:
    """Shuffled batches of the tokens of some cells.

    Tokens are numbered in the order of `rows`, within a cell in the order of the store, those not kept left out.

    - ``permutation``: where all fit into `memory_limit`, an epoch is one random permutation of them all (`TokenOrder`).
    - ``blocks``: where they do not, an epoch shuffles runs of `RUN` neighbouring tokens, joins them into equal blocks of
      which two fit into the limit, and permutes the tokens within each block. So a block has a few tokens of most cells. It
      is gathered from all shards, in the order of the files, by a thread, while the block before it is used.

    Every kept token is shown once an epoch, except the remainder smaller than a batch. Steps may be asked for in any
    sequence with the same result; ascending is fast.

    Parameters
    ----------
    store
        The tokens.
    rows
        int64 [n_cells], rows of the store.
    kept
        bool [n_cells, patches of the grid] (or flat), which patches are shown; None for all. Of a store that holds a sample of
        the patches, those of the sample that are kept are shown. Only for the kind ``patch``.
    batch
        Tokens a step; where there are fewer, all of them.
    seed
        Of the order.
    kind
        ``patch``, ``class``, ``register`` or ``all``.
    memory_limit
        Bytes.

    Attributes
    ----------
    n_tokens, d_in, batch, n_steps_per_epoch
        Sizes.
    order
        ``permutation`` or ``blocks``.

    Raises
    ------
    CytosaeError
        No token is left, the mask does not fit, or the store does not hold this kind.
    """

    def __init__(
        self,
        store: TokenStore,
        rows: npt.NDArray[np.int64],
        kept: npt.NDArray[np.bool_] | None = None,
        batch: int = 4096,
        seed: int = 0,
        kind: str = "patch",
        memory_limit: int = MEMORY_LIMIT,
    ) -> None:
        self.store, self.seed, self.kind, self.memory_limit = store, seed, kind, memory_limit
        self.rows = np.asarray(rows, np.int64)
        self.d_in, self.dtype = store.d_in, TORCH[store.dtype]
        self._starts, self._places = self._number(kept)
        self.n_tokens = int(self._starts[-1])
        if not self.n_tokens:
            raise CytosaeError(f"No {kind} token of {store.folder} is left to train on; choose more cells or patches.")
        self.batch = min(batch, self.n_tokens)
        self.n_steps_per_epoch = max(1, self.n_tokens // self.batch)
        token_bytes = self.d_in * self.dtype.itemsize
        self._pool: ThreadPoolExecutor | None = None
        if self.n_tokens * token_bytes <= memory_limit:
            self.order = "permutation"
            self._tokens = self._gather(np.arange(-(-self.n_tokens // RUN)))
            self._permutation = TokenOrder(self.n_tokens, self.batch, seed)
        else:
            self.order = "blocks"
            self._n_runs = -(-self.n_tokens // RUN)
            self.n_blocks = -(-self._n_runs // max(1, int(memory_limit * _HELD) // (2 * token_bytes * RUN)))
            self._bounds = np.arange(self.n_blocks + 1) * self._n_runs // self.n_blocks
            self._plans: dict[int, tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = {}
            self._blocks: dict[tuple[int, int], Future[torch.Tensor]] = {}
            self._pool = ThreadPoolExecutor(1, "tokens")

    @property
    def record(self) -> dict[str, Any]:
        """What must be written down, beside the seed, to get the same order again."""
        if self.order == "permutation":
            return {"order": self.order}
        return {"order": self.order, "run": RUN, "blocks": self.n_blocks}

    def at(self, step: int) -> torch.Tensor:
        """Tokens of a step (counted from 0 over all epochs): [batch, d_in] in the stored type."""
        if self.order == "permutation":
            return self._tokens[torch.from_numpy(self._permutation.at(step))]
        epoch, position = divmod(step, self.n_steps_per_epoch)
        first, last = position * self.batch, (position + 1) * self.batch
        _, ends = self._plan(epoch)
        begins = np.concatenate([[0], ends[:-1]])
        wanted = [int(b) for b in np.flatnonzero((ends > first) & (begins < last))]
        self._hold([(epoch, b) for b in wanted])
        parts = [self._blocks[epoch, b].result()[max(0, first - begins[b]) : max(0, last - begins[b])] for b in wanted]
        return torch.cat(parts) if len(parts) > 1 else parts[0].clone()

    def sample(self, n: int, seed: int) -> torch.Tensor:
        """`n` tokens without repetition (all, where there are fewer), in ascending order of their number, whatever the mode.

        Returns
        -------
        [n, d_in] in the stored type
        """
        if n >= self.n_tokens:
            return self.take(np.arange(self.n_tokens))
        generator = np.random.Generator(np.random.Philox(key=[seed, 2**32]))
        return self.take(np.sort(generator.choice(self.n_tokens, n, replace=False)))

    def take(self, tokens: npt.NDArray[np.int64]) -> torch.Tensor:
        """Tokens by their numbers (ascending): [n, d_in] in the stored type."""
        if self.order == "permutation":
            return self._tokens[torch.from_numpy(np.asarray(tokens))]
        return self._read(np.asarray(tokens, np.int64))

    def close(self) -> None:
        """Stop the reading thread and let the memory go."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._blocks.clear()

    def __enter__(self) -> TokenStream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _number(
        self, kept: npt.NDArray[np.bool_] | None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint16] | None]:
        """Number of the first token of each cell, and the place of each token in its cell (None: all, one after another)."""
        part = self.store.part(self.kind, partial=True)
        n = part.stop - part.start
        if kept is None:
            return np.arange(len(self.rows) + 1, dtype=np.int64) * n, None
        n_grid = self.store.grid[0] * self.store.grid[1]
        if self.kind != "patch" or kept.size != len(self.rows) * n_grid:
            raise CytosaeError(
                f"A mask of {kept.size:,} does not fit {len(self.rows):,} cells of {n_grid} patches (kind {self.kind})."
            )
        mask = np.asarray(kept, bool).reshape(len(self.rows), n_grid)
        if self.store.sampled:
            mask = np.take_along_axis(mask, self.store.patches[self.rows % self.store.n_rows], 1)
        starts = np.concatenate([[0], np.cumsum(mask.sum(1, dtype=np.int64))])
        return starts, np.broadcast_to(np.arange(n, dtype=np.uint16), mask.shape)[mask]

    def _read(self, tokens: npt.NDArray[np.int64]) -> torch.Tensor:
        """Tokens by their numbers (ascending), from the store."""
        cells = np.searchsorted(self._starts, tokens, side="right") - 1
        places = tokens - self._starts[cells] if self._places is None else self._places[tokens].astype(np.int64)
        return self.store.read_tokens(self.rows[cells], places + self.store.part(self.kind, partial=True).start)

    def _gather(self, runs: npt.NDArray[np.int64], into: npt.NDArray[np.int64] | None = None) -> torch.Tensor:
        """Tokens of some runs (ascending), in their order, or each at the place that `into` says."""
        out = torch.empty(self._size(runs), self.d_in, dtype=self.dtype)
        # numpy and not torch: the reading thread must not call up a second team of torch's threads
        target, start = _numbers(out), 0
        for i in range(0, len(runs), _READ // RUN):
            tokens = (runs[i : i + _READ // RUN, None] * RUN + np.arange(RUN)).ravel()
            chosen = _numbers(self._read(tokens[tokens < self.n_tokens]))
            place = slice(start, start + len(chosen)) if into is None else into[start : start + len(chosen)]
            target[place] = chosen
            start += len(chosen)
        return out

    def _size(self, runs: npt.NDArray[np.int64]) -> int:
        """Tokens in some runs (ascending); the last of all may be short."""
        return len(runs) * RUN - max(0, (int(runs[-1]) + 1) * RUN - self.n_tokens)

    def _plan(self, epoch: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The runs of an epoch as shuffled, and where each block ends, counted in tokens."""
        if epoch not in self._plans:
            self._plans = {e: plan for e, plan in self._plans.items() if e == epoch - 1}
            runs = np.random.Generator(np.random.Philox(key=[self.seed, epoch])).permutation(self._n_runs)
            ends = self._bounds[1:] * RUN
            ends[self._bounds[1:] > np.flatnonzero(runs == self._n_runs - 1)] -= self._n_runs * RUN - self.n_tokens
            self._plans[epoch] = runs, ends
        return self._plans[epoch]

    def _hold(self, wanted: list[tuple[int, int]]) -> None:
        """Have these blocks under way and no other, but the next one where only one is wanted."""
        epoch, block = wanted[-1]
        following = (epoch, block + 1) if block + 1 < self.n_blocks else (epoch + 1, 0)
        keys = [*wanted, following] if len(wanted) == 1 else wanted
        for key in [k for k in self._blocks if k not in keys]:
            self._blocks.pop(key).cancel()
        assert self._pool is not None
        for key in keys:
            if key not in self._blocks:
                runs, _ = self._plan(key[0])
                mine = np.sort(runs[self._bounds[key[1]] : self._bounds[key[1] + 1]])
                self._blocks[key] = self._pool.submit(self._load, key, mine)

    def _load(self, key: tuple[int, int], runs: npt.NDArray[np.int64]) -> torch.Tensor:
        """The tokens of a block, shuffled; read in the order of the files."""
        # the epoch's own generator begins at counter 0 and never comes near these
        bits = np.random.Philox(key=[self.seed, key[0]], counter=[0, 0, 0, 1 + key[1]])
        return self._gather(runs, np.random.Generator(bits).permutation(self._size(runs)))


def _numbers(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """The memory of a tensor as numpy sees it (bfloat16 as its bits)."""
    array: npt.NDArray[Any] = (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array
