"""The permutation test of differences of means, exact or random, within blocks where there are any."""

from __future__ import annotations

from collections.abc import Iterator
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

#: Labellings, and concepts, at a time.
_CHUNK, _COLUMNS = 8_192, 1_024
#: Differences closer than this are ties (profiles are ratios of small whole numbers).
_TIE = 1e-9


@dataclass(frozen=True)
class Permuted:
    """p [n_groups, n_concepts]; for each group the smallest attainable p, the number of permutations, whether exact."""

    p: Floats
    smallest: Floats
    n: Ints
    exact: npt.NDArray[np.bool_]


def permutation_p(
    X: Floats, member: npt.NDArray[np.bool_], config: DifferentialConfig, block: Ints | None = None
) -> Permuted:
    """Two-sided permutation p of the (blocked) difference of means, groups against rest; NaN where no block has both sides.

    Parameters
    ----------
    X
        [n_patients, n_concepts].
    member
        bool [n_groups, n_patients].
    config
        How many permutations.
    block
        Block of each patient: labels are exchanged within blocks only.

    Notes
    -----
    Given the number of patients inside, the difference of means grows with the sum inside alone, so sums are compared,
    and groups of one size share their permutations. With the weights n_in n_out / n, the blocked difference is, but for a
    factor that no permutation changes, the sum inside of values centred within their block.
    """
    block = np.zeros(len(X), np.int64) if block is None else block
    where = [np.flatnonzero(block == b) for b in np.unique(block)]
    centred = centre(X, block)
    observed = np.abs(member @ centred)
    count = np.zeros(observed.shape, np.int64)
    n_done, exact = np.zeros(len(member), np.int64), np.zeros(len(member), bool)
    least = np.full(len(member), np.nan)
    inside_of = [tuple(int(inside[rows].sum()) for rows in where) for inside in member]
    for sizes in sorted(set(inside_of)):
        groups = [g for g, mine in enumerate(inside_of) if mine == sizes]
        free = [(rows, k) for rows, k in zip(where, sizes, strict=True) if 0 < k < len(rows)]
        if not free:
            continue
        all_ways = prod(comb(len(rows), k) for rows, k in free) <= config.exact_limit
        for subsets in _subsets(free, len(X), all_ways, config):
            inside = np.zeros((len(subsets), len(X)))
            np.put_along_axis(inside, subsets, 1.0, axis=1)
            for start in range(0, X.shape[1], _COLUMNS):
                some = slice(start, start + _COLUMNS)
                sums = np.abs(inside @ centred[:, some]) + _TIE
                for g in groups:
                    count[g, some] += (sums >= observed[g, some]).sum(0)
            n_done[groups] += len(subsets)
        exact[groups] = all_ways
        # with half of every block inside, a labelling and its mirror image are equally far apart
        least[groups] = 2 if all_ways and all(2 * k == len(rows) for rows, k in free) else 1
    extra = np.where(exact, 0, 1)  # the labelling as it is, already among all ways
    total = n_done + extra
    p = np.where(np.isnan(least)[:, None], np.nan, (count + extra[:, None]) / total[:, None])
    return Permuted(p, least / total, n_done, exact)


def _subsets(free: list[tuple[Ints, int]], n: int, all_ways: bool, config: DifferentialConfig) -> Iterator[Ints]:
    """Patients inside, int64 [some, size] at a time; `free`: the patients of each block and how many of them."""
    size = sum(k for _, k in free)
    if all_ways:
        ways = (chain.from_iterable(way) for way in product(*(combinations(rows, k) for rows, k in free)))
        while taken := list(islice(ways, _CHUNK)):
            yield np.fromiter(chain.from_iterable(taken), np.int64, len(taken) * size).reshape(-1, size)
        return
    rng = np.random.Generator(np.random.Philox(key=[config.seed, 2**35 + size]))
    for start in range(0, config.n_permutations, _CHUNK):
        keys = rng.random((min(_CHUNK, config.n_permutations - start), n))
        yield np.concatenate(
            [rows[np.argpartition(keys[:, rows], k - 1, axis=1)[:, :k]] for rows, k in free], axis=1
        )
