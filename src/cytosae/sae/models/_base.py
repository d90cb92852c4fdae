"""What every kind of dictionary has in common in training: how it encodes, what its loss is, and how it is used afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cytosae.sae.ops import Codes, Path, Rule, Weights


@dataclass(frozen=True)
class Error:
    """The reconstruction error: ``sum over tokens of weight * ||y - x||^2``.

    ``fvu``: weight ``1 / (n * variance)``, so that predicting the mean token costs 1. ``norm``: the published code's
    ``1 / (n * d_in * ||x||)`` (the norm, not its square, and no epsilon).

    Attributes
    ----------
    kind
        ``fvu`` or ``norm``.
    variance
        Mean squared distance of a token from the mean token.
    """

    kind: str
    variance: float

    def weight(self, x: torch.Tensor) -> torch.Tensor:
        """Weight of each token: float32 [n, 1]."""
        if self.kind == "norm":
            return torch.reciprocal(x.norm(dim=1, keepdim=True) * x.numel())
        return torch.full((len(x), 1), 1.0 / (len(x) * self.variance), device=x.device)


@dataclass(frozen=True)
class Encoded:
    """Codes of a batch; `near`: those, and values just below their threshold, which move a JumpReLU's thresholds."""

    codes: Codes
    near: Codes | None = None


class Model:
    """A kind of dictionary in training; the subclasses say what differs.

    Attributes
    ----------
    name
        As recipes call it.
    n_latents
        Size of the dictionary.
    l1
        Weight of the sum of codes, mean over tokens.
    bounds
        Ends of the nested groups of latents; one group for all but Matryoshka.
    activation
        How the finished dictionary decides in inference (`cytosae.sae.ACTIVATIONS`).
    """

    name = ""
    activation = "relu"

    def __init__(self, n_latents: int, *, k: int = 0, l1: float = 0.0, bounds: Sequence[int] = ()) -> None:
        self.n_latents, self.k, self.l1 = n_latents, k, l1
        self.bounds = tuple(bounds) or (n_latents,)

    def rule(self) -> Rule:
        """Which pre-activations become codes in training."""
        raise TypeError(f"{type(self).__name__} does not say how it selects codes")

    def encode(self, path: Path, centred: torch.Tensor, weights: Weights) -> Encoded:
        """Codes of tokens from which the decoder bias was taken, float32 [n, d_in]."""
        return Encoded(path.select(centred, weights.E, weights.b_enc, self.rule()))

    def loss(
        self, x: torch.Tensor, recon: torch.Tensor, codes: Codes, error: Error
    ) -> tuple[dict[str, float], torch.Tensor]:
        """The loss and its gradient with respect to what is decoded.

        Parameters
        ----------
        x
            float32 [n, d_in].
        recon
            float32 [n_groups, n, d_in]: reconstructions by the nested groups, biases included.
        codes
            Of this batch.
        error
            How squared errors are weighted.

        Returns
        -------
        losses (``error`` of the whole dictionary, ``loss``), and g_y float32 [n_groups, n, d_in], where ``g_y[j]`` is the
        gradient for a code of group j: the sum over all reconstructions that contain it.
        """
        weight = error.weight(x)
        residual = recon - x
        squares = (residual.square() * weight).sum((1, 2))
        n_groups = len(recon)
        g_y = residual.mul_(2.0 / n_groups * weight)
        for j in range(n_groups - 2, -1, -1):
            g_y[j] += g_y[j + 1]
        sparsity = self.l1 * codes.total() / len(x) if self.l1 else 0.0
        parts = {"error": float(squares[-1]), "loss": float(squares.mean()) + sparsity}
        if self.l1:
            parts["l1"] = sparsity
        return parts, g_y

    def learn(self, encoded: Encoded, g_y: torch.Tensor, weights: Weights, lr: float) -> None:
        """Move what the model learns beside the weights (JumpReLU's thresholds), before they move; nothing elsewhere."""

    def state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint must hold beside the weights; the tensors themselves, to be read and overwritten."""
        return {}

    def threshold(self) -> torch.Tensor | None:
        """Thresholds of inference that the model learned itself, float32 [n_latents]; None: to be calibrated, or none."""
        return None
