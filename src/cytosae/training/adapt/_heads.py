"""What student and teacher are asked: the share of a token in prototypes, balanced, and which patches are hidden."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

_CLUSTER_ROUNDS = 12


class Prototypes(nn.Module):
    """A projection to `feature` numbers and `n` prototypes, compared by cosine.

    They start where the tokens are, so that there is a signal from the first step: the projection at the principal components,
    half whitened, the prototypes at centres of a spherical k-means.
    """

    def __init__(self, width: int, feature: int, n: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, feature)
        self.centres = nn.Parameter(torch.zeros(n, feature))

    @torch.no_grad()
    def start(self, tokens: torch.Tensor) -> None:
        """Begin at these tokens [m, width], at least as many as prototypes."""
        n, n_features = self.centres.shape
        mean = tokens.mean(0)
        _, values, axes = torch.linalg.svd(tokens - mean, full_matrices=False)
        scale = (values[:n_features] / len(tokens) ** 0.5).sqrt().clamp_min(1e-6)
        self.project.weight.copy_(axes[:n_features] / scale[:, None])
        self.project.bias.copy_(-(axes[:n_features] @ mean) / scale)
        points = F.normalize(self.project(tokens), dim=1)
        centres = points[torch.randperm(len(points))[:n]].clone()
        for _ in range(_CLUSTER_ROUNDS):
            nearest = (points @ centres.T).argmax(1)
            centres = F.normalize(torch.zeros_like(centres).index_add_(0, nearest, points) + 1e-3 * centres, dim=1)
        self.centres.copy_(centres)

    def feature(self, tokens: torch.Tensor) -> torch.Tensor:
        """Unit rows [..., feature] of tokens [..., width]."""
        return F.normalize(self.project(tokens).float(), dim=-1)

    def logits(self, feature: torch.Tensor) -> torch.Tensor:
        """Cosines [..., n] with the prototypes."""
        return feature @ F.normalize(self.centres, dim=1).T


def balanced(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Shares [rows, prototypes], of which every row has 1 and all prototypes about as much (Sinkhorn-Knopp, three rounds).

    Source: SwAV, Caron et al. 2020, section 3.2.
    """
    q = torch.exp((logits - logits.max()) / temperature)
    for _ in range(3):
        q = q / q.sum(0, keepdim=True).clamp_min(1e-9)
        q = q / q.sum(1, keepdim=True)
    return q


def spread(feature: torch.Tensor) -> torch.Tensor:
    """Minus the mean log distance of unit rows to the nearest other one (KoLeo, Sablayrolles et al. 2019)."""
    with torch.no_grad():
        nearest = (feature @ feature.T - 2 * torch.eye(len(feature), device=feature.device)).argmax(1)
    return -torch.log((feature - feature[nearest]).norm(dim=1) + 1e-6).mean()


def hidden_patches(n: int, grid: tuple[int, int], share: float, rng: np.random.Generator) -> torch.Tensor:
    """bool [n, patches]: in `share` of the views rectangles over a tenth to half of the patches (iBOT, Zhou et al. 2022)."""
    rows, columns = grid
    mask = torch.zeros(n, rows * columns, dtype=torch.bool)
    for i in range(n):
        if rng.random() < share:
            wanted, m = rng.uniform(0.1, 0.5) * rows * columns, np.zeros((rows, columns), bool)
            while m.sum() < wanted:
                high, wide = np.minimum(rng.integers(3, 8, 2), (rows, columns))
                r, c = rng.integers(0, rows + 1 - high), rng.integers(0, columns + 1 - wide)
                m[r : r + high, c : c + wide] = True
            mask[i] = torch.from_numpy(m.ravel())
    return mask
