"""From the codes of tokens to what they say of each cell: one entry a (cell, latent) that is active."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch

from cytosae.concepts._codes import Codes
from cytosae.sae.ops.native import Pooled, native_library, pool

Ints = npt.NDArray[np.int64]

#: How a cell's value for a concept follows from its tokens: the largest code, or the mean over all of them.
BY = ("max", "mean")


@dataclass(frozen=True)
class PooledCells:
    """What some cells say of every latent, sparse: entries are the (cell, latent) with at least one code.

    Attributes
    ----------
    cell_ids
        int64 [n_cells].
    n_tokens
        Tokens of a cell.
    n_latents
        Of the dictionary.
    cell, latent
        int32 [n]: position in `cell_ids`, and latent; sorted by latent, then cell.
    value
        float32 [n]: by which cells are ranked; the largest code, or the mean over the tokens.
    patch
        int32 [n]: the first token that has the largest code; -1 where cells are ranked by the mean.
    total
        float64 [n]: sum of the codes.
    n_active
        int32 [n]: tokens with a code.
    above
        int32 [n_thresholds, n]: tokens with a code above each threshold.
    """

    cell_ids: Ints
    n_tokens: int
    n_latents: int
    cell: npt.NDArray[np.int32]
    latent: npt.NDArray[np.int32]
    value: npt.NDArray[np.float32]
    patch: npt.NDArray[np.int32]
    total: npt.NDArray[np.float64]
    n_active: npt.NDArray[np.int32]
    above: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.latent)

    def entries(self, start: int, stop: int) -> PooledCells:
        """The same cells with some of the entries."""
        names = ("cell", "latent", "value", "patch", "total", "n_active")
        part = {name: getattr(self, name)[start:stop] for name in names}
        return replace(self, **part, above=self.above[:, start:stop])

    def only(self, cell_ids: Ints) -> PooledCells:
        """Some of the cells, in the order given (padding is left out)."""
        place = np.full(len(self.cell_ids), -1, np.int32)
        where = {int(c): i for i, c in enumerate(self.cell_ids)}
        place[[where[int(c)] for c in cell_ids]] = np.arange(len(cell_ids), dtype=np.int32)
        cell = place[self.cell]
        kept = np.flatnonzero(cell >= 0)
        kept = kept[np.lexsort((cell[kept], self.latent[kept]))]
        return PooledCells(
            np.asarray(cell_ids), self.n_tokens, self.n_latents, cell[kept], self.latent[kept], self.value[kept],
            self.patch[kept], self.total[kept], self.n_active[kept], self.above[:, kept],
        )  # fmt: skip

    def matrix(self, what: str) -> sp.csr_matrix:
        """Cells x latents, sparse float32, of ``max``, ``mean`` or ``patch_share``."""
        if what == "max":
            data = self.value
        else:
            data = ((self.total if what == "mean" else self.n_active) / self.n_tokens).astype(np.float32)
        found = sp.csc_matrix(
            (data, self.cell, np.searchsorted(self.latent, np.arange(self.n_latents + 1))),
            shape=(len(self.cell_ids), self.n_latents),
        ).tocsr()
        found.sort_indices()
        return found


def pool_codes(
    codes: Codes, cell_ids: Ints, n_tokens: int, thresholds: Sequence[float] = (), by: str = "max"
) -> PooledCells:
    """Pool the codes of ``len(cell_ids) * n_tokens`` tokens, the tokens of a cell lying together in their order.

    A cell's sum is made in float64 in the order of its tokens, so that it depends on nothing but the cell's own codes. Compiled
    where that can be built; the same to the last bit elsewhere.
    """
    lib = native_library() if codes.value.device.type == "cpu" else None
    cells = (
        _pooled(codes, len(cell_ids), n_tokens, thresholds)
        if lib is None
        else pool(lib, codes, len(cell_ids), n_tokens, thresholds)
    )
    top, patch = cells.top, cells.patch
    if by == "mean":
        top, patch = (cells.total / n_tokens).astype(np.float32), np.full(len(top), -1, np.int32)
    return PooledCells(
        cell_ids,
        n_tokens,
        codes.n_latents,
        cells.cell,
        cells.latent,
        top,
        patch,
        cells.total,
        cells.n_active,
        cells.above,
    )


def _pooled(codes: Codes, n_cells: int, n_tokens: int, thresholds: Sequence[float]) -> Pooled:
    """The reference of `cytosae.sae.ops.native.pool`."""
    value, column = codes.value.numpy(), codes.latent.numpy()
    rows = codes.row_start.to(torch.int32) if len(value) < 2**31 else codes.row_start
    # by counting, linear in the number of codes; within a latent the tokens stay in order
    shape = (n_cells * n_tokens, codes.n_latents)
    turned = sp.csr_matrix((value, column.astype(rows.numpy().dtype), rows.numpy()), shape=shape, copy=False).tocsc()
    value, token, ends = turned.data, turned.indices, turned.indptr
    cell = token // n_tokens
    first = np.empty(len(token), bool)
    first[:1] = True
    np.not_equal(cell[1:], cell[:-1], out=first[1:])
    begins = ends[:-1]
    first[begins[begins < len(token)]] = True
    start = np.flatnonzero(first)
    latent = np.repeat(np.arange(codes.n_latents, dtype=np.int32), np.diff(np.searchsorted(start, ends)))
    if not len(start):
        empty = np.empty(0, np.int32)
        return Pooled(
            empty, empty, np.empty(0, np.float32), empty, np.empty(0), empty, np.empty((len(thresholds), 0), np.int32)
        )
    count = np.diff(np.append(start, len(token))).astype(np.int32)
    owner = np.repeat(np.arange(len(start)), count)
    total = np.bincount(owner, value).astype(np.float64)  # adds in order, in float64
    top = np.maximum.reduceat(value, start)
    best = np.flatnonzero(value == top[owner])
    new = np.append(True, owner[best][1:] != owner[best][:-1])  # the first of equal patches
    patch = (token[best[new]] - cell[start] * n_tokens).astype(np.int32)
    above = np.empty((len(thresholds), len(start)), np.int32)
    for row, threshold in enumerate(thresholds):
        above[row] = np.add.reduceat((value > np.float32(threshold)).astype(np.int32), start)
    return Pooled(cell[start].astype(np.int32), latent, top, patch, total, count, above)


def join(parts: Sequence[PooledCells]) -> PooledCells:
    """Several lots of cells as one, sorted by latent, then by the order in which the cells came."""
    offsets = np.cumsum([0, *(len(p.cell_ids) for p in parts)])[:-1]
    latent = np.concatenate([p.latent for p in parts])
    order = np.argsort(latent, kind="stable")

    def column(name: str) -> Any:
        return np.concatenate([getattr(p, name) for p in parts])[order]

    cell = np.concatenate([p.cell + np.int32(offset) for p, offset in zip(parts, offsets, strict=True)])[order]
    return PooledCells(
        np.concatenate([p.cell_ids for p in parts]), parts[0].n_tokens, parts[0].n_latents, cell, latent[order],
        column("value"), column("patch"), column("total"), column("n_active"),
        np.concatenate([p.above for p in parts], axis=1)[:, order],
    )  # fmt: skip
