"""Scores of class probabilities with intervals from drawing patients again; all draws at once, by matrix products."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cytosae.patients._cohort import Floats, Ints

#: The scores, in the order in which they are shown; the first is the one verdicts are read from.
METRICS = ("macro_f1", "weighted_f1", "balanced_accuracy", "auroc")


def patient_draws(y: Ints, n_draws: int, seed: int) -> Floats:
    """How often each patient is in each draw, [1 + n_draws, n]; the first row is the cohort as it is.

    Patients are drawn within their class (the sizes of the classes are part of the design), so that every score is
    defined in every draw. The same draws serve all models, which pairs their differences.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, 2**37]))
    weights = np.ones((1 + n_draws, len(y)))
    for k in np.unique(y):
        here = np.flatnonzero(y == k)
        weights[1:, here] = rng.multinomial(len(here), np.full(len(here), 1 / len(here)), size=n_draws)
    return weights


def score(P: Floats, y: Ints, weights: Floats) -> dict[str, Floats]:
    """Scores of probabilities P [n, K] against y [n] under each row of weights [draws, n].

    Returns
    -------
    ``macro_f1``, ``weighted_f1``, ``balanced_accuracy``, ``auroc`` (one against rest, mean over the classes), each
    [draws]; ``f1`` [draws, K]. The predicted class is the most probable, the first of equals.
    """
    K = P.shape[1]
    true, guess = np.eye(K)[y], np.eye(K)[P.argmax(1)]
    hits, support, named = weights @ (true * guess), weights @ true, weights @ guess
    f1 = 2 * hits / np.maximum(support + named, 1e-300)
    auroc = np.empty((len(weights), K))
    for k in range(K):
        inside, outside = np.flatnonzero(y == k), np.flatnonzero(y != k)
        above = P[inside, k][:, None] - P[outside, k]
        wins = np.where(np.abs(above) < 1e-12, 0.5, above > 0)
        pairs = weights[:, inside].sum(1) * weights[:, outside].sum(1)
        auroc[:, k] = ((weights[:, inside] @ wins) * weights[:, outside]).sum(1) / pairs
    return {
        "macro_f1": f1.mean(1),
        "weighted_f1": (f1 * support).sum(1) / support.sum(1),
        "balanced_accuracy": (hits / support).mean(1),
        "auroc": auroc.mean(1),
        "f1": f1,
    }


def interval(draws: npt.NDArray[Any]) -> dict[str, float]:
    """The value (first entry) and the 95% percentile interval of the others."""
    low, high = np.percentile(draws[1:], [2.5, 97.5])
    return {"value": float(draws[0]), "low": float(low), "high": float(high)}


def verdict(difference: dict[str, float]) -> str:
    """``better`` when the whole interval lies above 0, ``worse`` when below, else ``comparable``."""
    if difference["low"] > 0:
        return "better"
    return "worse" if difference["high"] < 0 else "comparable"
