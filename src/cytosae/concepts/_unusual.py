"""How unusual an image is to a backbone: the distance of its class token from those of known cells.

Mahalanobis' distance with Ledoit and Wolf's shrunk covariance (Lee et al., NeurIPS 2018, use it for the same end). What is
further away than nearly all cells of a laboratory that the fit never saw is taken for no cell at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cytosae._errors import CytosaeError
from cytosae.backbones import Backbone

Array = npt.NDArray[Any]

#: Of the cells of another origin, the share that is refused; and the distances kept of the cells of the known origins.
REFUSED, _KEPT = 0.01, 201
#: From this share of known cells on, a cell is called unusual.
UNUSUAL = 0.99


@dataclass(frozen=True)
class Unusual:
    """How unusual one image is.

    Attributes
    ----------
    distance
        From the known cells, in standard deviations of theirs along each direction.
    share_below
        Share of held-out cells of the known origins that are nearer.
    limit
        Distance above which an image is taken for no picture of a single blood cell.
    """

    distance: float
    share_below: float
    limit: float

    @property
    def is_cell(self) -> bool:
        """Whether the image may be one of a cell."""
        return self.distance <= self.limit

    @property
    def words(self) -> str:
        """In words."""
        if not self.is_cell:
            return f"not like a single blood cell (distance {self.distance:.0f}, limit {self.limit:.0f})"
        what = "unusual: " if self.share_below >= UNUSUAL else ""
        share = f"{self.share_below:.0%}" if self.share_below < 0.995 else "over 99%"
        return f"{what}beyond {share} of known cells (distance {self.distance:.0f} of {self.limit:.0f})"


@dataclass(frozen=True)
class KnownCells:
    """What is known of the class tokens of cells.

    Attributes
    ----------
    mean, whiten
        float32 [d_in] and [d_in, d_in]: ``|(x - mean) @ whiten|`` is the distance of x.
    distances
        float32, sorted: quantiles of the distances of held-out cells of the same origins.
    limit
        See `Unusual`.
    """

    mean: Array
    whiten: Array
    distances: Array
    limit: float

    @classmethod
    def fit(cls, known: Array, heldout: Array, other: Array) -> KnownCells:
        """Fit on class tokens [n, d_in] of known cells; held-out ones give the scale, those of another origin the limit.

        Raises
        ------
        CytosaeError
            Too few cells.
        """
        from sklearn.covariance import LedoitWolf

        if len(known) < 50 or len(heldout) < 20 or len(other) < 20:
            raise CytosaeError(
                f"{len(known)} known, {len(heldout)} held-out cells and {len(other)} of another origin are too few; give at "
                "least 50, 20 and 20."
            )
        known = known.astype(np.float64)
        mean, spread = known.mean(0), np.maximum(known.std(0), 1e-6)
        precision = LedoitWolf().fit((known - mean) / spread).precision_
        whiten = np.linalg.cholesky(precision) / spread[:, None]
        fitted = cls(mean.astype(np.float32), whiten.astype(np.float32), np.zeros(0, np.float32), 0.0)
        scale = np.quantile(fitted.distance(heldout), np.linspace(0, 1, _KEPT))
        limit = float(np.quantile(fitted.distance(other), 1 - REFUSED))
        return cls(fitted.mean, fitted.whiten, scale.astype(np.float32), limit)

    def distance(self, tokens: Array) -> Array:
        """Distances float64 [n] of class tokens [n, d_in]."""
        x = np.asarray(tokens, dtype=np.float64) - self.mean
        return np.asarray(np.linalg.norm(x @ self.whiten.astype(np.float64), axis=1))

    def judge(self, token: Array) -> Unusual:
        """How unusual the image of a class token [d_in] is."""
        distance = float(self.distance(token[None])[0])
        below = float(np.searchsorted(self.distances, distance) / len(self.distances))
        return Unusual(distance, min(below, 1.0), self.limit)

    def to_arrays(self) -> dict[str, Array]:
        """For a safetensors file; `whiten` in float16 where it fits, which moves distances by less than a thousandth."""
        fits = bool(np.abs(self.whiten).max() < np.finfo(np.float16).max)
        return {"mean": self.mean, "whiten": self.whiten.astype(np.float16 if fits else np.float32), "distances": self.distances,
                "limit": np.array([self.limit], np.float32)}  # fmt: skip

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array]) -> KnownCells:
        """What `to_arrays` gave."""
        return cls(arrays["mean"], arrays["whiten"].astype(np.float32), arrays["distances"], float(arrays["limit"][0]))


def unusual_token(tokens: Array, backbone: Backbone) -> Array:
    """What stands for the whole image: its class token, or the mean of the patches where the backbone has none."""
    return np.asarray(tokens[0] if backbone.n_class else tokens[backbone.n_prefix :].mean(0))
