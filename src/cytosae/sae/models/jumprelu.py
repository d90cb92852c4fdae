"""JumpReLU (arXiv 2407.14435): a learned threshold for each latent, moved by straight-through estimators."""

from __future__ import annotations

import torch

from cytosae.sae.models._base import Encoded, Model
from cytosae.sae.ops import Codes, Path, Rule, Weights

#: Rows of the decoder gathered at once for the thresholds' gradient.
_PIECE = 65_536


class JumpRelu(Model):
    """A code is a pre-activation above its latent's threshold.

    The penalty is ``sparsity * (L0 / k - 1)^2``, L0 the mean number of codes a token, so that `k` is what it is elsewhere.
    Both the penalty and the error reach the thresholds through a rectangle of width `bandwidth` around them (equations 11
    and 12 of the paper); the other weights see the codes as they are. Thresholds are learned as logarithms.
    """

    name = "jumprelu"
    activation = "threshold"

    def __init__(self, n_latents: int, *, k: int, sparsity: float, bandwidth: float, start: float, device: str) -> None:
        """All thresholds begin at `start`."""
        super().__init__(n_latents, k=k)
        self.sparsity, self.bandwidth = sparsity, bandwidth
        self.log_threshold = torch.full((n_latents,), float(start), device=device).log_()
        self.avg, self.square = torch.zeros_like(self.log_threshold), torch.zeros_like(self.log_threshold)
        self.steps = torch.zeros(1, dtype=torch.int64)

    def rule(self) -> Rule:
        """What lies above the lower edge of the rectangle."""
        return Rule("threshold", threshold=self.threshold() - self.bandwidth / 2)

    def encode(self, path: Path, centred: torch.Tensor, weights: Weights) -> Encoded:
        """Codes above the threshold, and apart from them all values near it."""
        found = path.select(centred, weights.E, weights.b_enc, self.rule())
        edge = self.threshold()[found.latent.long()]
        near = (found.value - edge).abs() < self.bandwidth / 2
        return Encoded(_only(found, found.value > edge), _only(found, near))

    def learn(self, encoded: Encoded, g_y: torch.Tensor, weights: Weights, lr: float) -> None:
        """One Adam step on the logarithms of the thresholds; `weights` are those that made `g_y`."""
        near = encoded.near
        assert near is not None
        n = max(near.n_tokens, 1)
        l0 = len(encoded.codes.value) / n
        penalty = self.sparsity * 2 * (l0 / self.k - 1) / self.k / n
        latent, row = near.latent.long(), near.row_of()
        slope = torch.empty_like(near.value)
        for a in range(0, len(slope), _PIECE):
            s, t = latent[a : a + _PIECE], row[a : a + _PIECE]
            slope[a : a + _PIECE] = (g_y[-1][t] * weights.D[s]).sum(1)
        edge = self.threshold()
        per_code = -(edge[latent] * slope + penalty) / self.bandwidth
        gradient = torch.zeros_like(edge).index_add_(0, latent, per_code).mul_(edge)  # d/d log t = t d/dt
        self.steps += 1
        step = int(self.steps)
        self.avg.lerp_(gradient, 0.1)
        self.square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        corrected = (self.square / (1 - 0.999**step)).sqrt_().add_(1e-8)
        self.log_threshold.addcdiv_(self.avg / (1 - 0.9**step), corrected, value=-lr)

    def state(self) -> dict[str, torch.Tensor]:
        """Thresholds and their moments."""
        return {"log_threshold": self.log_threshold, "threshold_avg": self.avg, "threshold_square": self.square,
                "threshold_steps": self.steps}  # fmt: skip

    def threshold(self) -> torch.Tensor:
        """float32 [n_latents]."""
        return self.log_threshold.exp()


def _only(codes: Codes, keep: torch.Tensor) -> Codes:
    """The codes at which `keep` is true."""
    kept = torch.cat([torch.zeros(1, dtype=torch.int64, device=keep.device), keep.long().cumsum(0)])
    return Codes(kept[codes.row_start], codes.latent[keep], codes.value[keep], codes.n_latents)
