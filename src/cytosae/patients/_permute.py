"""The permutation test of differences of means, exact or random, within blocks where there are any."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, islice, product
from math import comb, prod
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from cytosae.patients._blocks import centre
from cytosae.patients._cohort import Floats, Ints

if TYPE_CHECKING:
    from cytosae.patients._differential import DifferentialConfig

#: Labellings, the first of them, and concepts, at a time.
_CHUNK, _FIRST, _COLUMNS = 8_192, 1_024, 1_024
#: Differences closer than this are ties (profiles are ratios of small whole numbers).
_TIE = 1e-9


#: Patients x concepts above which permutations stop early, and after how many that were as large (where not told).
_LARGE, _STOP = 50_000, 500


@dataclass(frozen=True)
class Permuted:
    """p and the number of permutations, [n_groups, n_concepts]; for each group the smallest attainable p, and whether exact."""

    p: Floats
    n: Ints
    smallest: Floats
    exact: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Part:
    """Numbers of patients to test, [n_patients, n_concepts].

    With `studentised` the difference is divided by its standard error (each side with its own spread), so that sides of
    unequal spread do not pass for a difference (A. Janssen, Statistics & Probability Letters 36, 1997, 9-21).
    """

    values: Floats
    studentised: bool = False


def permutation_p(
    parts: Sequence[Part], member: npt.NDArray[np.bool_], config: DifferentialConfig, block: Ints | None = None
) -> list[Permuted]:
    """Two-sided permutation p of the (blocked) difference of means, groups against rest; NaN where no block has both sides.

    Parameters
    ----------
    parts
        What is tested, all with the same permutations.
    member
        bool [n_groups, n_patients].
    config
        How many permutations, and when to stop early: where it does not say, never for the first part of up to 50,000
        patients x concepts, after 500 otherwise.
    block
        Block of each patient: labels are exchanged within blocks only.

    Notes
    -----
    Given the number of patients inside, the difference of means grows with the sum inside alone, so sums are compared,
    and groups of one size share their permutations. With the weights n_in n_out / n, the blocked difference is, but for a
    factor that no permutation changes, the sum inside of values centred within their block.

    Stopping early: when h random permutations were as large, the last being the l-th, p = h / l (J. Besag and P. Clifford,
    Biometrika 78, 1991, 301-304), which is as valid as with all of them.
    """
    n = member.shape[1]
    block = np.zeros(n, np.int64) if block is None else block
    where = [np.flatnonzero(block == b) for b in np.unique(block)]
    centred = [centre(part.values, block) for part in parts]
    shapes = [(len(member), part.values.shape[1]) for part in parts]
    p, n_done = [np.full(shape, np.nan) for shape in shapes], [np.zeros(shape, np.int64) for shape in shapes]
    least, exact = np.full(len(member), np.nan), np.zeros(len(member), bool)
    inside_of = [tuple(int(inside[rows].sum()) for rows in where) for inside in member]
    for sizes in sorted(set(inside_of)):
        groups = [g for g, mine in enumerate(inside_of) if mine == sizes]
        free = [(rows, k) for rows, k in zip(where, sizes, strict=True) if 0 < k < len(rows)]
        if not free:
            continue
        n_ways = prod(comb(len(rows), k) for rows, k in free)
        all_ways = n_ways <= config.exact_limit
        counters = [
            _Counter(_Statistic(x, free, part.studentised), member[groups], 0 if all_ways else _stop(config, i, x.size))
            for i, (part, x) in enumerate(zip(parts, centred, strict=True))
        ]
        for subsets in _subsets(free, n, all_ways, config):
            inside = np.zeros((len(subsets), n))
            np.put_along_axis(inside, subsets, 1.0, axis=1)
            for counter in counters:
                counter.add(inside)
            if not any(counter.open.any() for counter in counters):
                break
        exact[groups] = all_ways
        for i, counter in enumerate(counters):
            # the labelling as it is counts too; among all ways it already does
            extra = np.where(counter.open & (not all_ways), 1, 0)
            p[i][groups], n_done[i][groups] = (counter.count + extra) / (counter.n + extra), counter.n
        # with half of every block inside, a labelling and its mirror image are equally far apart
        mirrored = all_ways and all(2 * k == len(rows) for rows, k in free)
        least[groups] = (1 + mirrored) / (n_ways if all_ways else config.n_permutations + 1)
    return [Permuted(a, b, least, exact) for a, b in zip(p, n_done, strict=True)]


def _stop(config: DifferentialConfig, part: int, size: int) -> int:
    if config.stop_after is not None:
        return config.stop_after
    return _STOP if part or size > _LARGE else 0


class _Statistic:
    """The size of the difference for rows of 0/1 (patients inside), up to a factor common to all of one size."""

    def __init__(self, centred: Floats, free: list[tuple[Ints, int]], studentised: bool) -> None:
        self.centred, self.free, self.studentised = centred, free, studentised

    def of(self, inside: Floats, columns: Ints) -> Floats:
        """[n_labellings, n_columns]"""
        if not self.studentised:
            return np.asarray(np.abs(inside @ self.centred[:, columns]))
        total, variance = np.zeros((2, len(inside), len(columns)))
        whole = np.zeros(len(columns))
        for rows, k in self.free:
            x, n = self.centred[np.ix_(rows, columns)], len(rows)
            here = inside[:, rows]
            sums, squares = here @ x, here @ x**2
            total += sums
            own = np.maximum(squares - sums**2 / k, 0) * k / max(k - 1, 1)
            other = np.maximum((x**2).sum(0) - squares - sums**2 / (n - k), 0) * (n - k) / max(n - k - 1, 1)
            variance += (1 - k / n) ** 2 * own + (k / n) ** 2 * other
            whole += (x**2).sum(0)
        # without any spread on either side what is left of the variance is rounding, and no two labellings would tie
        least = np.maximum(1e-10 * whole, _TIE**2)
        return np.asarray(np.where(np.abs(total) > _TIE, np.abs(total) / np.sqrt(np.maximum(variance, least)), 0.0))


class _Counter:
    """How many labellings were as large as the observed one, of how many, by group and concept."""

    def __init__(self, statistic: _Statistic, member: npt.NDArray[np.bool_], n_stop: int) -> None:
        self.statistic, self.n_stop = statistic, n_stop
        self.observed = statistic.of(member.astype(np.float64), np.arange(statistic.centred.shape[1]))
        self.count, self.n = np.zeros((2, *self.observed.shape), np.int64)
        self.open = np.ones(self.observed.shape, bool)

    def add(self, inside: Floats) -> None:
        """Compare some labellings with the observed one, in the concepts that have not stopped."""
        open_ = np.flatnonzero(self.open.any(0))
        for start in range(0, len(open_), _COLUMNS):
            columns = open_[start : start + _COLUMNS]
            values = self.statistic.of(inside, columns)
            for g in range(len(self.observed)):
                still = np.flatnonzero(self.open[g, columns])
                self._count(g, columns[still], values if len(still) == len(columns) else values[:, still])

    def _count(self, g: int, at: Ints, values: Floats) -> None:
        large = values >= self.observed[g, at] * (1 - _TIE) - _TIE
        found = large.sum(0)
        if self.n_stop:
            full = np.flatnonzero(self.count[g, at] + found >= self.n_stop)
            wanted = self.n_stop - self.count[g, at[full]]
            last = (np.cumsum(large[:, full], axis=0, dtype=np.int32) >= wanted).argmax(0)
            self.count[g, at[full]], self.open[g, at[full]] = self.n_stop, False
            self.n[g, at[full]] += last + 1
            rest = np.delete(np.arange(len(at)), full)
            at, found = at[rest], found[rest]
        self.count[g, at] += found
        self.n[g, at] += len(values)


def _subsets(free: list[tuple[Ints, int]], n: int, all_ways: bool, config: DifferentialConfig) -> Iterator[Ints]:
    """Patients inside, int64 [some, size] at a time; `free`: the patients of each block and how many of them."""
    size = sum(k for _, k in free)
    if all_ways:
        ways = (chain.from_iterable(way) for way in product(*(combinations(rows, k) for rows, k in free)))
        while taken := list(islice(ways, _CHUNK)):
            yield np.fromiter(chain.from_iterable(taken), np.int64, len(taken) * size).reshape(-1, size)
        return
    rng = np.random.Generator(np.random.Philox(key=[config.seed, 2**35 + size]))
    done = 0
    while done < config.n_permutations:
        # few at first: most concepts may stop there
        n_now = min(max(_FIRST, done), _CHUNK, config.n_permutations - done)
        done += n_now
        keys = rng.random((n_now, n))
        yield np.concatenate([rows[np.argpartition(keys[:, rows], k - 1, axis=1)[:, :k]] for rows, k in free], axis=1)
