"""Latents that provably cannot fire on some tokens need no product: which they are."""

from __future__ import annotations

import torch

#: The product is cut down to the latents that can fire once at least this share of them cannot.
_WORTH_SKIPPING = 0.15


class Reach:
    """The latents that some tokens may reach; grows from chunk to chunk until it is forgotten, so that it settles.

    Attributes
    ----------
    weights, norm
        Encoder rows float32 [n_latents, d_in], and their lengths.
    kept
        int64: the latents that are worked on, ascending.
    """

    def __init__(self, weights: torch.Tensor) -> None:
        self.weights, self.norm = weights, weights.norm(dim=1)
        self.kept = torch.arange(len(weights))

    @property
    def whole(self) -> bool:
        """Whether no latent is left out."""
        return len(self.kept) == len(self.weights)

    def forget(self) -> None:
        """Keep all latents again."""
        self.kept = torch.arange(len(self.weights))

    def widen(self, x: torch.Tensor, lifted: torch.Tensor) -> bool:
        """Keep at least the latents that some of these tokens may reach; says whether `kept` is another now.

        For every c, x.w <= c.w + |x - c| |w|; c is the tokens' mean.

        Parameters
        ----------
        x
            Centred tokens, float32 [n, d_in], n > 0.
        lifted
            float32 [n_latents]: bias minus threshold plus whatever the pre-activation may be off by.
        """
        centre = x.mean(0)
        radius = float((x - centre).norm(dim=1).max())
        reach = self.weights @ centre + radius * self.norm * (1 + 1e-5) + lifted + 1e-5 * centre.norm() * self.norm
        can = reach > 0
        within = torch.zeros(len(can), dtype=torch.bool)
        within[self.kept] = True
        if bool((can & ~within).any()):  # more than before: keep all that ever could
            return self._keep(can | within)
        if self.whole and float(can.float().mean()) < 1 - _WORTH_SKIPPING:
            return self._keep(can)
        return False

    def _keep(self, which: torch.Tensor) -> bool:
        all_of_them = float(which.float().mean()) > 1 - _WORTH_SKIPPING
        self.kept = torch.arange(len(which)) if all_of_them else which.nonzero().squeeze(1)
        return True
