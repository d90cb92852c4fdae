"""The strongest cells of every latent: larger value first, then the lower cell_id."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


class Exemplars:
    """The `n` strongest cells of each of `n_latents` latents.

    Attributes
    ----------
    value, cell_id, patch
        [n_latents, n]: float32 (0 where empty), int64 and int32 (-1 where empty), best first.
    """

    def __init__(self, n_latents: int, n: int) -> None:
        self.n = n
        self.value = np.zeros((n_latents, n), np.float32)
        self.cell_id = np.full((n_latents, n), -1, np.int64)
        self.patch = np.full((n_latents, n), -1, np.int32)

    def add(
        self, latent: npt.NDArray[Any], cell_id: npt.NDArray[Any], value: npt.NDArray[Any], patch: npt.NDArray[Any]
    ) -> None:
        """Offer cells, one row a (latent, cell) with a value above 0."""
        # only what can still come in: at least the worst that is kept (an equal one may have the lower cell_id)
        good = np.flatnonzero(value >= self.value[latent, -1]) if self.n else np.empty(0, np.int64)
        good = good[self._best(latent[good], value[good])]
        if not len(good):
            return
        latent = latent[good].astype(np.int64)
        touched = np.unique(latent)
        filled = self.cell_id[touched] >= 0
        row = np.concatenate([np.repeat(touched, filled.sum(1)), latent])
        ids = np.concatenate([self.cell_id[touched][filled], cell_id[good]])
        values = np.concatenate([self.value[touched][filled], value[good]]).astype(np.float32)
        patches = np.concatenate([self.patch[touched][filled], patch[good]])
        order = _ordered(row, values, ids)
        row = row[order]
        rank = np.arange(len(row)) - np.searchsorted(row, row, side="left")
        kept = rank < self.n
        row, rank, order = row[kept], rank[kept], order[kept]
        self.value[row, rank], self.cell_id[row, rank], self.patch[row, rank] = (
            values[order],
            ids[order],
            patches[order],
        )

    def _best(self, latent: npt.NDArray[Any], value: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """bool: the `n` largest values of each latent and all that equal the least of them, by one sort of plain numbers."""
        if len(latent) <= self.n:
            return np.ones(len(latent), bool)
        key = _keys(latent, value)
        ordered = np.sort(key)
        owner = (ordered >> np.uint64(32)).astype(np.int64)
        start = np.flatnonzero(np.append(True, owner[1:] != owner[:-1]))
        end = np.append(start[1:], len(owner))
        last = np.zeros(len(self.value), np.uint64)
        last[owner[start]] = ordered[np.minimum(start + self.n, end) - 1]
        return np.asarray(key <= last[latent])

    def flat(self) -> dict[str, npt.NDArray[Any]]:
        """One row an exemplar: ``latent``, ``rank``, ``cell_id``, ``value``, ``patch``."""
        latent, rank = np.nonzero(self.cell_id >= 0)
        return {
            "latent": latent.astype(np.int64), "rank": rank.astype(np.int32), "cell_id": self.cell_id[latent, rank],
            "value": self.value[latent, rank], "patch": self.patch[latent, rank],
        }  # fmt: skip


def _keys(latent: npt.NDArray[Any], value: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """Numbers in the order of the latents, then of falling values; these are above 0, where their order is that of their bits."""
    bits = np.ascontiguousarray(value, np.float32).view(np.uint32)
    return np.asarray((latent.astype(np.uint64) << np.uint64(32)) | (np.uint32(0xFFFFFFFF) - bits))


def _ordered(latent: npt.NDArray[Any], value: npt.NDArray[Any], ids: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
    """The order by latent, then falling value, then id: one sort of plain numbers, then what is equal in it."""
    key = _keys(latent, value)
    order = np.argsort(key)
    key = key[order]
    equal = key[1:] == key[:-1]
    tied = np.flatnonzero(np.append(equal, False) | np.append(False, equal))
    order[tied] = order[tied][np.lexsort((ids[order[tied]], key[tied]))]
    return order
