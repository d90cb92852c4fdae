"""The dictionary in use: encode and decode, in the tokens' own units."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from cytosae._errors import CytosaeError, UsageError
from cytosae.sae.ops import Rule

#: `relu`: max(pre, 0). `threshold`: pre where pre > threshold, else 0 (BatchTopK and JumpReLU in inference). `topk`: the k
#: largest positive of each token, of equal ones the lower latent.
ACTIVATIONS = ("relu", "threshold", "topk")


@dataclass(frozen=True)
class SparseAutoencoder:
    """A sparse autoencoder ``codes = act((x - b_dec) @ W_enc + b_enc)``, ``y = codes @ W_dec + b_dec``.

    Attributes
    ----------
    W_enc, b_enc, W_dec, b_dec
        float32 [d_in, n_latents], [n_latents], [n_latents, d_in], [d_in], as trained.
    activation
        One of `ACTIVATIONS`.
    threshold
        float32 [n_latents], for the activation ``threshold``.
    k
        For the activation ``topk``: codes a token at most.
    info
        The content of ``sae.json``: recipe, hyperparameters, the backbone it belongs to, metrics.
    hash
        Identity of the artifact it was read from; empty in memory.
    """

    W_enc: torch.Tensor
    b_enc: torch.Tensor
    W_dec: torch.Tensor
    b_dec: torch.Tensor
    activation: str = "relu"
    threshold: torch.Tensor | None = None
    k: int = 0
    info: dict[str, Any] = field(default_factory=dict)
    hash: str = ""

    def __post_init__(self) -> None:
        d, n = self.W_enc.shape
        shapes = {"b_enc": (n,), "W_dec": (n, d), "b_dec": (d,)}
        if self.activation not in ACTIVATIONS:
            raise CytosaeError(f"Unknown activation {self.activation!r}; this program knows {', '.join(ACTIVATIONS)}.")
        if self.activation == "threshold":
            if self.threshold is None:
                raise CytosaeError("The activation 'threshold' needs a threshold for each latent, but there is none.")
            shapes["threshold"] = (n,)
        if self.activation == "topk" and self.k < 1:
            raise CytosaeError("The activation 'topk' needs k, the number of codes a token, but there is none.")
        for name, shape in shapes.items():
            found = tuple(getattr(self, name).shape)
            if found != shape:
                raise CytosaeError(f"{name} has the shape {list(found)}, but W_enc {[d, n]} asks for {list(shape)}.")
        for name in ("W_enc", *shapes):
            if not bool(torch.isfinite(getattr(self, name)).all()):
                raise CytosaeError(f"{name} holds values that are not numbers; this dictionary cannot be used.")

    @property
    def d_in(self) -> int:
        """Width of a token."""
        return self.W_enc.shape[0]

    @property
    def n_latents(self) -> int:
        """Number of latents."""
        return self.W_enc.shape[1]

    def to(self, device: str) -> SparseAutoencoder:
        """The same dictionary on another device."""
        moved = None if self.threshold is None else self.threshold.to(device)
        return SparseAutoencoder(
            self.W_enc.to(device), self.b_enc.to(device), self.W_dec.to(device), self.b_dec.to(device),
            self.activation, moved, self.k, self.info, self.hash,
        )  # fmt: skip

    def rule(self) -> Rule:
        """The activation as the operations of `cytosae.sae.ops` take it."""
        if self.activation == "relu":
            return Rule("relu")
        return Rule("topk", k=self.k) if self.activation == "topk" else Rule("threshold", threshold=self.threshold)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Codes of tokens.

        Parameters
        ----------
        x
            [..., d_in]; computed in float32.

        Returns
        -------
        float32 [..., n_latents], all >= 0. Dense: give a chunk of tokens, not a whole data set.

        Raises
        ------
        UsageError
            Tokens of another width.
        """
        shape = x.shape
        if shape[-1] != self.d_in:
            raise UsageError(
                f"The tokens are {shape[-1]} wide, but the dictionary reads {self.d_in}; take those of its own backbone and blocks "
                "(info['backbone'], info['layer'])."
            )
        pre = torch.addmm(self.b_enc, x.reshape(-1, shape[-1]).float() - self.b_dec, self.W_enc)
        if self.activation == "threshold":
            assert self.threshold is not None
            pre[pre <= self.threshold] = 0
        codes = pre.clamp_(min=0)
        if self.activation == "topk" and self.k < self.n_latents:
            codes = _row_topk(codes, self.k)
        return codes.reshape(*shape[:-1], self.n_latents)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Reconstruction [..., d_in] of codes [..., n_latents]."""
        return codes @ self.W_dec + self.b_dec


def _row_topk(codes: torch.Tensor, k: int) -> torch.Tensor:
    """Only the `k` largest of each row; of those that tie with the last, the first ones."""
    least = codes.topk(k, dim=1).values[:, -1:]
    above, tied = codes > least, codes == least
    room = k - above.sum(1, keepdim=True)
    return codes * (above | (tied & (tied.cumsum(1) <= room)))
