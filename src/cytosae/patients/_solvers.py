"""Solvers of the penalised multinomial regressions: truncated Newton along a path of penalties, and the lasso on an active set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cytosae.patients._cohort import Floats, Ints

#: Patients up to which the span is found by a singular value decomposition; above, from the products of patients.
_SVD = 400
#: Newton's method ends where a step promises less than this share of the loss. Steps at most; of the conjugate gradients each.
_ENOUGH, _NEWTON, _INNER = 1e-8, 60, 250
#: Conjugate gradients end where they have lowered the (scaled) residual to this share: the next step mends the rest.
_FORCING = 0.1
#: Steps of the lasso at most, and between looks at the objective.
_MOST, _LOOK = 2000, 20


def span(Z: Floats) -> tuple[Floats, Floats]:
    """Coordinates of the rows of Z [n, m] in their span, [n, r]; and what carries coefficients back: W @ back @ Z, back [r, n]."""
    if len(Z) <= _SVD:
        U, S, _ = np.linalg.svd(Z, full_matrices=False)
    else:
        values, U = np.linalg.eigh(Z @ Z.T)
        kept = values > 1e-11 * values[-1]
        U, S = U[:, kept], np.sqrt(values[kept])
    kept = 1e-12 * S.max() < S
    return U[:, kept] * S[kept], (U[:, kept] / S[kept]).T


def rotated(Z: Floats) -> tuple[Floats, Floats]:
    """Z in its principal directions, and these: the penalty sees no rotation, the solver does."""
    directions = np.linalg.eigh(Z.T @ Z)[1].T
    return Z @ directions.T, directions


def ridge_path(Z: Floats, y: Ints, n_classes: int, Cs: Sequence[float]) -> list[tuple[Floats, Floats]]:
    """Minimise the sum of log losses + |coefficients|^2 / (2 C), intercepts free, for one C after the other.

    Parameters
    ----------
    Z, y
        [n, r] features whose columns are orthogonal (`span`, `rotated`), and int64 [n] classes.

    Returns
    -------
    For each C W [n_classes, r] and b [n_classes].

    Notes
    -----
    Newton's method with step halving. Its equations are solved by conjugate gradients, in single precision and not to the
    end (Dembo, Eisenstat & Steihaug, SIAM J. Numer. Anal. 19, 1982); loss and gradient are in double precision, so the
    minimum is too. The columns being orthogonal, dividing by the mean second derivatives makes them alike. Each C starts
    from the last solution, or from where the last two point to, whichever has the lower loss.
    """
    X = np.concatenate([Z, np.ones((len(Z), 1))], axis=1)
    rough, lengths = X.astype(np.float32), (X**2).sum(0)
    target = np.eye(n_classes)[:, y]
    theta = before = np.zeros((n_classes, X.shape[1]))
    out = []

    def loss_of(at: Floats, logits: Floats, ridge: Floats) -> float:
        top = logits.max(0)
        data = top + np.log(np.exp(logits - top).sum(0)) - (logits * target).sum(0)
        return float(data.sum() + 0.5 * (ridge * at**2).sum())

    for C in Cs:
        ridge = np.append(np.full(Z.shape[1], 1 / C), 0.0)
        starts = [(at, at @ X.T) for at in (theta, 2 * theta - before)]
        before = theta
        loss, i = min((loss_of(*start, ridge), i) for i, start in enumerate(starts))
        theta, logits = starts[i]
        for _ in range(_NEWTON):
            P = softmax(logits.T).T
            gradient = (P - target) @ X + ridge * theta
            curvature = np.maximum((P * (1 - P)).mean(1)[:, None] * lengths + ridge, 1e-30)
            step = _newton_step(rough, P, gradient, curvature, ridge)
            along, promised, length = step @ X.T, float((gradient * step).sum()), 1.0
            while (ahead := loss_of(theta - length * step, logits - length * along, ridge)) > (
                loss - 1e-4 * length * promised
            ) and length > 1e-6:
                length /= 2
            if ahead > loss:
                break
            theta, logits, loss = theta - length * step, logits - length * along, ahead
            if promised < _ENOUGH * loss:
                break
        out.append((theta[:, :-1], theta[:, -1]))
    return out


def _newton_step(X: npt.NDArray[np.float32], P: Floats, gradient: Floats, curvature: Floats, ridge: Floats) -> Floats:
    """Second derivatives^-1 @ gradient, roughly, by conjugate gradients scaled by `curvature` [n_classes, r + 1]."""
    size = float(np.abs(gradient).max()) or 1.0
    P32, inverse, ridge32 = P.astype(np.float32), (1 / curvature).astype(np.float32), ridge.astype(np.float32)
    residual = (gradient / size).astype(np.float32)
    step, direction = np.zeros_like(residual), residual * inverse
    now = first = float((residual * direction).sum())
    for _ in range(_INNER):
        along = direction @ X.T
        along = P32 * (along - (P32 * along).sum(0))
        product = along @ X + ridge32 * direction
        bend = float((direction * product).sum())
        if bend <= 0:
            break
        length = np.float32(now / bend)
        step += length * direction
        residual -= length * product
        scaled = residual * inverse
        last, now = now, float((residual * scaled).sum())
        if now <= _FORCING**2 * first:
            break
        direction = scaled + np.float32(now / last) * direction
    return np.asarray(step.astype(np.float64) * size)


def lasso_path(Z: Floats, y: Ints, n_classes: int, ratios: Sequence[float]) -> list[tuple[Floats, Floats, float]]:
    """Minimise the mean log loss + penalty * sum |coefficients|, intercepts free, along falling penalties.

    Parameters
    ----------
    Z, y
        [n, m] standardised features and int64 [n] classes.
    ratios
        Penalties as shares of the smallest at which every coefficient is 0, falling.

    Returns
    -------
    For each ratio W [n_classes, m], b [n_classes] and the penalty.

    Notes
    -----
    Only features in use, or whose slope exceeds the penalty where the last solution stands, are solved for; those left out
    are checked afterwards and taken in where they were wronged.
    """
    n, m = Z.shape
    target = np.eye(n_classes)[y]
    W, b = np.zeros((n_classes, m)), np.log(np.bincount(y, minlength=n_classes) / n)
    gradient = (softmax(np.tile(b, (n, 1))) - target).T @ Z / n
    largest = float(np.abs(gradient).max())
    out = []
    for ratio in ratios:
        penalty = ratio * largest
        active = (np.abs(gradient).max(0) > penalty) | (W != 0).any(0)
        while True:
            here = np.flatnonzero(active)
            W[:, here], b = _proximal(np.ascontiguousarray(Z[:, here]), target, penalty, W[:, here], b)
            gradient = (softmax(Z[:, here] @ W[:, here].T + b) - target).T @ Z / n
            wronged = ~active & (np.abs(gradient).max(0) > penalty * 1.01)
            if not wronged.any():
                break
            active |= wronged
        out.append((W.copy(), b - b.mean(), penalty))
    return out


def _proximal(Z: Floats, target: Floats, penalty: float, W: Floats, b: Floats) -> tuple[Floats, Floats]:
    """Accelerated proximal gradient with restarts (O'Donoghue & Candes, Found. Comput. Math. 15, 2015).

    Ends where `_LOOK` steps lower the objective by less than a hundred-thousandth.
    """
    n, m = Z.shape
    X = np.concatenate([Z, np.ones((n, 1))], axis=1)
    Xt = np.ascontiguousarray(X.T)
    step = 2 * n / float(np.linalg.eigvalsh(Xt @ X if m < n else X @ Xt)[-1])
    theta = np.concatenate([W, b[:, None]], axis=1)
    ahead, speed, before = theta, 1.0, np.inf
    for i in range(1, _MOST + 1):
        P = softmax(X @ ahead.T)
        moved = ahead - (step / n) * (Xt @ (P - target)).T
        moved[:, :m] = np.sign(moved[:, :m]) * np.maximum(np.abs(moved[:, :m]) - step * penalty, 0)
        change = moved - theta
        if float(((ahead - moved) * change).sum()) > 0:
            ahead, speed = moved, 1.0
        else:
            faster = (1 + np.sqrt(1 + 4 * speed**2)) / 2
            ahead, speed = moved + (speed - 1) / faster * change, faster
        theta = moved
        if i % _LOOK == 0:
            true = (softmax(X @ theta.T) * target).sum(1)
            loss = float(-np.log(np.maximum(true, 1e-300)).mean() + penalty * np.abs(theta[:, :m]).sum())
            if before - loss < 1e-5 * loss:
                break
            before = loss
    return np.asarray(theta[:, :m]), np.asarray(theta[:, m])


def softmax(logits: Floats) -> Floats:
    """Rows of probabilities."""
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(raised / raised.sum(1, keepdims=True))
