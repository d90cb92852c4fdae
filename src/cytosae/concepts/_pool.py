"""From the codes of tokens to what they say of each cell: one entry a (cell, latent) that is active."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch

from cytosae.concepts._codes import Codes

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

    A cell's sum is made in float64 and depends on nothing but the cell's own codes.
    """
    value, column = codes.value.numpy(), codes.latent.numpy()
    shape = (len(cell_ids) * n_tokens, codes.n_latents)
    rows = codes.row_start.to(torch.int32) if len(value) < 2**31 else codes.row_start
    # by counting, linear in the number of codes; within a latent the tokens stay in order
    turned = sp.csr_matrix((value, column.astype(rows.numpy().dtype), rows.numpy()), shape=shape, copy=False).tocsc()
    value, token, ends = turned.data, turned.indices, turned.indptr
    cell = token // n_tokens
    first = np.empty(len(token), bool)
    first[:1] = True
    np.not_equal(cell[1:], cell[:-1], out=first[1:])
    begins = ends[:-1]
    first[begins[begins < len(token)]] = True
    start = np.flatnonzero(first)
    latent = (np.searchsorted(ends, start, side="right") - 1).astype(np.int32)
    if not len(start):
        empty = np.empty(0, np.int32)
        return PooledCells(cell_ids, n_tokens, codes.n_latents, empty, empty, np.empty(0, np.float32), empty,
                           np.empty(0), empty, np.empty((len(thresholds), 0), np.int32))  # fmt: skip
    count = np.diff(np.append(start, len(token))).astype(np.int32)
    total = np.add.reduceat(value.astype(np.float64), start)
    if by == "max":
        top = np.maximum.reduceat(value, start)
        best = np.flatnonzero(value == np.repeat(top, count))
        owner = np.repeat(np.arange(len(start)), count)[best]
        new = np.append(True, owner[1:] != owner[:-1])  # the first of equal patches
        patch = (token[best[new]] - cell[start] * n_tokens).astype(np.int32)
    else:
        top, patch = (total / n_tokens).astype(np.float32), np.full(len(start), -1, np.int32)
    above = np.empty((len(thresholds), len(start)), np.int32)
    for row, threshold in enumerate(thresholds):
        above[row] = np.add.reduceat((value > np.float32(threshold)).astype(np.int32), start)
    return PooledCells(
        cell_ids, n_tokens, codes.n_latents, cell[start].astype(np.int32), latent, top, patch, total, count, above
    )


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
