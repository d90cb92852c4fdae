"""Reconstruction metrics as sums, so that neither batch size nor order changes them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cytosae.sae.ops import Codes

#: Tokens handled at once in float64.
_PIECE = 16_384


@dataclass
class ReconstructionSums:
    """Sums over tokens, in float64, from which the metrics follow.

    Explained variance = 1 - sum ||x - y||^2 / sum ||x - mean||^2, the sums and the mean over all tokens; FVU is its
    complement. L0 is the mean number of active latents a token.
    """

    d_in: int
    n_latents: int

    def __post_init__(self) -> None:
        self.n_tokens = 0
        self.error = 0.0
        self.square = 0.0
        self.total = torch.zeros(self.d_in, dtype=torch.float64)
        self.cosine = 0.0
        self.fired = torch.zeros(self.n_latents, dtype=torch.int64)

    def update(self, x: torch.Tensor, y: torch.Tensor, codes: torch.Tensor | Codes) -> None:
        """Add tokens: `x` and their reconstruction `y` [n, d_in], codes [n, n_latents] or sparse."""
        x64 = x.double()
        self.n_tokens += len(x)
        self.error += float((x64 - y.double()).square().sum())
        self.square += float(x64.square().sum())
        self.total += x64.sum(0).cpu()
        self.cosine += float(torch.nn.functional.cosine_similarity(x, y, dim=1).double().sum())
        if isinstance(codes, Codes):
            self.fired += torch.bincount(codes.latent.long(), minlength=self.n_latents).cpu()
        else:
            self.fired += (codes > 0).sum(0).cpu()

    @property
    def variance(self) -> float:
        """Sum over tokens of the squared distance from the mean token."""
        return self.square - float(self.total.square().sum()) / max(self.n_tokens, 1)

    def finish(self) -> dict[str, float]:
        """The metrics.

        Returns
        -------
        ``explained_variance``, ``fvu``, ``cosine``, ``l0``, ``dead_share`` (latents that fire on fewer than 1 in 10^5
        of these tokens), ``n_tokens``.
        """
        fvu = self.error / self.variance if self.variance > 0 else float("nan")
        rare = self.fired.double() < 1e-5 * self.n_tokens
        return {
            "explained_variance": 1 - fvu,
            "fvu": fvu,
            "cosine": self.cosine / max(self.n_tokens, 1),
            "l0": float(self.fired.sum()) / max(self.n_tokens, 1),
            "dead_share": float(rare.double().mean()),
            "n_tokens": self.n_tokens,
        }

    def frequency_histogram(self) -> dict[str, list[float]]:
        """How many latents fire on which share of the tokens, in half decades.

        Returns
        -------
        ``from``: lower ends of the bins (0 for latents that never fired, then 1e-6, 3.2e-6, ... 0.32); ``n_latents``.
        """
        edges = 10.0 ** torch.arange(-6, 0.01, 0.5, dtype=torch.float64)
        share = self.fired.double() / max(self.n_tokens, 1)
        bins = torch.bucketize(share, edges[1:-1], right=True)
        counts = torch.bincount(bins[self.fired > 0], minlength=len(edges) - 1)
        return {"from": [0.0, *edges[:-1].tolist()], "n_latents": [int((self.fired == 0).sum()), *counts.tolist()]}


def pca_fvu(train: torch.Tensor, test: torch.Tensor, n_components: int) -> float:
    """FVU on `test` tokens of the best `n_components`-dimensional affine subspace of the `train` tokens.

    The line to put beside every SAE: tokens are low rank, so a small FVU alone says little. Works in pieces: the tokens
    may be of any stored type and are never copied whole.
    """
    mean, covariance, _ = _moments(train)
    _, vectors = torch.linalg.eigh(covariance)
    basis = vectors[:, -n_components:]
    _, _, variance = _moments(test)
    error = 0.0
    for piece in torch.split(test, _PIECE):
        x = piece.double() - mean
        error += float((x - (x @ basis) @ basis.T).square().sum())
    return error / variance


def _moments(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Mean [d], scatter matrix [d, d] and summed squared distance from the mean, in float64."""
    mean = torch.stack([p.double().sum(0) for p in torch.split(tokens, _PIECE)]).sum(0) / len(tokens)
    scatter = torch.zeros(tokens.shape[1], tokens.shape[1], dtype=torch.float64)
    for piece in torch.split(tokens, _PIECE):
        x = piece.double() - mean
        scatter.addmm_(x.T, x)
    return mean, scatter, float(scatter.trace())
