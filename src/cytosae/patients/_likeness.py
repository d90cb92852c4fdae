"""How far a patient lies from the training cohort, and how far is too far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from cytosae.patients._cohort import Floats, Ints
from cytosae.patients._linear import LinearModel

#: Nearest training patients whose mean distance counts, and the share of training patients within the threshold.
N_NEAREST, WITHIN = 3, 0.95


@dataclass(frozen=True)
class Likeness:
    """Distances between profiles, scaled as the model scales them.

    Attributes
    ----------
    points
        [n, m]: the training patients' profiles, as the model sees them.
    own
        [n], ascending: of each training patient the mean distance to its nearest others (leave one out).
    threshold
        The quantile `WITHIN` of `own`. A new patient of the same kind exceeds it about as often as 1 - `WITHIN`.
    """

    model: LinearModel
    points: Floats
    own: Floats
    threshold: float

    @classmethod
    def of(cls, model: LinearModel, X: Floats) -> Likeness:
        """From the training patients' profiles X [n, n_latents]."""
        points = (X[:, model.kept] - model.centre) / model.scale
        between = _distances(points, points)
        np.fill_diagonal(between, np.inf)
        own = np.sort(np.sort(between, 1)[:, : min(N_NEAREST, len(X) - 1)].mean(1))
        return cls(model, points, own, float(np.quantile(own, WITHIN)))

    @property
    def record(self) -> dict[str, Any]:
        """As `model.json` states it."""
        return {"distance": f"mean Euclidean distance to the {N_NEAREST} nearest training patients, profiles scaled as the model's",
                "threshold": self.threshold, "rule": f"{WITHIN:.0%} of the training patients lie within, each left out in turn",
                "median_of_training": float(np.median(self.own))}  # fmt: skip

    def nearest(self, x: Floats, n: int) -> tuple[Ints, Floats]:
        """The `n` nearest training patients of a profile x [n_latents], and their distances."""
        far = _distances(((x[self.model.kept] - self.model.centre) / self.model.scale)[None], self.points)[0]
        order = np.argsort(far, kind="stable")[:n]
        return order, far[order]

    def distance(self, x: Floats) -> float:
        """What is compared with the threshold."""
        return float(self.nearest(x, N_NEAREST)[1].mean())

    def share_nearer(self, distance: float) -> float:
        """Share of the training patients that lie nearer to the others than this."""
        return float((self.own < distance).mean())


def _distances(A: Floats, B: Floats) -> Floats:
    squared = (A**2).sum(1)[:, None] + (B**2).sum(1) - 2 * A @ B.T
    return np.asarray(np.sqrt(np.maximum(squared, 0)))
