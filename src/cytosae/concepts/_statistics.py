"""Statistics of every latent over cells: a value with `update`, `merge` and `finish`; sums are integers, so merging is exact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cytosae._errors import CytosaeError
from cytosae.concepts import _exact
from cytosae.concepts._exemplars import Exemplars
from cytosae.concepts._groups import GroupCounts
from cytosae.concepts._pool import PooledCells

#: By what cells can be grouped: columns of the table.
GROUPINGS = ("label", "patient", "dataset")

#: Entries that are added together: what is made of them stays in the cache, and memory does not grow with a shard's.
_LOT = 1 << 18

Ints = npt.NDArray[np.int64]


@dataclass
class ConceptStatistics:
    """Counts, sums, maxima and exemplars of `n_latents` latents.

    Attributes
    ----------
    n_latents
        Of the dictionary.
    groups
        Column -> names of its groups, sorted; a cell without one counts for none.
    n_exemplars
        Cells kept a latent.
    thresholds
        Codes above each are counted, by token and by cell.
    n_cells, n_tokens
        All that were added, active or not.
    cells_active, tokens_active
        int64 [n_latents].
    cells_above, tokens_above
        int64 [n_thresholds, n_latents].
    total
        int64 [4, n_latents]: exact sum of the codes over all tokens (`_exact`).
    maximum
        float32 [n_latents]: largest value of a cell.
    by
        Column -> the same by groups.
    exemplars
        The strongest cells.
    """

    n_latents: int
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    n_exemplars: int = 20
    thresholds: tuple[float, ...] = ()
    n_cells: int = 0
    n_tokens: int = 0
    cells_active: Ints = field(init=False)
    tokens_active: Ints = field(init=False)
    cells_above: Ints = field(init=False)
    tokens_above: Ints = field(init=False)
    total: Ints = field(init=False)
    maximum: npt.NDArray[np.float32] = field(init=False)
    by: dict[str, GroupCounts] = field(init=False)
    exemplars: Exemplars = field(init=False)

    def __post_init__(self) -> None:
        n, t = self.n_latents, len(self.thresholds)
        self.cells_active, self.tokens_active = np.zeros(n, np.int64), np.zeros(n, np.int64)
        self.cells_above, self.tokens_above = np.zeros((t, n), np.int64), np.zeros((t, n), np.int64)
        self.total = _exact.zeros(n)
        self.maximum = np.zeros(n, np.float32)
        self.by = {name: GroupCounts(names, n, t) for name, names in self.groups.items()}
        self.exemplars = Exemplars(n, self.n_exemplars)

    def update(self, cells: PooledCells, groups: Mapping[str, Ints] | None = None) -> None:
        """Add cells.

        Parameters
        ----------
        cells
            Their pooled codes.
        groups
            Column -> int64 [n_cells]: position of each cell's group in ``self.groups[column]``, -1 for none.
        """
        self.n_cells += len(cells.cell_ids)
        self.n_tokens += len(cells.cell_ids) * cells.n_tokens
        owners = {name: np.asarray((groups or {})[name], np.int64) for name in self.by}
        for name, counts in self.by.items():
            counts.count_cells(owners[name])
        for start in range(0, len(cells), _LOT):
            self._add(cells.entries(start, start + _LOT), owners)
        _exact.carry(self.total)

    def _add(self, cells: PooledCells, owners: Mapping[str, Ints]) -> None:
        """Add some entries, of latents that lie side by side."""
        low, high = int(cells.latent[0]), int(cells.latent[-1]) + 1
        at, span = cells.latent - low, slice(low, high)
        numbers = [np.ones(len(cells)), cells.n_active.astype(np.float64)]
        for above in cells.above:
            numbers += [(above > 0).astype(np.float64), above.astype(np.float64)]
        numbers += [*_exact.limbs_of(cells.total)]
        sums = np.stack([_exact.sums_by(at, row, high - low) for row in numbers])
        self.cells_active[span] += sums[0]
        self.tokens_active[span] += sums[1]
        self.cells_above[:, span] += sums[2 : -_exact.N_LIMBS : 2]
        self.tokens_above[:, span] += sums[3 : -_exact.N_LIMBS : 2]
        self.total[:, span] += sums[-_exact.N_LIMBS :]
        start = np.flatnonzero(np.diff(cells.latent, prepend=-1))
        highest = np.zeros(high - low, np.float32)
        highest[at[start]] = np.maximum.reduceat(cells.value, start)
        np.maximum(self.maximum[span], highest, out=self.maximum[span])
        for name, counts in self.by.items():
            counts.add(cells.latent, owners[name][cells.cell], numbers)
        self.exemplars.add(cells.latent, cells.cell_ids[cells.cell], cells.value, cells.patch)

    def merge(self, other: ConceptStatistics) -> None:
        """Add what other cells gave.

        Raises
        ------
        CytosaeError
            Another number of latents or exemplars, other thresholds or groupings.
        """
        for what in ("n_latents", "n_exemplars", "thresholds"):
            if getattr(self, what) != getattr(other, what):
                raise CytosaeError(
                    f"These statistics differ in {what} ({getattr(self, what)} against {getattr(other, what)}) and cannot "
                    "be merged; make both with the same settings."
                )
        if set(self.by) != set(other.by):
            raise CytosaeError(
                f"These statistics are grouped by {sorted(self.by)} and by {sorted(other.by)} and cannot be merged; "
                "make both with the same settings."
            )
        self.n_cells += other.n_cells
        self.n_tokens += other.n_tokens
        for name in ("cells_active", "tokens_active", "cells_above", "tokens_above", "total"):
            getattr(self, name).__iadd__(getattr(other, name))
        _exact.carry(self.total)
        self.maximum = np.maximum(self.maximum, other.maximum)
        for name, counts in self.by.items():
            counts.merge(other.by[name])
        self.groups = {name: counts.names for name, counts in self.by.items()}
        flat = other.exemplars.flat()
        self.exemplars.add(flat["latent"], flat["cell_id"], flat["value"], flat["patch"])

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Everything as arrays, in the one form that the same cells always have: equal statistics give equal bytes."""
        out: dict[str, npt.NDArray[Any]] = {
            "size": np.array([self.n_cells, self.n_tokens], np.int64),
            "thresholds": np.asarray(self.thresholds, np.float64),
            "total": self.total,
            "maximum": self.maximum,
        }
        for name in ("cells_active", "tokens_active", "cells_above", "tokens_above"):
            out[name] = getattr(self, name)
        for name, counts in self.by.items():
            counts.settle()
            out |= {f"{name}.n_cells": counts.n_cells, f"{name}.keys": counts.keys, f"{name}.rows": counts.rows}
        return out | {f"exemplars.{k}": v for k, v in self.exemplars.flat().items()}

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, npt.NDArray[Any]], groups: Mapping[str, tuple[str, ...]], n_exemplars: int
    ) -> ConceptStatistics:
        """The inverse of `to_arrays`; the names of the groups and the number of exemplars are kept elsewhere."""
        thresholds = tuple(float(v) for v in arrays["thresholds"])
        out = cls(len(arrays["maximum"]), groups, n_exemplars, thresholds, *(int(v) for v in arrays["size"]))
        for name in ("cells_active", "tokens_active", "cells_above", "tokens_above", "total", "maximum"):
            setattr(out, name, arrays[name].copy())
        for name, counts in out.by.items():
            counts.n_cells, counts.keys, counts.rows = (
                arrays[f"{name}.{part}"].copy() for part in ("n_cells", "keys", "rows")
            )
        out.exemplars.add(*(arrays[f"exemplars.{k}"] for k in ("latent", "cell_id", "value", "patch")))
        return out
