"""Counts and sums by groups of cells (label, patient, data set), kept only where a group has a latent active at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cytosae.concepts import _exact

Ints = npt.NDArray[np.int64]

#: Up to so many (group, latent) pairs an entry counts are made in a dense table; beyond it by sorting.
_DENSE = 8


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

    def count_cells(self, group: Ints) -> None:
        """Add cells, active or not; `group` int64 [n_cells] is each cell's position in `names`, -1 for none."""
        self.n_cells += np.bincount(group[group >= 0], minlength=len(self.names))

    def add(self, latent: npt.NDArray[Any], owner: Ints, numbers: Sequence[npt.NDArray[np.float64]]) -> None:
        """Add entries, one a (cell, latent), the latents ascending.

        Parameters
        ----------
        latent, owner
            [n]: latent, and the position of the cell's group in `names`, -1 for none.
        numbers
            What is summed, whole numbers [n] in the order of `rows`.
        """
        here = owner >= 0
        if not here.all():
            latent, owner, numbers = latent[here], owner[here], [row[here] for row in numbers]
        if not len(latent):
            return
        low, width = int(latent[0]), int(latent[-1]) - int(latent[0]) + 1
        space = len(self.names) * width
        if space > _DENSE * len(latent):
            self._wait(*_summed(owner * self.n_latents + latent, np.stack(numbers).astype(np.int64)))
            return
        keys = owner * width + (latent - low)
        rows = np.stack([_exact.sums_by(keys, row, space) for row in numbers])
        found = np.flatnonzero(rows[0])
        group, place = np.divmod(found, width)
        self._wait(group * self.n_latents + low + place, rows[:, found])

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
