"""Sparse codes of tokens, and their dense reference."""

from __future__ import annotations

from typing import Protocol

import torch

from cytosae.sae import SparseAutoencoder
from cytosae.sae.ops import Codes

__all__ = ["Codes", "DenseEncoder", "Encoder", "from_dense"]


class Encoder(Protocol):
    """Whatever gives the codes of tokens: the screen, the dense product, a compiled path.

    Attributes
    ----------
    path
        What the manifest calls it.
    aligned
        Whether a token's codes might depend on its place in the chunk: such chunks are cut by ``cell_id`` and padded.
    """

    path: str
    aligned: bool

    def __call__(self, x: torch.Tensor) -> Codes:
        """Codes of tokens, float32 [n, d_in]."""

    def take_counts(self) -> dict[str, int]:
        """What was counted since the last call."""


def from_dense(codes: torch.Tensor) -> Codes:
    """Codes of a dense tensor [n_tokens, n_latents]."""
    found = codes.cpu()
    row, latent = found.nonzero(as_tuple=True)
    row_start = torch.zeros(len(found) + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(row, minlength=len(found)), 0, out=row_start[1:])
    return Codes(row_start, latent.to(torch.int32), found[row, latent], found.shape[1])


class DenseEncoder:
    """The plain float32 product: the reference, and the way for dictionaries that are small, dense, or on a graphics card."""

    path, aligned = "dense float32", True

    def __init__(self, sae: SparseAutoencoder) -> None:
        self.sae, self.n_tokens, self.n_codes = sae, 0, 0

    def __call__(self, x: torch.Tensor) -> Codes:
        """Codes of tokens, float32 [n, d_in]."""
        codes = from_dense(self.sae.encode(x.to(self.sae.W_enc.device)))
        self.n_tokens += len(x)
        self.n_codes += len(codes.value)
        return codes

    def take_counts(self) -> dict[str, int]:
        """Tokens and codes since the last call."""
        out = {"n_tokens": self.n_tokens, "n_codes": self.n_codes}
        self.n_tokens = self.n_codes = 0
        return out
