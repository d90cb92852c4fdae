"""Solvers of the penalised multinomial regressions: Newton where small, L-BFGS where large, and the lasso on an active set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cytosae.patients._cohort import Floats, Ints

#: Coefficients up to which Newton's method is used.
NEWTON = 600
#: Patients up to which the span is found by a singular value decomposition; above, from the products of patients.
_SVD = 400
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


def newton(Z: Floats, y: Ints, C: float, W: Floats, b: Floats) -> tuple[Floats, Floats]:
    """Newton's method with step halving for the loss of `fit_l2`, from the start (W, b); W [K, r], b [K]."""
    n, r = Z.shape
    K = len(b)
    X = np.concatenate([Z, np.ones((n, 1))], axis=1)
    theta = np.concatenate([W, b[:, None]], axis=1)
    ridge = np.concatenate([np.full(r, 1 / C), [0.0]])
    target = np.eye(K)[y]
    # adding one number to all intercepts changes nothing: without this the equations have no single solution
    shift = np.zeros((K, r + 1, K, r + 1))
    shift[:, r, :, r] = 1.0

    def loss_of(at: Floats) -> float:
        logits = X @ at.T
        top = logits.max(1)
        return float((top + np.log(np.exp(logits - top[:, None]).sum(1)) - logits[np.arange(n), y]).sum()
                     + 0.5 * (ridge * at**2).sum())  # fmt: skip

    loss = loss_of(theta)
    for _ in range(100):
        P = softmax(X @ theta.T)
        gradient = (P - target).T @ X + ridge * theta
        if np.abs(gradient).max() < 1e-10:
            break
        hessian = shift.copy()
        for k in range(K):
            for m in range(k, K):
                block = (X * (P[:, k] * ((k == m) - P[:, m]))[:, None]).T @ X
                hessian[k, :, m] += block
                if m > k:
                    hessian[m, :, k] += block
        hessian = hessian.reshape(K * (r + 1), K * (r + 1)) + np.diag(np.tile(ridge, K))
        step = np.linalg.solve(hessian, gradient.ravel()).reshape(K, r + 1)
        length, ahead = 1.0, loss_of(theta - step)
        while ahead > loss + 1e-12 and length > 1e-10:
            length /= 2
            ahead = loss_of(theta - length * step)
        theta = theta - length * step
        before, loss = loss, ahead
        if before - loss < 1e-13 and np.abs(step).max() < 1e-9:
            break
    return theta[:, :r], theta[:, r]


def lbfgs(Z: Floats, y: Ints, C: float, W: Floats, b: Floats) -> tuple[Floats, Floats]:
    """The same minimum where a matrix of second derivatives would be large.

    The coordinates are scaled by the root of a bound on the second derivatives, which makes the columns of a span alike.
    """
    from scipy.optimize import minimize

    n, r = Z.shape
    K = len(b)
    target = np.eye(K)[y]
    scale = np.concatenate([np.sqrt((Z**2).sum(0) / 4 + 1 / C), [np.sqrt(n / 4)]])
    Zt = np.ascontiguousarray(Z.T)

    def loss_of(flat: Floats) -> tuple[float, Floats]:
        theta = flat.reshape(K, r + 1) / scale
        logits = Z @ theta[:, :r].T + theta[:, r]
        top = logits.max(1, keepdims=True)
        raised = np.exp(logits - top)
        total = raised.sum(1, keepdims=True)
        loss = (top + np.log(total)).sum() - (logits * target).sum() + 0.5 / C * (theta[:, :r] ** 2).sum()
        residual = raised / total - target
        gradient = np.concatenate([(Zt @ residual).T + theta[:, :r] / C, residual.sum(0)[:, None]], axis=1) / scale
        return float(loss), gradient.ravel()

    start = (np.concatenate([W, b[:, None]], axis=1) * scale).ravel()
    options = {"maxiter": 2000, "maxfun": 4000, "gtol": 1e-6, "ftol": 1e-13}
    theta = minimize(loss_of, start, jac=True, method="L-BFGS-B", options=options).x.reshape(K, r + 1) / scale
    return theta[:, :r], theta[:, r]


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
