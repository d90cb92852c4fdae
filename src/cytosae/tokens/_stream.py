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
#: Neighbouring cells that are read together where the tokens do not fit; neighbours are often of one class.
PIECE = 8
#: Cells read at once while tokens are gathered.
_READ = 64


class TokenStream:
    """Shuffled batches of the tokens of some cells.

    Tokens are numbered in the order of `rows`, within a cell in the order of the store, those not kept left out.

    - ``permutation``: where all fit into `memory_limit`, an epoch is one random permutation of them all (`TokenOrder`).
    - ``blocks``: where they do not, an epoch shuffles pieces of `PIECE` neighbouring cells, joins them into equal blocks of
      which two fit into the limit, and permutes the tokens within each block. A block is read in the order of the file,
      by a thread, while the block before it is used.

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
        self._kept = self._mask(kept)
        self._starts = np.concatenate([[0], np.cumsum(self._kept.sum(1, dtype=np.int64))])  # first token of each cell
        self.n_tokens = int(self._starts[-1])
        if not self.n_tokens:
            raise CytosaeError(f"No {kind} token of {store.folder} is left to train on; choose more cells or patches.")
        self.batch = min(batch, self.n_tokens)
        self.n_steps_per_epoch = max(1, self.n_tokens // self.batch)
        self._token_bytes = self.d_in * self.dtype.itemsize
        self._pool: ThreadPoolExecutor | None = None
        if self.n_tokens * self._token_bytes <= memory_limit:
            self.order = "permutation"
            self._tokens = self._gather(np.arange(len(self.rows)))
            self._permutation = TokenOrder(self.n_tokens, self.batch, seed)
        else:
            self.order = "blocks"
            largest = PIECE * self._kept.shape[1]
            fitting = max(largest, memory_limit // (2 * self._token_bytes) - largest)
            self.n_blocks = -(-self.n_tokens // fitting)
            self._plans: dict[int, tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = {}
            self._blocks: dict[tuple[int, int], Future[torch.Tensor]] = {}
            self._pool = ThreadPoolExecutor(1, "tokens")

    @property
    def record(self) -> dict[str, Any]:
        """What must be written down, beside the seed, to get the same order again."""
        if self.order == "permutation":
            return {"order": self.order}
        return {"order": self.order, "piece": PIECE, "blocks": self.n_blocks}

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
        cell_of = np.searchsorted(self._starts, tokens, side="right") - 1
        out = torch.empty(len(tokens), self.d_in, dtype=self.dtype)
        cells, begins = np.unique(cell_of, return_index=True)
        for i in range(0, len(cells), _READ):
            part = cells[i : i + _READ]
            stop = begins[i + _READ] if i + _READ < len(cells) else len(tokens)
            here = np.arange(begins[i], stop)
            place = np.cumsum(np.concatenate([[0], np.diff(self._starts)[part]]))  # of each cell in what is gathered
            local = place[np.searchsorted(part, cell_of[here])] + tokens[here] - self._starts[cell_of[here]]
            out[torch.from_numpy(here)] = self._gather(part)[torch.from_numpy(local)]
        return out

    def close(self) -> None:
        """Stop the reading thread and let the memory go."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._blocks.clear()

    def __enter__(self) -> TokenStream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _mask(self, kept: npt.NDArray[np.bool_] | None) -> npt.NDArray[np.bool_]:
        """bool [n_cells, tokens of the kind in the store]."""
        part = self.store.part(self.kind, partial=True)
        if kept is None:
            return np.ones((len(self.rows), part.stop - part.start), bool)
        n_grid = self.store.grid[0] * self.store.grid[1]
        if self.kind != "patch" or kept.size != len(self.rows) * n_grid:
            raise CytosaeError(
                f"A mask of {kept.size:,} does not fit {len(self.rows):,} cells of {n_grid} patches (kind {self.kind})."
            )
        whole = np.asarray(kept, bool).reshape(len(self.rows), n_grid)
        return np.take_along_axis(whole, self.store.patches[self.rows], 1) if self.store.sampled else whole

    def _gather(self, cells: npt.NDArray[np.int64], into: npt.NDArray[np.int64] | None = None) -> torch.Tensor:
        """Kept tokens of some cells (numbers into `rows`), in their order, or each at the place that `into` says."""
        sizes = self._starts[cells + 1] - self._starts[cells]
        out = torch.empty(int(sizes.sum()), self.d_in, dtype=self.dtype)
        # numpy and not torch: the reading thread must not call up a second team of torch's threads
        target, start = _numbers(out), 0
        for i in range(0, len(cells), _READ):
            part = cells[i : i + _READ]
            chosen = _numbers(self.store.read(self.rows[part], kind=self.kind, partial=True)).reshape(-1, self.d_in)
            if not self._kept[part].all():
                chosen = chosen[self._kept[part].ravel()]
            place = slice(start, start + len(chosen)) if into is None else into[start : start + len(chosen)]
            target[place] = chosen
            start += len(chosen)
        return out

    def _plan(self, epoch: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """The pieces of an epoch as shuffled, and where each block ends, counted in tokens."""
        if epoch not in self._plans:
            self._plans = {e: plan for e, plan in self._plans.items() if e == epoch - 1}
            n_pieces = -(-len(self.rows) // PIECE)
            pieces = np.random.Generator(np.random.Philox(key=[self.seed, epoch])).permutation(n_pieces)
            self._plans[epoch] = pieces, self._ends(pieces)[1]
        return self._plans[epoch]

    def _ends(self, pieces: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Block of each shuffled piece, and the end of each block: pieces go where their middle token falls."""
        lasts = np.minimum((pieces + 1) * PIECE, len(self.rows))
        sizes = self._starts[lasts] - self._starts[pieces * PIECE]
        middle = np.cumsum(sizes) - sizes / 2
        block = np.minimum((middle * self.n_blocks / self.n_tokens).astype(np.int64), self.n_blocks - 1)
        return block, np.cumsum(np.bincount(block, sizes, self.n_blocks).astype(np.int64))

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
                pieces, _ = self._plan(key[0])
                mine = np.sort(pieces[self._ends(pieces)[0] == key[1]])
                self._blocks[key] = self._pool.submit(self._load, key, mine)

    def _load(self, key: tuple[int, int], pieces: npt.NDArray[np.int64]) -> torch.Tensor:
        """The tokens of a block, shuffled; read in the order of the file."""
        cells = (pieces[:, None] * PIECE + np.arange(PIECE)).ravel()
        cells = cells[cells < len(self.rows)]
        n = int((self._starts[cells + 1] - self._starts[cells]).sum())
        # the epoch's own generator begins at counter 0 and never comes near these
        bits = np.random.Philox(key=[self.seed, key[0]], counter=[0, 0, 0, 1 + key[1]])
        return self._gather(cells, np.random.Generator(bits).permutation(n))


def _numbers(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """The memory of a tensor as numpy sees it (bfloat16 as its bits)."""
    array: npt.NDArray[Any] = (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array
