"""What a training step asks of a path: select codes, decode them, and move the weights; every path offers these three.

In training both matrices are latent-major, ``E`` (encoder) and ``D`` (decoder) [n_latents, d_in], float32: the rows of one
latent lie together. Codes are sparse rows (CSR), never a dense [tokens, n_latents] tensor kept beyond a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch

from cytosae._memory import copy_of, zeros_like


class _Parts(NamedTuple):
    row_start: torch.Tensor
    latent: torch.Tensor
    value: torch.Tensor
    n_latents: int


class Codes(_Parts):
    """Sparse codes of tokens in row order (CSR); latents ascend within a token, stored values are > 0.

    `row_start` int64 [n_tokens + 1], `latent` int32 [n_codes], `value` float32 [n_codes], `n_latents`.
    """

    @property
    def n_codes(self) -> int:
        """Number of codes."""
        return len(self.value)

    def total(self) -> float:
        """Sum of the values."""
        return float(self.value.sum())

    def fired(self) -> torch.Tensor:
        """bool [n_latents]: which latents fired at all."""
        out = torch.zeros(self.n_latents, dtype=torch.bool, device=self.latent.device)
        out[self.latent.long()] = True
        return out

    @property
    def n_tokens(self) -> int:
        """Number of rows."""
        return len(self.row_start) - 1

    def row_of(self) -> torch.Tensor:
        """int64 [n_codes]: the token of each code."""
        counts = self.row_start.diff()
        return torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)

    def dense(self) -> torch.Tensor:
        """float32 [n_tokens, n_latents]; for tests and small chunks."""
        out = torch.zeros(self.n_tokens, self.n_latents, device=self.value.device)
        out[self.row_of(), self.latent.long()] = self.value
        return out


@dataclass(frozen=True)
class Rule:
    """Which pre-activations become codes.

    ``relu``: all that are positive. ``topk``: the `k` largest positive of each token. ``batchtopk``: the ``k * n_tokens``
    largest positive of the batch. ``threshold``: those above `threshold` (float32 [n_latents]), and positive.
    Of equal values the lower latent wins (``topk``); in a batch the lower token, then the lower latent (``batchtopk``): never more codes than asked for.
    """

    kind: Literal["relu", "topk", "batchtopk", "threshold"]
    k: int = 0
    threshold: torch.Tensor | None = None


@dataclass(frozen=True)
class Term:
    """One reconstruction that moves the weights: codes, and the loss's gradient with respect to what they decode to.

    Attributes
    ----------
    codes
        Codes over all latents, or over the subset `latents`.
    g_y
        float32 [n_groups, n_tokens, d_in]; a code of latent s in group j takes its gradient from ``g_y[j]``.
    bounds
        Ends of the groups of latents, ascending, the last one the number of latents (Matryoshka); one group otherwise.
    l1
        Added to the gradient of every code.
    latents
        int64 [n_subset]: which latents the codes number, where they are of a subset (dead ones).
    """

    codes: Codes
    g_y: torch.Tensor
    bounds: Sequence[int]
    l1: float = 0.0
    latents: torch.Tensor | None = None


class RowGradients(NamedTuple):
    """Gradients computed elsewhere (ghost gradients) of some rows: `latents` int64 [m], `E`, `D` [m, d_in], `b_enc` [m]."""

    latents: torch.Tensor
    E: torch.Tensor
    D: torch.Tensor
    b_enc: torch.Tensor


@dataclass
class Weights:
    """Weights in training and their Adam moments, float32: `E`, `D` [n_latents, d_in], `b_enc` [n_latents]."""

    E: torch.Tensor
    D: torch.Tensor
    b_enc: torch.Tensor
    E_avg: torch.Tensor
    E_square: torch.Tensor
    D_avg: torch.Tensor
    D_square: torch.Tensor
    b_avg: torch.Tensor
    b_square: torch.Tensor

    @classmethod
    def start(cls, E: torch.Tensor, D: torch.Tensor) -> Weights:
        """Weights before the first step: no encoder bias, no moments; `E` and `D` are copied."""
        E, D = copy_of(E), copy_of(D)
        big = [zeros_like(E) for _ in range(4)]
        b_enc, b_avg, b_square = (torch.zeros(len(E), device=E.device) for _ in range(3))
        return cls(E, D, b_enc, big[0], big[1], big[2], big[3], b_avg, b_square)


@dataclass(frozen=True)
class AdamStep:
    """Numbers of one Adam step: `step` counts from 1; ``w -= lr * avg_hat / (sqrt(square_hat) + eps)``."""

    step: int
    lr: float
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8


class Path(Protocol):
    """One way of computing a step (dense reference, portable torch, compiled kernel)."""

    name: str

    def select(self, x: torch.Tensor, E: torch.Tensor, b_enc: torch.Tensor, rule: Rule) -> Codes:
        """Codes of centred tokens `x` float32 [n, d_in]: pre-activations ``x @ E.T + b_enc``, then `rule`."""

    def decode(self, codes: Codes, D: torch.Tensor, bounds: Sequence[int]) -> torch.Tensor:
        """Reconstructions without bias, float32 [n_groups, n, d_in]; group j sums the latents below ``bounds[j]``."""

    def update(
        self,
        weights: Weights,
        x: torch.Tensor,
        terms: Sequence[Term],
        adam: AdamStep,
        *,
        normalise: bool,
        extra: RowGradients | None = None,
    ) -> torch.Tensor:
        """One Adam step on E, D and b_enc in place, in one visit per latent row.

        For every code (t, s, v) of every term, with g = g_y[group of s][t]: ``gD[s] += v g``;
        ``gc = <g, D[s]> + l1``; ``gE[s] += gc x[t]``; ``gb[s] += gc``; the rows of `extra` are added. Then the part of gD[s] along D[s] is removed, Adam moves
        all rows (also those without codes), and with `normalise` each row of D is scaled to unit norm.

        Returns
        -------
        float32 [d_in]: ``sum_s gb[s] E[s]`` with E before the step (the encoder's part of the decoder bias's gradient,
        sign positive).
        """
