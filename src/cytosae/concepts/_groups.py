"""Counts and sums by groups of cells (label, patient, data set), kept only where a group has a latent active at all."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cytosae.concepts import _exact
from cytosae.concepts._pool import PooledCells

Ints = npt.NDArray[np.int64]

#: Up to so many (group, latent) pairs counts are made in a dense table; beyond it by sorting.
_DENSE = 4_000_000


class GroupCounts:
    """For each (group, latent): active cells, active tokens, cells and tokens above each threshold, and the exact sum.

    Attributes
    ----------
    names
        Of the groups, sorted.
    n_cells
        int64 [n_groups]: cells of each group, active or not.
    keys
        int64 [n]: ``group * n_latents + latent``, ascending; current after `settle`.
    rows
        int64 [2 + 2 n_thresholds + 4, n]: the counts, then the limbs of the sum.
    """

    def __init__(self, names: tuple[str, ...], n_latents: int, n_thresholds: int = 0) -> None:
        self.names, self.n_latents, self.n_counts = names, n_latents, 2 + 2 * n_thresholds
        self.n_cells = np.zeros(len(names), np.int64)
        self.keys = np.empty(0, np.int64)
        self.rows = np.empty((self.n_counts + _exact.N_LIMBS, 0), np.int64)
        self._waiting: list[tuple[Ints, Ints]] = []

    def update(self, cells: PooledCells, group: Ints) -> None:
        """Add cells; `group` int64 [n_cells] is each cell's position in `names`, -1 for none."""
        self.n_cells += np.bincount(group[group >= 0], minlength=len(self.names))
        owner = group[cells.cell]
        here = np.flatnonzero(owner >= 0)
        if not len(here):
            return
        keys = owner[here] * self.n_latents + cells.latent[here]
        each: list[npt.NDArray[Any]] = [np.ones(len(here), np.int64), cells.n_active[here]]
        for above in cells.above:
            each += [above[here] > 0, above[here]]
        self._add(keys, np.stack([*(e.astype(np.int64) for e in each), *_exact.split(cells.total[here])]))

    def merge(self, other: GroupCounts) -> None:
        """Add what other cells gave; groups that only one side knows are united."""
        self.settle()
        other.settle()
        if self.names != other.names:
            names = tuple(sorted({*self.names, *other.names}))
            for side in (self, other := other.copy()):
                side._rename(names)
        self.n_cells = self.n_cells + other.n_cells
        self._wait(other.keys, other.rows)

    def settle(self) -> GroupCounts:
        """Bring everything that waits into `keys` and `rows`, in the one form that it has whatever led to it."""
        if self._waiting:
            keys = np.concatenate([self.keys, *(k for k, _ in self._waiting)])
            rows = np.concatenate([self.rows, *(r for _, r in self._waiting)], axis=1)
            self._waiting = []
            self.keys, self.rows = _summed(keys, rows)
            _exact.carry(self.rows[self.n_counts :])
        return self

    def copy(self) -> GroupCounts:
        """The same counts, independent of these."""
        out = GroupCounts(self.names, self.n_latents, (self.n_counts - 2) // 2)
        out.n_cells, out.keys, out.rows = self.n_cells.copy(), self.keys.copy(), self.rows.copy()
        out._waiting = list(self._waiting)
        return out

    def dense(self, row: int) -> Ints:
        """One row of counts as a table: int64 [n_groups, n_latents]."""
        self.settle()
        out = np.zeros(len(self.names) * self.n_latents, np.int64)
        out[self.keys] = self.rows[row]
        return out.reshape(len(self.names), self.n_latents)

    def _add(self, keys: Ints, rows: Ints) -> None:
        space = len(self.names) * self.n_latents
        if space <= _DENSE:
            seen = np.zeros(space, bool)
            seen[keys] = True
            found = np.flatnonzero(seen)
            place = np.zeros(space, np.int32)
            place[found] = np.arange(len(found), dtype=np.int32)
            out = np.zeros((len(rows), len(found)), np.int64)
            for i, row in enumerate(rows):
                np.add.at(out[i], place[keys], row)
            self._wait(found, out)
        else:
            self._wait(*_summed(keys, rows))

    def _wait(self, keys: Ints, rows: Ints) -> None:
        self._waiting.append((keys, rows))
        if sum(len(k) for k, _ in self._waiting) > max(2 * len(self.keys), 1_000_000):
            self.settle()

    def _rename(self, names: tuple[str, ...]) -> None:
        """Number the groups by another, larger list of names."""
        place = np.array([names.index(name) for name in self.names], np.int64)
        n_cells = np.zeros(len(names), np.int64)
        n_cells[place] = self.n_cells
        group, latent = np.divmod(self.keys, self.n_latents)
        keys = place[group] * self.n_latents + latent if len(group) else self.keys
        order = np.argsort(keys)
        self.names, self.n_cells, self.keys, self.rows = names, n_cells, keys[order], self.rows[:, order]


def _summed(keys: Ints, rows: Ints) -> tuple[Ints, Ints]:
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    start = np.flatnonzero(np.diff(keys, prepend=-1))
    return keys[start], np.add.reduceat(rows[:, order], start, axis=1) if len(start) else rows[:, :0]
