"""What a cell's tokens say without a dictionary: class token, mean over the patches, and the extremes of every dimension."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cytosae._progress import Meter
from cytosae.patients._cohort import Floats, Ints
from cytosae.tokens import TokenStore

_CHUNK = 64
#: Rows of dense values worked on at a time, so that they stay in the processor's cache.
BLOCK = 2048


@dataclass(frozen=True)
class PooledTokens:
    """Of every cell [n_cells, d_in]: class token (as stored), mean patch token (float32), highest and lowest over patches (float16).

    `class_token` is None where the store holds none.
    """

    class_token: npt.NDArray[np.floating[Any]] | None
    mean: npt.NDArray[np.float32]
    highest: npt.NDArray[np.float16]
    lowest: npt.NDArray[np.float16]


def pool_tokens(store: TokenStore, cell_ids: Ints) -> PooledTokens:
    """Read the tokens of some cells once.

    Raises
    ------
    CytosaeError
        A cell has no tokens, or the store lacks patches.
    """
    n, d = len(cell_ids), store.d_in
    mean, extremes = np.empty((n, d), np.float32), np.empty((2, n, d), np.float16)
    has_class = "class" in store.token_kinds
    first: npt.NDArray[Any] | None = None
    patch = store.part("patch")
    rows, start = store.rows_of(cell_ids), 0
    with Meter(n, "patients: tokens", "cells") as meter:
        for chunk in store.chunks(rows, _CHUNK):
            tokens: Any = chunk.numpy()
            here = slice(start, start + len(tokens))
            patches = tokens[:, patch]
            mean[here] = patches.mean(1, dtype=np.float64)
            extremes[0, here] = np.clip(patches.max(1), -65504, 65504)
            extremes[1, here] = np.clip(patches.min(1), -65504, 65504)
            if has_class:
                first = np.empty((n, d), tokens.dtype) if first is None else first
                first[here] = tokens[:, store.token_kinds.index("class")]
            start += len(tokens)
            meter.add(len(tokens))
    return PooledTokens(first, mean, extremes[0], extremes[1])


class DenseValues:
    """Dense values of every cell, counted as concepts are: share of a patient's cells beyond a threshold, on both sides.

    Parameters
    ----------
    upper, lower
        [n_cells, m]: a cell counts where `upper` lies above the quantile, and, as another feature, where `lower` lies below
        the opposite one. Compared as float16.
    owner
        int64 [n_cells]: patient of each cell.
    n_patients
        Number of patients.
    order
        int64 [n_cells]: the cells in the order in which they are to be added up; as they are where None.
    """

    def __init__(
        self, upper: npt.NDArray[Any], lower: npt.NDArray[Any], owner: Ints, n_patients: int, order: Ints | None = None
    ) -> None:
        keys = _keys(upper, order)
        self._sides = [keys, 65535 - keys if lower is upper else _keys(lower, order, 65535)]
        self._owner, self.n_patients = owner if order is None else owner[order], n_patients
        self._n_cells = np.bincount(owner, minlength=n_patients)

    def shares(self, quantile: float, patients: Ints) -> Floats:
        """[n_patients, 2 m], thresholds set on `patients`, each weighing 1; NaN for a patient without cells."""
        chosen = np.zeros(self.n_patients)
        chosen[patients] = 1.0
        weight = (chosen / np.maximum(self._n_cells, 1))[self._owner]
        wanted = quantile * weight.sum() - 1e-7
        columns = []
        for side in self._sides:
            for j in range(side.shape[1]):
                key = side[:, j]
                lowest = int(key.min(initial=65535))
                running = np.cumsum(np.bincount(key - lowest, weights=weight))
                over = key > lowest + np.searchsorted(running, wanted, side="left")
                columns.append(np.bincount(self._owner[over], minlength=self.n_patients))
        with np.errstate(invalid="ignore"):
            return np.asarray(np.stack(columns, 1) / np.where(self._n_cells > 0, self._n_cells, np.nan)[:, None])


def _keys(values: npt.NDArray[Any], order: Ints | None, flip: int = 0) -> npt.NDArray[np.uint16]:
    """uint16 in the order of the values as float16 (sign and magnitude made ascending; `flip` 65535: falling); columns lie together."""
    out = np.empty(values.shape[::-1], np.uint16)
    for start in range(0, len(values), BLOCK):
        rows = slice(start, start + BLOCK) if order is None else order[start : start + BLOCK]
        bits = np.ascontiguousarray(np.asarray(values[rows], np.float16).view(np.uint16).T)
        out[:, start : start + BLOCK] = np.where(bits >> 15 == 1, ~bits, bits | 0x8000) ^ np.uint16(flip)
    return out.T
