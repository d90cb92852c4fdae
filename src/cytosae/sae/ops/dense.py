"""ReLU while half the latents fire: dense products with reused buffers, until the codes are sparse enough for the other paths."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cytosae.sae.ops._interface import AdamStep, Codes, Path, RowGradients, Rule, Term, Weights
from cytosae.sae.ops.portable import refuse_nan
from cytosae.sae.ops.reference import move_weights

#: Share of the latents that fire on a token, above which dense products are faster, by the type of their factors (measured
#: beside the compiled path; float32 without AVX-512).
DENSE_ABOVE = {torch.bfloat16: 0.05, torch.float32: 0.13}
#: Tokens whose dense codes are worked on at one time.
_CHUNK = 2048


class DenseCodes(Codes):
    """Codes as a dense tensor; the sparse parts are empty."""

    full: torch.Tensor

    @classmethod
    def of(cls, full: torch.Tensor) -> DenseCodes:
        """Wrap float32 [n_tokens, n_latents]."""
        start = torch.zeros(len(full) + 1, dtype=torch.int64, device=full.device)
        made = cls(start, torch.empty(0, dtype=torch.int32, device=full.device), full.new_empty(0), full.shape[1])
        made.full = full
        return made

    @property
    def n_codes(self) -> int:
        """Number of positive values."""
        return int(torch.count_nonzero(self.full))

    def total(self) -> float:
        """Sum of the values."""
        return float(self.full.sum())

    def fired(self) -> torch.Tensor:
        """bool [n_latents]: which latents fired at all."""
        return self.full.amax(0) > 0

    def dense(self) -> torch.Tensor:
        """The tensor itself."""
        return self.full


class SwitchingPath:
    """Dense products while a ReLU dictionary is dense, the path given as soon as its codes are sparse; see `Path`.

    Parameters
    ----------
    sparse
        The path for sparse codes, and for all other rules.
    dtype
        Of the factors of the dense products.
    """

    def __init__(self, sparse: Path, dtype: torch.dtype) -> None:
        """Dense at first: a dictionary starts with half its latents on."""
        self.sparse, self.dtype, self.above = sparse, dtype, DENSE_ABOVE[dtype]
        self.name = f"{sparse.name}, dense {str(dtype).removeprefix('torch.')} above {self.above:.0%}"
        self._buffers: dict[tuple[int, int], torch.Tensor] = {}

    def select(self, x: torch.Tensor, E: torch.Tensor, b_enc: torch.Tensor, rule: Rule) -> Codes:
        """Codes of centred tokens; dense where a sample of the tokens is."""
        if rule.kind != "relu" or not self._is_dense(x, E, b_enc):
            return self.sparse.select(x, E, b_enc, rule)
        refuse_nan(x)
        full = torch.empty(len(x), len(E), device=x.device)
        low = E.to(self.dtype)
        for a in range(0, len(x), _CHUNK):
            part = full[a : a + _CHUNK]
            torch.add(self._product(x[a : a + _CHUNK], low.T), b_enc, out=part).clamp_(min=0)
        return DenseCodes.of(full)

    def decode(self, codes: Codes, D: torch.Tensor, bounds: Sequence[int]) -> torch.Tensor:
        """Reconstructions without bias [n_groups, n, d_in]."""
        if not isinstance(codes, DenseCodes):
            return self.sparse.decode(codes, D, bounds)
        low = D.to(self.dtype)
        return torch.stack([self._product(codes.full[:, :end], low[:end]).float() for end in bounds])

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
        """One Adam step in place; gives the encoder's part of the decoder bias's gradient."""
        if not any(isinstance(term.codes, DenseCodes) for term in terms):
            return self.sparse.update(weights, x, terms, adam, normalise=normalise, extra=extra)
        term = terms[0]
        if len(terms) > 1 or len(term.bounds) > 1 or not isinstance(term.codes, DenseCodes):
            raise TypeError("dense codes come alone, as the only term of a ReLU dictionary")
        h, g_y = term.codes.full, term.g_y[0]
        gE, gD, gb = torch.zeros_like(weights.E), torch.zeros_like(weights.D), torch.zeros_like(weights.b_enc)
        low = weights.D.to(self.dtype)
        for a in range(0, len(x), _CHUNK):
            rows = slice(a, a + _CHUNK)
            gD.add_(self._product(h[rows].T, g_y[rows].to(self.dtype)))
            g_pre = self._product(g_y[rows], low.T).add_(term.l1).mul_(h[rows] > 0)
            gE.add_(self._product(g_pre.T, x[rows].to(self.dtype)))
            gb.add_(g_pre.sum(0, dtype=torch.float32))
        return move_weights(weights, gE, gD, gb, adam, normalise, extra)

    def _is_dense(self, x: torch.Tensor, E: torch.Tensor, b_enc: torch.Tensor) -> bool:
        """A pure function of the batch, so that a resumed run takes the same way as an unbroken one."""
        some = x[:: max(1, len(x) // 32)][:32]
        return float((torch.addmm(b_enc, some, E.T) > 0).float().mean()) > self.above

    def _product(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """``a @ b`` with factors of `dtype`, in a buffer that the next product of this shape overwrites."""
        key = (a.shape[0], b.shape[1])
        if key not in self._buffers:
            self._buffers[key] = torch.empty(key, dtype=self.dtype, device=a.device)
        return torch.mm(a.to(self.dtype), b.to(self.dtype), out=self._buffers[key])
