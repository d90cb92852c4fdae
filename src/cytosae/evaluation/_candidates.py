"""The best of many candidates, found on choosing cells only: single units, small sets for a probe, equal numbers of candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from cytosae.evaluation._bootstrap import precisions_of_many
from cytosae.evaluation._probe import standardised_differences
from cytosae.evaluation._targets import Target

Array = npt.NDArray[Any]
#: A cell's value of a unit is its largest or its mean over the patches, whichever does better on choosing cells.
POOLS = ("max", "mean")


class Pick(NamedTuple):
    """A unit, how it is pooled, and its average precision on the choosing cells."""

    unit: int
    pool: str
    precision: float


@dataclass(frozen=True)
class Candidates:
    """What the choosing cells say of all units of one kind.

    Attributes
    ----------
    X
        pooling -> float32 [n, n_units].
    precision, gap
        float32 [2, n_units, n_targets]: average precision, and absolute standardised difference, for each of `POOLS`; of the
        choosing cells.
    alive
        Units that fire in a choosing cell.
    """

    X: dict[str, Array]
    precision: Array
    gap: Array
    alive: Array

    @classmethod
    def of(cls, X: dict[str, Array], targets: Sequence[Target], choosing: Array) -> Candidates:
        """Measure all units on the choosing cells (bool [n]) for every target; rows of the targets as those of `X`."""
        P = np.stack([t.positive[choosing] & t.choose[choosing] for t in targets], axis=1)
        C = np.stack([t.choose[choosing] for t in targets], axis=1)
        precision, gap = [], []
        for pool in POOLS:
            seen = X[pool][choosing]
            precision.append(precisions_of_many(seen, P, C))
            gap.append(np.abs(standardised_differences(seen, P, C)))
        alive = np.flatnonzero((X["max"][choosing] > 0).any(0))
        return cls(X, np.stack(precision), np.stack(gap), alive)

    def best(self, target: int, among: Array | None = None) -> Pick:
        """The unit of the largest average precision; of equal ones the lower, ``max`` before ``mean``."""
        units = self.alive if among is None else among
        found = self.precision[:, units, target]
        pool, at = np.unravel_index(int(np.argmax(found)), found.shape)
        return Pick(int(units[at]), POOLS[pool], float(found[pool, at]))

    def values(self, pick: Pick) -> Array:
        """The picked unit's value of every cell: float32 [n]."""
        return self.X[pick.pool][:, pick.unit]

    def first(self, target: int, k: int, among: Array | None = None) -> npt.NDArray[np.float32]:
        """The `k` units whose standardised difference is largest, each pooled as that is larger: float32 [n, k]."""
        units = self.alive if among is None else among
        gaps = self.gap[:, units, target]
        pool = gaps.argmax(0)
        order = np.argsort(-gaps.max(0), kind="stable")[:k]
        return np.stack([self.X[POOLS[pool[i]]][:, units[i]] for i in order], axis=1)


def random_subsets(alive: Array, size: int, n: int, seed: int) -> list[Array]:
    """`n` random choices of `size` units among those alive; one of all where there are no more than that."""
    if len(alive) <= size:
        return [alive]
    rng = np.random.Generator(np.random.Philox(key=[seed, 29]))
    return [np.sort(rng.choice(alive, size, replace=False)) for _ in range(n)]


def best_threshold(values: Array, positive: Array) -> float:
    """The value from which on saying yes has the largest F1 among these cells."""
    order = np.argsort(-values, kind="stable")
    hits = np.cumsum(positive[order])
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + positive.sum())
    ranked = values[order]
    f1[np.append(ranked[1:] == ranked[:-1], False)] = -1
    return float(ranked[int(np.argmax(f1))])
