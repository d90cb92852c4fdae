"""ReLU while half the latents fire: dense products with reused buffers, until the codes are sparse enough for the other paths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import torch

from cytosae.sae.ops._interface import AdamStep, Codes, Path, RowGradients, Rule, Term, Weights
from cytosae.sae.ops._products import LATENTS, TOKENS, Factors, Room, blocks
from cytosae.sae.ops.native import NativePath
from cytosae.sae.ops.portable import refuse_nan
from cytosae.sae.ops.reference import move_weights

threshold_backward = torch.ops.aten.threshold_backward.grad_input

#: Share of the latents that fire on a token, above which dense products are faster, by the type of their factors (measured
#: beside the compiled path; float32 without AVX-512).
DENSE_ABOVE = {torch.bfloat16: 0.05, torch.float32: 0.13}


class DenseCodes(Codes):
    """Codes as a dense tensor; the sparse parts are empty.

    Attributes
    ----------
    full
        [n_tokens, n_latents], of the type of the products.
    sums
        float32 [n_latents]: of each latent's codes.
    n_positive
        Number of positive values.
    """

    full: torch.Tensor
    sums: torch.Tensor
    n_positive: int

    @classmethod
    def of(cls, full: torch.Tensor, sums: torch.Tensor, n_positive: int) -> DenseCodes:
        """Wrap dense codes."""
        start = torch.zeros(len(full) + 1, dtype=torch.int64, device=full.device)
        made = cls(start, torch.empty(0, dtype=torch.int32, device=full.device), sums.new_empty(0), full.shape[1])
        made.full, made.sums, made.n_positive = full, sums, n_positive
        return made

    @property
    def n_codes(self) -> int:
        """Number of positive values."""
        return self.n_positive

    def total(self) -> float:
        """Sum of the values."""
        return float(self.sums.sum())

    def fired(self) -> torch.Tensor:
        """bool [n_latents]: which latents fired at all."""
        return self.sums > 0

    def dense(self) -> torch.Tensor:
        """The codes in float32."""
        return self.full.float()


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
        self._factors, self._room = Factors(dtype), Room()
        self._move = sparse.move if isinstance(sparse, NativePath) else move_weights

    def select(self, x: torch.Tensor, E: torch.Tensor, b_enc: torch.Tensor, rule: Rule) -> Codes:
        """Codes of centred tokens; dense where a sample of the tokens is."""
        if rule.kind != "relu" or not self._is_dense(x, E, b_enc):
            self._room.clear()
            return self.sparse.select(x, E, b_enc, rule)
        refuse_nan(x)
        full = self._room.borrow(len(x), len(E), self.dtype, x.device)
        sums, count = torch.zeros(len(E), device=x.device), 0.0
        one = torch.ones(1, device=x.device)
        tokens, adders = self._factors.of(x, one, one, one), self._adders(len(x), x.device)
        for block in blocks(len(E), LATENTS):
            rows = self._factors.of(E[block], *self._factors.parts(b_enc[block]))
            for some in blocks(len(x), TOKENS):
                h = torch.mm(tokens[some], rows.T, out=full[some, block]).clamp_(min=0)
                sums[block] += torch.mm(adders[:, some], h).sum(0, dtype=torch.float32)
                count += float(torch.mm(adders[:, some], torch.sign(h)).sum(dtype=torch.float64))
        return DenseCodes.of(full, sums, int(count))

    def decode(self, codes: Codes, D: torch.Tensor, bounds: Sequence[int]) -> torch.Tensor:
        """Reconstructions without bias [n_groups, n, d_in]."""
        if not isinstance(codes, DenseCodes):
            return self.sparse.decode(codes, D, bounds)
        low = D.to(self.dtype)
        return torch.stack([torch.mm(codes.full[:, :end], low[:end]).float() for end in bounds])

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
        term, d = terms[0], x.shape[1]
        if len(terms) > 1 or len(term.bounds) > 1 or not isinstance(term.codes, DenseCodes):
            raise TypeError("dense codes come alone, as the only term of a ReLU dictionary")
        full, one = term.codes.full, torch.ones(1, device=x.device)
        tokens = self._factors.of(x, one)
        errors = self._factors.of(term.g_y[0], one, one, one)
        l1, carry = self._factors.parts(one * term.l1), torch.zeros(d, device=x.device)
        for block in blocks(len(weights.E), LATENTS):
            rows = self._factors.of(weights.D[block], *l1)
            gE, gD = (
                torch.zeros(len(rows), tokens.shape[1], device=x.device),
                torch.zeros(len(rows), d, device=x.device),
            )
            for some in blocks(len(x), TOKENS):
                h = full[some, block]
                g_pre = torch.mm(errors[some], rows.T)
                threshold_backward(g_pre, h, 0, grad_input=g_pre)
                gD += torch.mm(h.T, errors[some, :d])
                gE += torch.mm(g_pre.T, tokens[some])
            part = Weights(*(getattr(weights, field.name)[block] for field in fields(weights)))
            if extra is not None:
                _add(extra, block, gE, gD)
            carry += self._move(part, gE[:, :d], gD, gE[:, d], adam, normalise)
        return carry

    def _is_dense(self, x: torch.Tensor, E: torch.Tensor, b_enc: torch.Tensor) -> bool:
        """A pure function of the batch, so that a resumed run takes the same way as an unbroken one."""
        some = x[:: max(1, len(x) // 32)][:32]
        return float((torch.addmm(b_enc, some, E.T) > 0).float().mean()) > self.above

    def _adders(self, n: int, device: torch.device) -> torch.Tensor:
        """[ceil(n / 256), n], a row of ones for 256 tokens each: products with it count exactly in 8 bits, and faster than sums."""
        at = torch.arange(n, device=device) // 256
        return (at == torch.arange(-(-n // 256), device=device)[:, None]).to(self.dtype)


def _add(rows: RowGradients, block: slice, gE: torch.Tensor, gD: torch.Tensor) -> None:
    """Add the rows of a block of latents; the column of `gE` after its rows is the bias's gradient."""
    at = torch.nonzero((rows.latents >= block.start) & (rows.latents < block.stop)).flatten()
    here = rows.latents[at] - block.start
    gE.index_add_(0, here, torch.nn.functional.pad(rows.E[at], (0, gE.shape[1] - rows.E.shape[1])))
    gE[here, gD.shape[1]] += rows.b_enc[at]
    gD.index_add_(0, here, rows.D[at])
