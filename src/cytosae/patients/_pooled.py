"""What a cell's tokens say without a dictionary: class token, mean over the patches, and the extremes of every dimension."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cytosae._progress import Meter
from cytosae.patients._cohort import Floats, Ints
from cytosae.tokens import TokenStore

_CHUNK = 64
_PARTS = ("class_token", "mean", "highest", "lowest")
#: Rows of dense values worked on at a time, so that they stay in the processor's cache.
BLOCK = 2048


class Pooled(Protocol):
    """Of every cell [n_cells, d_in]: class token (None where the store holds none), mean patch token, extremes over patches."""

    @property
    def class_token(self) -> npt.NDArray[Any] | None:
        """float16 where the store holds that, else float32."""

    @property
    def mean(self) -> npt.NDArray[np.float32]:
        """float32."""

    @property
    def highest(self) -> npt.NDArray[np.float16]:
        """float16."""

    @property
    def lowest(self) -> npt.NDArray[np.float16]:
        """float16."""


@dataclass(frozen=True)
class PooledTokens:
    """`Pooled` in memory."""

    class_token: npt.NDArray[Any] | None
    mean: npt.NDArray[np.float32]
    highest: npt.NDArray[np.float16]
    lowest: npt.NDArray[np.float16]


@dataclass(frozen=True)
class PooledFiles:
    """`Pooled` in files of a folder, each mapped into memory anew for whoever asks, and let go with that."""

    folder: Path
    shape: tuple[int, int]
    types: dict[str, npt.DTypeLike]

    @property
    def class_token(self) -> npt.NDArray[Any] | None:
        """See `Pooled`."""
        return self._mapped("class_token") if "class_token" in self.types else None

    @property
    def mean(self) -> npt.NDArray[np.float32]:
        """See `Pooled`."""
        return self._mapped("mean")

    @property
    def highest(self) -> npt.NDArray[np.float16]:
        """See `Pooled`."""
        return self._mapped("highest")

    @property
    def lowest(self) -> npt.NDArray[np.float16]:
        """See `Pooled`."""
        return self._mapped("lowest")

    def _mapped(self, part: str) -> npt.NDArray[Any]:
        if not self.shape[0]:
            return np.empty(self.shape, self.types[part])
        return np.memmap(self.folder / part, self.types[part], "r", shape=self.shape)


def pool_tokens(store: TokenStore, cell_ids: Ints, folder: Path | None = None) -> Pooled:
    """Read the tokens of some cells once.

    Parameters
    ----------
    store, cell_ids
        The tokens, and whose.
    folder
        Where to keep what is pooled, in files without form that are of use to this run alone; None: in memory.

    Raises
    ------
    CytosaeError
        A cell has no tokens, or the store lacks patches.
    """
    n, d = len(cell_ids), store.d_in
    types: dict[str, npt.DTypeLike] = {"mean": np.float32, "highest": np.float16, "lowest": np.float16}
    if "class" in store.token_kinds:
        types["class_token"] = np.float16 if store.dtype == "float16" else np.float32
    start, arrays = 0, {} if folder else {part: np.empty((n, d), kind) for part, kind in types.items()}
    with Meter(n, "patients: tokens", "cells") as meter, ExitStack() as stack:
        files = {part: stack.enter_context((folder / part).open("wb")) for part in types} if folder else {}
        for found in _chunks(store, cell_ids):
            height = len(found["mean"])
            for part, kind in types.items():
                if folder:
                    files[part].write(found[part].astype(kind).tobytes())
                else:
                    arrays[part][start : start + height] = found[part]
            start += height
            meter.add(height)
    return PooledFiles(folder, (n, d), types) if folder else PooledTokens(*(arrays.get(part) for part in _PARTS))  # type: ignore[arg-type]


def _chunks(store: TokenStore, cell_ids: Ints) -> Iterator[dict[str, npt.NDArray[Any]]]:
    """The parts of `Pooled` of some cells at a time, in the order of the cells."""
    patch = store.part("patch")
    for chunk in store.chunks(store.rows_of(cell_ids), _CHUNK):
        tokens: Any = chunk.numpy()
        patches = tokens[:, patch]
        found = {
            "mean": patches.mean(1, dtype=np.float64),
            "highest": np.clip(patches.max(1), -65504, 65504),
            "lowest": np.clip(patches.min(1), -65504, 65504),
        }
        if "class" in store.token_kinds:
            found["class_token"] = tokens[:, store.token_kinds.index("class")]
        yield found


class DenseValues:
    """Dense values of every cell, counted as concepts are: share of a patient's cells beyond a threshold, on both sides.

    Parameters
    ----------
    upper, lower
        uint16 [m, n_cells] from `ordered_keys`: a cell counts where `upper` lies above the quantile, and, as another
        feature, where `lower` lies below the opposite one.
    owner
        int64 [n_cells], ascending: patient of each cell.
    n_patients
        Number of patients.
    outermost
        Of every column this share of the cells is sorted once, so that a threshold among them costs no pass over all;
        worth it where many sets of patients are asked for.
    """

    def __init__(
        self, upper: npt.NDArray[np.uint16], lower: npt.NDArray[np.uint16], owner: Ints, n_patients: int,
        outermost: float = 0.0,
    ) -> None:  # fmt: skip
        self._upper, self._lower, self._owner, self.n_patients = upper, lower, owner, n_patients
        self._ends = np.searchsorted(owner, np.arange(n_patients + 1))
        n = min(len(owner), int(np.ceil(outermost * len(owner))))
        self._keys = np.empty((2 * len(upper) if n else 0, n), np.uint16)
        self._owners = np.empty(self._keys.shape, np.uint16 if n_patients < 2**16 else np.int32)
        for j in range(len(self._keys)):
            key = self._column(j)
            most = np.argpartition(key, len(key) - n)[len(key) - n :]
            most = most[np.argsort(key[most])]
            self._keys[j], self._owners[j] = key[most], owner[most]

    def shares(self, quantile: float, patients: Ints) -> Floats:
        """[n_patients, 2 m], thresholds set on `patients`, each weighing 1; NaN for a patient without cells."""
        n_cells = np.diff(self._ends)
        chosen = np.zeros(self.n_patients)
        chosen[patients] = 1.0
        of_patient = chosen / np.maximum(n_cells, 1)
        weight = of_patient[self._owner]
        total = weight.sum()
        wanted = quantile * total - 1e-7
        counts = np.zeros((self.n_patients, 2 * len(self._upper)), np.int64)
        for j in range(counts.shape[1] if len(weight) else 0):
            found = self._among_sorted(j, of_patient, total, wanted) if len(self._keys) else None
            counts[:, j] = self._among_all(j, weight, wanted) if found is None else found
        with np.errstate(invalid="ignore"):
            return np.asarray(counts / np.where(n_cells > 0, n_cells, np.nan)[:, None])

    def _column(self, j: int) -> npt.NDArray[np.uint16]:
        """Keys of a feature, of which the highest count."""
        m = len(self._upper)
        return np.asarray(self._upper[j] if j < m else 65535 - self._lower[j - m])

    def _among_all(self, j: int, weight: Floats, wanted: float) -> Ints:
        """Cells of each patient beyond the smallest key at or below which lies the wanted weight."""
        key = self._column(j)
        lowest = key.min()
        running = np.cumsum(np.bincount(key - lowest, weights=weight))
        beyond = key > int(lowest) + np.searchsorted(running, wanted, side="left")
        return np.diff(np.searchsorted(np.flatnonzero(beyond), self._ends))

    def _among_sorted(self, j: int, of_patient: Floats, total: float, wanted: float) -> Ints | None:
        """The same from the outermost cells; None where the threshold is not among them."""
        running = np.cumsum(of_patient[self._owners[j]])
        place = int(np.searchsorted(running, wanted - (total - running[-1]), side="left"))
        if total - running[-1] >= wanted or place == len(running):
            return None
        first = np.searchsorted(self._keys[j], self._keys[j, place], side="right")
        return np.bincount(self._owners[j, first:], minlength=self.n_patients)


def ordered_keys(blocks: Iterable[npt.NDArray[Any]], shape: tuple[int, int]) -> npt.NDArray[np.uint16]:
    """uint16 [m, n_cells] in the order of the values as float16 (sign and magnitude made ascending), from [some cells, m]."""
    out, start = np.empty(shape, np.uint16), 0
    for block in blocks:
        bits = np.ascontiguousarray(np.asarray(block, np.float16).view(np.uint16).T)
        out[:, start : start + len(block)] = np.where(bits >> 15 == 1, ~bits, bits | 0x8000)
        start += len(block)
    return out


def taken(values: npt.NDArray[Any], order: Ints) -> Iterator[npt.NDArray[Any]]:
    """Rows of `values` in that order, `BLOCK` at a time."""
    for start in range(0, len(order), BLOCK):
        yield values[order[start : start + BLOCK]]
