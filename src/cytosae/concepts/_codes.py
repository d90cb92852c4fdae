"""Sparse codes of tokens, and their dense reference."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch

from cytosae.sae import SparseAutoencoder


class Codes(NamedTuple):
    """Sparse codes of tokens in row order (CSR); latents ascend within a token, stored values are > 0.

    `row_start` int64 [n_tokens + 1], `latent` int32 [n_codes], `value` float32 [n_codes], `n_latents`; on the processor.
    """

    row_start: torch.Tensor
    latent: torch.Tensor
    value: torch.Tensor
    n_latents: int

    def dense(self) -> torch.Tensor:
        """float32 [n_tokens, n_latents]; for tests and small chunks."""
        n = len(self.row_start) - 1
        out = torch.zeros(n, self.n_latents)
        out[torch.repeat_interleave(torch.arange(n), self.row_start.diff()), self.latent.long()] = self.value
        return out


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
