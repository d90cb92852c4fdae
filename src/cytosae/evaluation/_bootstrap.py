"""Scores of many bootstrap draws at once, their 95% intervals, and paired comparisons with controls.

Every score takes integer weights, one row a draw: how often each cell was drawn. Ties in the scores are handled as
scikit-learn does (one threshold for all that tie), so each row equals scikit-learn's value with ``sample_weight``.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse

Floats = npt.NDArray[np.float64]
Array = npt.NDArray[Any]
#: Units whose columns are brought into memory together by `precisions_of_many`.
_COLUMNS = 128


class Score(NamedTuple):
    """A score of the cells as they are, and of each draw [n_draws] (NaN where a draw does not allow it)."""

    value: float
    draws: Floats


def draw_weights(groups: Array, n_draws: int, seed: int) -> npt.NDArray[np.int16]:
    """How often each cell is drawn: int16 [1 + n_draws, n]; the first row is the cells as they are.

    Whole groups (int [n]: fields, patients, near duplicates) are drawn with replacement, as many as there are.
    """
    _, group = np.unique(groups, return_inverse=True)
    n = int(group.max()) + 1 if len(group) else 0
    rng = np.random.Generator(np.random.Philox(key=[seed, 11]))
    out = np.ones((1 + n_draws, len(group)), np.int16)
    for i in range(1, n_draws + 1):
        out[i] = np.bincount(rng.integers(n, size=n), minlength=n)[group]
    return out


def as_score(rows: Floats) -> Score:
    """The score of `rows` [1 + n_draws] as a function over `draw_weights` gives them."""
    return Score(float(rows[0]), np.asarray(rows[1:], np.float64))


def mean_score(scores: Sequence[Score]) -> Score:
    """The mean of several scores, draw by draw; a draw in which one is missing averages the others."""
    with np.errstate(invalid="ignore"):
        draws = np.stack([s.draws for s in scores])
        n = (~np.isnan(draws)).sum(0)
        mean = np.where(n > 0, np.nansum(draws, axis=0) / np.maximum(n, 1), np.nan)
    return Score(float(np.mean([s.value for s in scores])), mean)


def average_precision(scores: Array, positive: Array, weights: Array) -> Floats:
    """Average precision of each row of weights.

    Parameters
    ----------
    scores, positive
        [n] and bool [n].
    weights
        Integers [n_draws, n].

    Returns
    -------
    float64 [n_draws]; NaN where a draw holds no positive.
    """
    return precision_of_draws(scores, positive, by_cell(weights), np.arange(len(scores)))


def by_cell(weights: Array) -> npt.NDArray[np.float32]:
    """The weights of `draw_weights` turned, a row a cell: float32 [n, n_draws], exact up to 2^24."""
    return np.ascontiguousarray(weights.T, np.float32)


def precision_of_draws(scores: Array, positive: Array, drawn: npt.NDArray[np.float32], rows: Array) -> Floats:
    """`average_precision` of some cells: `scores` and `positive` [n] are those of `rows` (int [n]) of `drawn` (see `by_cell`).

    Only ranks that hold a positive count, so cells are added up from one such rank to the next: a sparse product with the draws.
    """
    order, ends = _order(scores)
    found = positive[order].astype(np.float32)
    first = np.append(0, ends[:-1] + 1)
    ends = ends[np.add.reduceat(found, first) > 0] if len(ends) else ends
    if not len(ends):
        return np.full(drawn.shape[1], np.nan)
    upto, pointers = int(ends[-1]) + 1, np.append(0, ends + 1)
    shape = (len(ends), len(drawn))
    every = sparse.csr_matrix((np.ones(upto, np.float32), rows[order[:upto]], pointers), shape=shape)
    hits = sparse.csr_matrix((found[:upto], every.indices, pointers), shape=shape)
    gained, above = np.asarray(hits @ drawn, np.float64), np.cumsum(every @ drawn, axis=0, dtype=np.float64)
    so_far = np.cumsum(gained, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((gained * (so_far / np.maximum(above, 1))).sum(0) / so_far[-1])


def auroc(scores: Array, positive: Array, weights: Array) -> Floats:
    """Area under the ROC curve of each row of weights; as `average_precision`, NaN without positives or negatives."""
    order, ends = _order(scores)
    drawn = weights[:, order]
    hits = np.cumsum(drawn * positive[order].astype(drawn.dtype), axis=1, dtype=np.int64)[:, ends]
    misses = np.cumsum(drawn, axis=1, dtype=np.int64)[:, ends] - hits
    gained, lost = np.diff(hits, axis=1, prepend=0), np.diff(misses, axis=1, prepend=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((lost * (hits - gained / 2)).sum(1) / (hits[:, -1] * misses[:, -1]))


def f1(predicted: Array, positive: Array, weights: Array) -> Floats:
    """F1 of a yes or no of each row of weights; 0 where nothing is predicted, NaN where nothing is positive."""
    true = weights @ (predicted & positive).astype(np.float64)
    total = weights @ predicted.astype(np.float64) + weights @ positive.astype(np.float64)
    none = weights @ positive.astype(np.float64) == 0
    return np.asarray(np.where(none, np.nan, 2 * true / np.maximum(total, 1)))


def cohen_kappa(predicted: Array, truth: Array, n_classes: int, weights: Array) -> Floats:
    """Cohen's kappa between two classings (int [n] each) of each row of weights; NaN where chance agrees wholly."""
    agreed = weights @ (predicted == truth).astype(np.float64)
    n = weights.sum(1, dtype=np.float64)
    by_chance = np.zeros(len(weights))
    for k in range(n_classes):
        by_chance += (weights @ (predicted == k).astype(np.float64)) * (weights @ (truth == k).astype(np.float64))
    by_chance /= n**2
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray((agreed / n - by_chance) / (1 - by_chance))


def accuracy(predicted: Array, truth: Array, weights: Array) -> Floats:
    """Share of cells classed rightly of each row of weights."""
    return np.asarray(weights @ (predicted == truth).astype(np.float64) / np.maximum(weights.sum(1), 1))


def precisions_of_many(values: Array, positive: Array, counted: Array) -> npt.NDArray[np.float32]:
    """Average precision of every unit for every target, each over its own cells.

    Parameters
    ----------
    values
        [n, n_units], all >= 0; zeros cost nothing.
    positive, counted
        bool [n, n_targets]: what is looked for, and the cells that take part. A positive has to be counted.

    Returns
    -------
    float32 [n_units, n_targets]; NaN for a target without positives.
    """
    positive = positive.astype(np.float32)
    sets, of_target = np.unique(counted, axis=1, return_inverse=True)
    sets = sets.astype(np.float32)
    n_positive, n_counted = positive.sum(0), sets.sum(0)[of_target]
    base = n_positive / np.maximum(n_counted, 1)

    def precision(column: Array) -> Array:
        active = np.flatnonzero(column)
        order = active[np.argsort(-column[active])]
        ranked = column[order]
        ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], len(ranked) > 0))
        hits = np.cumsum(positive[order], axis=0)[ends]
        above = np.cumsum(sets[order], axis=0)[ends]
        found = hits[-1] if len(hits) else np.zeros(len(base), np.float32)
        gained = hits.copy()
        gained[1:] -= hits[:-1]
        return np.asarray((gained * hits / np.maximum(above, 1)[:, of_target]).sum(0) + (n_positive - found) * base)

    def block(first: int) -> Array:
        return np.stack([precision(c) for c in np.ascontiguousarray(values[:, first : first + _COLUMNS].T)])

    starts = range(0, values.shape[1], _COLUMNS)
    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
        out = np.concatenate([*pool.map(block, starts), np.empty((0, len(base)), np.float32)])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(out / np.where(n_positive > 0, n_positive, np.nan), np.float32)


def interval(score: Score) -> dict[str, float | None]:
    """``value``, ``low``, ``high``: the 95% percentile interval; null where too few draws allow the score."""
    known = score.draws[~np.isnan(score.draws)]
    if len(known) < 0.5 * len(score.draws) or not len(known):
        return {"value": _plain(score.value), "low": None, "high": None}
    low, high = np.percentile(known, [2.5, 97.5])
    return {"value": _plain(score.value), "low": float(low), "high": float(high)}


def compare(what: str, dictionary: Score, controls: Sequence[tuple[str, str, Score]]) -> dict[str, Any]:
    """The dictionary beside each control.

    Parameters
    ----------
    what
        What is scored, as the table's row is called.
    dictionary
        Its score.
    controls
        (name, title, score over the same draws) of each.

    Returns
    -------
    ``what``, ``dictionary`` (see `interval`), ``controls``: for each ``name``, ``title``, its interval, ``difference``
    (dictionary less control, with its paired interval) and ``verdict``: ``better`` (the dictionary; interval above 0),
    ``worse`` (below 0), else ``comparable``. ``verdict`` of the whole: ``better`` only where better than every control,
    ``worse`` where worse than any.
    """
    rows = []
    for name, title, score in controls:
        difference = interval(Score(dictionary.value - score.value, dictionary.draws - score.draws))
        rows.append({"name": name, "title": title, **interval(score), "difference": difference,
                     "verdict": verdict(difference)})  # fmt: skip
    verdicts = {row["verdict"] for row in rows}
    overall = "worse" if "worse" in verdicts else "better" if verdicts == {"better"} else "comparable"
    return {"what": what, "dictionary": interval(dictionary), "controls": rows, "verdict": overall if rows else None}


def verdict(difference: dict[str, float | None]) -> str:
    """``better``, ``worse`` or ``comparable``, by the paired interval."""
    low, high = difference["low"], difference["high"]
    if low is None or high is None:
        return "comparable"
    return "better" if low > 0 else "worse" if high < 0 else "comparable"


def _order(scores: Array) -> tuple[Array, Array]:
    """Cells by falling score, and the last place of each run of equal scores (in any order within a run)."""
    values = np.asarray(scores)
    order = np.argsort(-values if values.dtype.kind == "f" else -values.astype(np.float64))
    ranked = values[order]
    return order, np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
