"""Effects and their intervals, with and without blocks, and the false discovery rate."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import stats

from cytosae.patients._blocks import centre, informative
from cytosae.patients._cohort import Floats, Ints


def effect(X: Floats, inside: npt.NDArray[np.bool_], block: Ints) -> Floats:
    """Difference of means, in - out, [n_concepts]; NaN where no block has both sides.

    With several blocks: the differences within them, weighted by n_in n_out / n (the weights of Cochran 1954, which are
    also those of least squares with one intercept a block).
    """
    if not informative(block, inside).any():
        return np.full(X.shape[1], np.nan)
    if len(np.unique(block)) == 1:
        return np.asarray(X[inside].mean(0) - X[~inside].mean(0))
    d = centre(inside.astype(np.float64), block)
    return np.asarray(d @ X / (d @ d))


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
    tail = 100 * float(stats.norm.cdf(stats.t.ppf(0.025, min(n) - 1)))
    low, high = np.empty((2, inside.shape[1]))
    for start in range(0, inside.shape[1], _COLUMNS):
        some = slice(start, start + _COLUMNS)
        effects = draws[0] @ inside[:, some] - draws[1] @ outside[:, some]
        low[some], high[some] = np.percentile(effects, [tail, 100 - tail], axis=0)
    return low, high


#: Concepts at a time in the draws of `effect_interval`.
_COLUMNS = 1_024


def blocked_interval(X: Floats, inside: npt.NDArray[np.bool_], block: Ints) -> tuple[Floats, Floats]:
    """95% interval of the blocked `effect`; NaN where it cannot be told.

    Least squares with one intercept a block; the variance allows each side its own spread (HC2 of MacKinnon and White
    1985, which for one block is Welch's), and Student's t has the degrees of freedom of the smaller side, one taken for
    every block.
    """
    unknown = np.full(X.shape[1], np.nan)
    useful = np.unique(block)[informative(block, inside)]
    rows = np.isin(block, useful)
    X, inside, block = X[rows], inside[rows], block[rows]
    df = min(inside.sum(), (~inside).sum()) - len(useful)
    if df < 1:
        return unknown, unknown
    d = centre(inside.astype(np.float64), block)
    beta = d @ X / (d @ d)
    residual = centre(X, block) - d[:, None] * beta
    size = np.array([(block == b).sum() for b in block])
    leverage = 1 / size + d**2 / (d @ d)
    variance = (d**2 / np.maximum(1 - leverage, 1e-9)) @ residual**2 / (d @ d) ** 2
    half = stats.t.ppf(0.975, df) * np.sqrt(variance)
    return beta - half, beta + half


def benjamini_hochberg(p: Floats) -> Floats:
    """False discovery rates q of p-values (Benjamini and Hochberg 1995); NaN stays, and is no test."""
    q = np.full(len(p), np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    ranked = p[order] * len(order) / np.arange(1, len(order) + 1)
    q[order] = np.minimum(np.minimum.accumulate(ranked[::-1])[::-1], 1.0)
    return q
