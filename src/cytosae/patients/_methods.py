"""Fitting one model on one training part, every setting chosen inside it by log loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cytosae.patients._calibration import fit_temperature
from cytosae.patients._cohort import Floats, Ints
from cytosae.patients._designs import Design
from cytosae.patients._linear import SCALINGS, LinearModel, fit_l1, fit_l2
from cytosae.patients._solvers import softmax

#: Penalties of the L1 model, as shares of the smallest at which it uses nothing.
L1_RATIOS = (0.7, 0.5, 0.35, 0.25, 0.15, 0.1)
Keep = npt.NDArray[np.bool_]


class Fitted(Protocol):
    """What a fold leaves behind."""

    def to_bytes(self) -> bytes:
        """Everything fitted, byte for byte."""


@dataclass(frozen=True)
class Answer:
    """A fitted model, the logits of the patients asked for, and the temperature found inside the training part."""

    model: Any
    logits: Floats
    temperature: float


class Method(Protocol):
    """One model of the table."""

    def fit(self, train: Ints, inner: Sequence[tuple[Ints, Ints]], ask: Ints, y: Ints, classes: list[str]) -> Answer:
        """Fit on patients `train` (settings chosen on `inner`), and judge the patients `ask`."""


@dataclass(frozen=True)
class Linear:
    """A logistic regression on a design.

    Attributes
    ----------
    design
        The features.
    settings
        What can be chosen, best taken first among equals.
    fitter
        (X, y, classes, settings, keep, thresholds) -> one model a setting.
    n_features
        So many features, those with the largest F among the patients fitted on; None: all.
    """

    design: Design
    settings: tuple[tuple[str, float], ...]
    fitter: Callable[..., list[LinearModel]]
    n_features: int | None = None

    def fit(self, train: Ints, inner: Sequence[tuple[Ints, Ints]], ask: Ints, y: Ints, classes: list[str]) -> Answer:
        """See `Method`."""
        judged = np.concatenate([rest for _, rest in inner]) if inner else np.zeros(0, np.int64)
        logits = np.zeros((len(self.settings), len(judged), len(classes)))
        start = 0
        for part, rest in inner:
            X, keep, thresholds = self.design.features(part)
            models = self._fit(X[part], y[part], classes, self.settings, keep, thresholds)
            for i, model in enumerate(models):
                logits[i, start : start + len(rest)] = model.logits(X[rest])
            start += len(rest)
        chosen, temperature = 0, 1.0
        if len(judged):
            true = [softmax(part)[np.arange(len(judged)), y[judged]] for part in logits]
            loss = np.array([-np.log(np.maximum(p, 1e-300)).sum() for p in true])
            chosen = int(np.flatnonzero(loss <= loss.min() + 1e-12)[0])
            temperature = fit_temperature(logits[chosen], y[judged])
        X, keep, thresholds = self.design.features(train)
        model = self._fit(X[train], y[train], classes, (self.settings[chosen],), keep, thresholds)[0]
        return Answer(model, model.logits(X[ask]), temperature)

    def _fit(self, X: Floats, y: Ints, classes: list[str], settings: Any, keep: Keep, thresholds: Floats) -> Any:
        if self.n_features is not None:
            keep = most_different(X, y, keep, self.n_features)
        return self.fitter(X, y, classes, settings, keep, thresholds)


def l2(design: Design, Cs: Sequence[float], n_features: int | None = None) -> Linear:
    """L2, choosing scaling and C; of a few features each by its own standard deviation."""
    scalings = SCALINGS if n_features is None else SCALINGS[1:]
    return Linear(design, tuple((scaling, float(C)) for scaling in scalings for C in Cs), _fit_l2, n_features)


def l1(design: Design) -> Linear:
    """L1, choosing its penalty."""
    return Linear(design, tuple(("standard", ratio) for ratio in L1_RATIOS), _fit_l1)


def most_different(X: Floats, y: Ints, keep: Keep, n: int) -> Keep:
    """The `n` features among `keep` with the largest F (variance between classes over that within), the first of equals."""
    grand, between, within = X.mean(0), np.zeros(X.shape[1]), np.zeros(X.shape[1])
    for k in np.unique(y):
        of_class = X[y == k]
        between += len(of_class) * (of_class.mean(0) - grand) ** 2
        within += ((of_class - of_class.mean(0)) ** 2).sum(0)
    F = np.where(keep, between / (within + 1e-12), -1.0)
    out = np.zeros(len(keep), bool)
    out[np.argsort(-np.round(F, 12), kind="stable")[:n]] = True
    return out & keep


def _fit_l2(X: Floats, y: Ints, classes: list[str], settings: Any, keep: Keep, thresholds: Floats) -> list[LinearModel]:
    out = []
    for scaling in dict.fromkeys(s for s, _ in settings):
        Cs = [C for s, C in settings if s == scaling]
        out += fit_l2(X, y, classes, Cs, keep, thresholds, scaling)
    return out


def _fit_l1(X: Floats, y: Ints, classes: list[str], settings: Any, keep: Keep, thresholds: Floats) -> list[LinearModel]:
    wanted = [ratio for _, ratio in settings]
    path = [r for r in L1_RATIOS if r >= wanted[-1]]  # from the first on: what the path has found does not depend on it
    models = dict(zip(path, fit_l1(X, y, classes, path, keep, thresholds), strict=True))
    return [models[ratio] for ratio in wanted]
