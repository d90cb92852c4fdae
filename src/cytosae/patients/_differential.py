"""Differential concepts: each diagnosis against the rest, the patient as the unit.

A permutation test of the difference of mean profiles (exact where few enough), intervals by drawing patients again, and
Benjamini-Hochberg over every test of the table. Thresholds and the filter of concepts never look at the diagnosis, so
that diagnoses are exchangeable under the null hypothesis.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, combinations, islice
from math import comb
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from cytosae._errors import CytosaeError, UsageError
from cytosae.patients._cohort import Cohort, Floats, Ints

_CHUNK = 8_192
#: Differences closer than this are ties (profiles are ratios of small whole numbers).
_TIE = 1e-9


@dataclass(frozen=True)
class DifferentialConfig:
    """How diagnoses are compared."""

    exact_limit: int = 100_000
    """Up to this many ways to choose the patients of a diagnosis, all are enumerated."""
    n_permutations: int = 99_999
    """Random permutations where there are more ways; p = (1 + as large) / (1 + permutations)."""
    n_bootstrap: int = 2_000
    """Draws of patients for the intervals."""
    seed: int = 0
    """Of permutations and draws."""

    def __post_init__(self) -> None:
        if self.n_permutations < 1 or self.n_bootstrap < 100:
            raise UsageError("n_permutations must be 1 or more, n_bootstrap 100 or more.")


def differential(
    profiles: Any, config: DifferentialConfig | None = None, *, cohort: Cohort | None = None
) -> pd.DataFrame:
    """Compare every diagnosis with the rest, concept by concept.

    Parameters
    ----------
    profiles
        AnnData from `profile_patients`; patients without cells or diagnosis take no part, concepts not ``tested`` neither.
    config
        How.
    cohort
        Where given and every cell has a label, each effect is split into the part that follows from another composition
        of cell types and the part within types.

    Returns
    -------
    One row a diagnosis and tested concept, sorted by both: ``diagnosis``, ``latent``, ``effect`` (difference of mean
    profiles, in - out), ``low``, ``high`` (95%), ``p`` (two-sided), ``q`` (Benjamini-Hochberg over all rows),
    ``smallest_p`` (attainable by the permutations), ``mean_in``, ``mean_out``, ``n_in``, ``n_out``, ``exact``,
    ``n_permutations``, ``effect_composition``, ``effect_within`` (NaN where labels are not all known), ``simulated``.

    Raises
    ------
    CytosaeError
        Fewer than two diagnoses.
    """
    import json

    config = config or DifferentialConfig()
    target = json.loads(str(profiles.uns["cytosae"]))["target"]
    obs, tested = profiles.obs, np.flatnonzero(profiles.var["tested"].to_numpy(bool))
    names = obs[target].astype(object).to_numpy(object)
    judged = np.flatnonzero((obs["n_cells"].to_numpy() > 0) & np.array([v not in (None, "") for v in names], bool))
    judged = judged[np.argsort(obs["patient"].astype(str).to_numpy()[judged])]  # whatever the order of the rows
    classes = sorted(set(names[judged]))
    if len(classes) < 2:
        raise CytosaeError(f"Only one {target} has patients with usable cells; a comparison wants two or more.")
    X = np.asarray(profiles.X, np.float64)[np.ix_(judged, tested)]
    member = np.array([names[judged] == c for c in classes])
    p, smallest, n_done, exact = permutation_p(X, member, config)
    split = None if cohort is None else _split(cohort, profiles, judged, tested, member)
    tables = []
    for g, name in enumerate(classes):
        inside = X[member[g]], X[~member[g]]
        low, high = effect_interval(*inside, config.n_bootstrap, config.seed)
        tables.append(pd.DataFrame({
            "diagnosis": name, "latent": profiles.var["latent"].to_numpy(np.int64)[tested],
            "effect": inside[0].mean(0) - inside[1].mean(0), "low": low, "high": high, "p": p[g], "q": np.nan,
            "smallest_p": smallest[g], "mean_in": inside[0].mean(0), "mean_out": inside[1].mean(0),
            "n_in": len(inside[0]), "n_out": len(inside[1]), "exact": bool(exact[g]), "n_permutations": n_done[g],
            "effect_composition": np.nan if split is None else split[0][g],
            "effect_within": np.nan if split is None else split[1][g],
            "simulated": bool(obs["simulated"].any()),
        }))  # fmt: skip
    table = pd.concat(tables, ignore_index=True)
    table["q"] = benjamini_hochberg(table["p"].to_numpy())
    return table


def permutation_p(
    X: Floats, member: npt.NDArray[np.bool_], config: DifferentialConfig
) -> tuple[Floats, Floats, Ints, npt.NDArray[np.bool_]]:
    """Two-sided permutation p of the difference of means, groups against rest.

    Parameters
    ----------
    X
        [n_patients, n_concepts].
    member
        bool [n_groups, n_patients].
    config
        How many permutations.

    Returns
    -------
    p [n_groups, n_concepts], and for each group the smallest attainable p, the number of permutations, whether exact.
    Given the number of patients inside, the difference of means grows with the sum inside alone, so sums are compared,
    and groups of one size share their permutations.
    """
    centred = X - X.mean(0)
    observed = np.abs(member @ centred)
    n, sizes = len(X), member.sum(1)
    count = np.zeros(observed.shape, np.int64)
    n_done, exact = np.zeros(len(member), np.int64), np.zeros(len(member), bool)
    for size in np.unique(sizes):
        groups = np.flatnonzero(sizes == size)
        all_ways = comb(n, int(size)) <= config.exact_limit
        for subsets in _subsets(n, int(size), all_ways, config):
            inside = np.zeros((len(subsets), n))
            np.put_along_axis(inside, subsets, 1.0, axis=1)
            sums = np.abs(inside @ centred) + _TIE
            for g in groups:
                count[g] += (sums >= observed[g]).sum(0)
            n_done[groups] += len(subsets)
        exact[groups] = all_ways
    extra = np.where(exact, 0, 1)  # the labelling as it is, already among all ways
    # with half of the patients inside, a labelling and its mirror image are equally far apart
    least = np.where(exact, np.where(2 * sizes == n, 2, 1), 1)
    total = n_done + extra
    return (count + extra[:, None]) / total[:, None], least / total, n_done, exact


def _subsets(n: int, size: int, all_ways: bool, config: DifferentialConfig) -> Iterator[Ints]:
    """Patients inside, int64 [some, size] at a time."""
    if all_ways:
        ways = combinations(range(n), size)
        while block := list(islice(ways, _CHUNK)):
            yield np.fromiter(chain.from_iterable(block), np.int64, len(block) * size).reshape(-1, size)
        return
    rng = np.random.Generator(np.random.Philox(key=[config.seed, 2**35 + size]))
    for start in range(0, config.n_permutations, _CHUNK):
        keys = rng.random((min(_CHUNK, config.n_permutations - start), n))
        yield np.argpartition(keys, size - 1, axis=1)[:, :size]


def effect_interval(inside: Floats, outside: Floats, n_draws: int, seed: int) -> tuple[Floats, Floats]:
    """95% interval of the difference of means by drawing the patients of each side again; NaN with one patient a side.

    Two corrections for few patients: n - 1 of n patients are drawn (else the spread is too small by (n - 1) / n), and
    the percentiles are those at which a normal distribution reaches the 95% point of Student's t with the smaller
    side's degrees of freedom (T. C. Hesterberg, The American Statistician 69, 2015, 371-386).
    """
    n = len(inside), len(outside)
    if min(n) < 2:
        return np.full(inside.shape[1], np.nan), np.full(inside.shape[1], np.nan)
    rng = np.random.Generator(np.random.Philox(key=[seed, 2**36]))
    draws = [rng.multinomial(k - 1, np.full(k, 1 / k), size=n_draws) / (k - 1) for k in n]
    effects = draws[0] @ inside - draws[1] @ outside
    tail = 100 * float(stats.norm.cdf(stats.t.ppf(0.025, min(n) - 1)))
    low, high = np.percentile(effects, [tail, 100 - tail], axis=0)
    return low, high


def benjamini_hochberg(p: Floats) -> Floats:
    """False discovery rates q of p-values (Benjamini and Hochberg 1995)."""
    order = np.argsort(p, kind="stable")
    ranked = p[order] * len(p) / np.arange(1, len(p) + 1)
    q = np.empty_like(ranked)
    q[order] = np.minimum(np.minimum.accumulate(ranked[::-1])[::-1], 1.0)
    return q


def _split(
    cohort: Cohort, profiles: Any, judged: Ints, tested: Ints, member: npt.NDArray[np.bool_]
) -> tuple[Floats, Floats] | None:
    """Parts of each effect that follow from composition and from within cell types (Kitagawa 1955); they add up to it.

    With c the mean share of cells of a type and r = the rate of the concept within it, the effect is the sum over types
    of (c_in - c_out) * (r_in + r_out) / 2 + (c_in + c_out) / 2 * (r_in - r_out). A type that one side lacks has the other
    side's rate: its part is composition.
    """
    if any(label is None for label in cohort.labels) or not len(cohort.labels):
        return None
    threshold = profiles.var["threshold"].to_numpy(np.float64)[tested]
    carried = cohort.maximum[:, tested].toarray() > threshold
    weight = 1.0 / cohort.n_cells[cohort.owner]
    whose = np.full(len(cohort.patients), -1)
    place = pd.Index(cohort.patients["patient"].astype(str)).get_indexer(
        profiles.obs["patient"].astype(str).to_numpy()[judged]
    )
    whose[place] = np.arange(len(judged))
    composition, within = np.zeros((2, len(member), len(tested)))
    for label in sorted(set(cohort.labels)):
        here = np.flatnonzero((cohort.labels == label) & (whose[cohort.owner] >= 0))
        per_cell = np.zeros((len(judged), len(here)))
        per_cell[whose[cohort.owner[here]], np.arange(len(here))] = weight[here]
        share, joint = per_cell.sum(1), per_cell @ carried[here]
        for g, inside in enumerate(member):
            c = share[inside].mean(), share[~inside].mean()
            j = joint[inside].mean(0), joint[~inside].mean(0)
            r = [j[i] / c[i] if c[i] > 0 else None for i in (0, 1)]
            r_in, r_out = (r[0] if r[0] is not None else r[1]), (r[1] if r[1] is not None else r[0])
            if r_in is None or r_out is None:
                continue
            composition[g] += (c[0] - c[1]) * (r_in + r_out) / 2
            within[g] += (c[0] + c[1]) / 2 * (r_in - r_out)
    return composition, within
