"""Probes: logistic regression on a few units chosen by a stated rule, and ridge classification on all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

#: Penalty of the logistic probes: 1/2 |w|^2 on standardised features, beside the sum of log losses.
_PENALTY = 1.0
#: Penalties of the full probe, times the number of cells and a hundredth of the number of units (features are standardised).
_RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
_COLUMNS = 1024


def standardised_differences(X: Array, positive: Array, counted: Array) -> npt.NDArray[np.float32]:
    """Difference of the means of positives and negatives over the standard deviation, of every unit for every target.

    Parameters
    ----------
    X
        float32 [n, n_units].
    positive, counted
        bool [n, n_targets].

    Returns
    -------
    float32 [n_units, n_targets], signed; 0 for a unit that is constant among the counted cells.
    """
    P, C = positive.astype(np.float32), counted.astype(np.float32)
    n_yes, n_all = P.sum(0), C.sum(0)
    n_no = np.maximum(n_all - n_yes, 1)
    out = np.empty((X.shape[1], P.shape[1]), np.float32)
    for a in range(0, X.shape[1], _COLUMNS):
        block = np.asarray(X[:, a : a + _COLUMNS], np.float32)
        block = block - block.mean(0)
        yes, total, square = (block.T @ P), (block.T @ C), ((block**2).T @ C)
        spread = np.sqrt(np.maximum(square / n_all - (total / n_all) ** 2, 0))
        gap = yes / np.maximum(n_yes, 1) - (total - yes) / n_no
        out[a : a + _COLUMNS] = np.where(spread > 1e-7, gap / np.maximum(spread, 1e-7), 0)
    return out


def logistic(X: Floats, y: Array) -> tuple[Floats, float, Floats, Floats]:
    """L2-penalised logistic regression on standardised features, by Newton's method.

    Parameters
    ----------
    X, y
        float64 [n, k] and bool [n].

    Returns
    -------
    coefficients [k], intercept, and mean and scale [k] of the features: logit = ((x - mean) / scale) @ coefficients + intercept.
    """
    mean, scale = X.mean(0), X.std(0)
    scale[scale < 1e-12] = 1.0
    Z = np.concatenate([(X - mean) / scale, np.ones((len(X), 1))], axis=1)
    ridge = np.full(Z.shape[1], _PENALTY)
    ridge[-1] = 0.0
    w = np.zeros(Z.shape[1])
    share = np.clip(y.mean(), 1e-6, 1 - 1e-6)
    w[-1] = np.log(share / (1 - share))

    def loss(at: Floats) -> float:
        z = Z @ at
        return float(np.logaddexp(0, z).sum() - z[y].sum() + 0.5 * (ridge * at**2).sum())

    now = loss(w)
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(Z @ w, -40, 40)))
        gradient = Z.T @ (p - y) + ridge * w
        if np.abs(gradient).max() < 1e-6:
            break
        step = np.linalg.solve((Z * (p * (1 - p))[:, None]).T @ Z + np.diag(ridge + 1e-9), gradient)
        length = 1.0
        while (after := loss(w - length * step)) > now and length > 1e-6:
            length /= 2
        w, before, now = w - length * step, now, after
        if before - now < 1e-9 * (1 + abs(now)):
            break
    return w[:-1], float(w[-1]), mean, scale


def ridge_scores(X: Array, positive: Array, choose: Array, groups: Array) -> Floats:
    """Scores of a full linear probe: ridge regression on yes and no from all standardised features.

    The penalty of each target is the one with the smallest squared error on a fifth of the choosing groups, held out; then
    all choosing cells are fitted.

    Parameters
    ----------
    X
        [n, n_units].
    positive
        bool [n, n_targets].
    choose
        bool [n]: cells to fit on.
    groups
        int [n]: cells that belong together go to one side of the inner split.

    Returns
    -------
    float64 [n, n_targets]
    """
    inner = _fifth(groups)
    fitted, held = choose & ~inner, choose & inner
    wanted = positive.astype(np.float64)
    if held.sum() < 5 or fitted.sum() < 5:
        return _ridge(X, wanted, choose, (_RIDGES[2],))[0]
    errors = [((s - wanted)[held] ** 2).mean(0) for s in _ridge(X, wanted, fitted, _RIDGES)]
    best = np.argmin(np.stack(errors), axis=0)
    out = np.empty(wanted.shape)
    needed = sorted(set(best.tolist()))
    for i, scores in zip(needed, _ridge(X, wanted, choose, [_RIDGES[i] for i in needed]), strict=True):
        out[:, best == i] = scores[:, best == i]
    return out


def _ridge(X: Array, Y: Floats, fit: Array, penalties: Sequence[float]) -> list[Floats]:
    """Predictions of all cells for each penalty, from whichever of the two normal equations is smaller."""
    from scipy.linalg import cho_factor, cho_solve

    mean = X[fit].mean(0, dtype=np.float64)
    scale = X[fit].std(0, dtype=np.float64)
    used = scale > 1e-9
    Z = ((X[:, used] - mean[used]) / scale[used]).astype(np.float32)
    offset = Y[fit].mean(0)
    target = Y[fit] - offset
    n = int(fit.sum())
    few = Z[fit]
    wide = few.shape[1] > n
    gram = (few @ few.T if wide else few.T @ few).astype(np.float64) / max(few.shape[1], 1)
    right = target if wide else (few.T @ target) / max(few.shape[1], 1)
    out = []
    for penalty in penalties:
        solved = cho_solve(cho_factor(gram + penalty * n / 100 * np.eye(len(gram))), right)
        weights = few.T @ (solved / max(few.shape[1], 1)) if wide else solved
        out.append(Z @ weights + offset)
    return out


def _fifth(groups: Array) -> Array:
    """A fifth of the groups, by the place of each among a fixed shuffle of all."""
    names, at = np.unique(groups, return_inverse=True)
    drawn = np.random.Generator(np.random.Philox(key=[0, 23])).permutation(len(names)) % 5 == 0
    return np.asarray(drawn[at])
