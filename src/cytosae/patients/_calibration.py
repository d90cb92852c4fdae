"""Whether probabilities mean what they say: Brier score, calibration error, and one temperature that mends them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cytosae.patients._cohort import Floats, Ints
from cytosae.patients._solvers import softmax

#: Bins of equal width over the probability of the predicted class.
N_BINS = 10


def fit_temperature(logits: Floats, y: Ints) -> float:
    """The number that logits [n, K] are divided by so that the log loss of patients not fitted on is least.

    ``log T`` has a normal prior of width 1 around 0, so that a handful of patients told apart without error does not give
    certainty. Guo et al., ICML 2017, with the prior.
    """
    from scipy.optimize import minimize_scalar

    def loss(log_t: float) -> float:
        p = softmax(logits * np.exp(-log_t))[np.arange(len(y)), y]
        return float(-np.log(np.maximum(p, 1e-300)).sum() + 0.5 * log_t**2)

    return float(np.exp(minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded", options={"xatol": 1e-6}).x))


def brier(P: Floats, y: Ints, weights: Floats) -> npt.NDArray[Any]:
    """Mean squared distance of the probabilities to the truth, summed over the classes (0 to 2), a value a row of weights."""
    each = ((P - np.eye(P.shape[1])[y]) ** 2).sum(1)
    return np.asarray(weights @ each / weights.sum(1))


def calibration_error(P: Floats, y: Ints, weights: Floats) -> npt.NDArray[Any]:
    """Expected calibration error of the predicted class, a value a row of weights [draws, n]."""
    sure, right, which = _binned(P, y)
    gaps = np.stack([weights[:, which == b] @ (sure - right)[which == b] for b in range(N_BINS)])
    return np.asarray(np.abs(gaps).sum(0) / weights.sum(1))


def reliability(P: Floats, y: Ints) -> list[dict[str, float | int]]:
    """For each bin with patients: how many, their mean probability of the predicted class, and how often it was right."""
    sure, right, which = _binned(P, y)
    return [
        {"from": b / N_BINS, "to": (b + 1) / N_BINS, "n": int((which == b).sum()),
         "mean_probability": float(sure[which == b].mean()), "share_right": float(right[which == b].mean())}
        for b in range(N_BINS) if (which == b).any()
    ]  # fmt: skip


def _binned(P: Floats, y: Ints) -> tuple[Floats, Floats, Ints]:
    sure = P.max(1)
    return sure, (P.argmax(1) == y).astype(np.float64), np.minimum((sure * N_BINS).astype(np.int64), N_BINS - 1)
