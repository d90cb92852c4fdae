"""The path in plain PyTorch: one dense product proposes (bfloat16 where that is fast), float32 decides, the rest is sparse."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cytosae._errors import CytosaeError
from cytosae.sae.ops._interface import AdamStep, Codes, RowGradients, Rule, Term, Weights
from cytosae.sae.ops.reference import adam_in_place

#: Tokens whose dense pre-activations exist at one time.
_CHUNK = 1024
#: Codes whose rows are gathered at one time.
_GATHER = 65_536
#: Standard deviations of the rounding error of a bfloat16 product that the screen allows for.
_SIGMAS = 8.0


class PortablePath:
    """See `cytosae.sae.ops.Path`; any device, nothing compiled.

    Parameters
    ----------
    dtype
        Of the factors of the screening product; the codes themselves are always float32.
    """

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        self.name = "portable-" + str(dtype).removeprefix("torch.")
        self._buffers: dict[tuple[int, int], torch.Tensor] = {}
        self._least: dict[tuple[int, int], float] = {}

    def select(self, x: torch.Tensor, E: torch.Tensor, b_enc: torch.Tensor, rule: Rule) -> Codes:
        """Codes of centred tokens [n, d_in]."""
        refuse_nan(x)
        if rule.kind != "batchtopk":
            return self._candidates(x, E, b_enc, rule, 0.0)
        key, wanted = (len(E), rule.k), rule.k * len(x)
        bound = 0.9 * self._least.get(key, 0.0)
        while True:
            found = self._candidates(x, E, b_enc, rule, bound)
            if bound <= 0 or int((found.value >= bound).sum()) >= wanted:
                break
            bound = bound / 2 if bound > 1e-6 else 0.0
        if len(found.value) <= wanted:
            self._least[key] = 0.0
            return found
        order = torch.sort(found.value, descending=True, stable=True).indices[:wanted]
        self._least[key] = float(found.value[order[-1]])
        keep = torch.zeros_like(found.value, dtype=torch.bool)
        keep[order] = True
        return _only(found, keep)

    def _candidates(self, x: torch.Tensor, E: torch.Tensor, b_enc: torch.Tensor, rule: Rule, bound: float) -> Codes:
        """All codes of a rule, or of `batchtopk` all values that reach `bound` (and what else the screen let through)."""
        counts, latents, values = [], [], []
        low = E if self.dtype == torch.float32 else E.to(self.dtype)
        per_latent = E.norm(dim=1) if self.dtype != torch.float32 else None
        for a in range(0, len(x), _CHUNK):
            part = x[a : a + _CHUNK]
            pre = self._product(part, low, b_enc)
            slack = None
            if per_latent is not None:  # rounding of the factors, and of the result
                slack = torch.outer(part.norm(dim=1), per_latent).mul_(_SIGMAS * 2**-9 / E.shape[1] ** 0.5).add_(pre.abs(), alpha=2**-8)
            if rule.kind == "topk":
                keep = _at_least_kth(pre, slack, min(rule.k, len(E)))
            else:
                least = rule.threshold if rule.threshold is not None else bound
                keep = (pre if slack is None else pre + slack) >= least
            row, latent = torch.nonzero(keep, as_tuple=True)
            value = pre[row, latent] if slack is None else _exact(part, E, b_enc, row, latent)
            fine = value > (0 if rule.threshold is None else rule.threshold[latent].clamp(min=0))
            row, latent, value = row[fine], latent[fine], value[fine]
            if rule.kind == "topk":
                row, latent, value = _k_of_each(row, latent, value, rule.k, len(part))
            counts.append(torch.bincount(row, minlength=len(part)))
            latents.append(latent.int())
            values.append(value)
        start = torch.cat([torch.zeros(1, dtype=torch.int64, device=x.device), *counts]).cumsum(0)
        if not latents:
            return Codes(start, torch.empty(0, dtype=torch.int32, device=x.device), x.new_empty(0), len(E))
        return Codes(start, torch.cat(latents), torch.cat(values), len(E))

    def _product(self, part: torch.Tensor, low: torch.Tensor, b_enc: torch.Tensor) -> torch.Tensor:
        """Pre-activations of a chunk, float32 in a reused buffer."""
        if self.dtype == torch.float32:
            return torch.addmm(b_enc, part, low.T)
        key = (len(part), len(low))
        if key not in self._buffers:
            self._buffers = {key: torch.empty(key, dtype=self.dtype, device=part.device)}
        return torch.mm(part.to(self.dtype), low.T, out=self._buffers[key]).float().add_(b_enc)

    def decode(self, codes: Codes, D: torch.Tensor, bounds: Sequence[int]) -> torch.Tensor:
        """Reconstructions without bias [n_groups, n, d_in]."""
        out: list[torch.Tensor] = []
        begin = 0
        for end in bounds:
            part = codes
            if len(bounds) > 1:
                part = _only(codes, (codes.latent >= begin) & (codes.latent < end))
            y = torch.nn.functional.embedding_bag(
                part.latent.long(), D, part.row_start[:-1], mode="sum", per_sample_weights=part.value.to(D.dtype)
            )
            out.append(y if not out else y.add_(out[-1]))
            begin = end
        return torch.stack(out)

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
        m = len(weights.E)
        gE, gD, gb = torch.zeros_like(weights.E), torch.zeros_like(weights.D), torch.zeros_like(weights.b_enc)
        for term in terms:
            latent, row = term.codes.latent.long(), term.codes.row_of()
            ends = torch.tensor(list(term.bounds), device=x.device)
            group = torch.bucketize(latent, ends, right=True)
            if term.latents is not None:
                latent = term.latents[latent]
            flat = term.g_y.flatten(0, 1)
            place = group * len(x) + row
            slope = torch.empty_like(term.codes.value)
            for a in range(0, len(slope), _GATHER):
                piece = slice(a, a + _GATHER)
                slope[piece] = (flat[place[piece]] * weights.D[latent[piece]]).sum(1)
            slope += term.l1
            order = torch.argsort(latent, stable=True)
            starts = torch.cat([torch.zeros(1, dtype=torch.int64, device=x.device), torch.bincount(latent, minlength=m).cumsum(0)])
            gD += _sparse(starts, place[order], term.codes.value[order], m, len(flat)) @ flat
            gE += _sparse(starts, row[order], slope[order], m, len(x)) @ x
            gb.index_add_(0, latent, slope)
        if extra is not None:
            gE.index_add_(0, extra.latents, extra.E)
            gD.index_add_(0, extra.latents, extra.D)
            gb.index_add_(0, extra.latents, extra.b_enc)
        carry = gb @ weights.E
        gD.sub_((gD * weights.D).sum(1, keepdim=True) * weights.D)
        adam_in_place(weights, gE, gD, gb, adam)
        if normalise:
            weights.D.div_(weights.D.norm(dim=1, keepdim=True).clamp_(min=1e-12))
        return carry


def refuse_nan(x: torch.Tensor) -> None:
    """Refuse tokens that are not numbers.

    Raises
    ------
    CytosaeError
        There are some.
    """
    if not bool(torch.isfinite(x).all()):
        raise CytosaeError("Some tokens are not numbers; extract them again, or use --precision float32.")


def _sparse(starts: torch.Tensor, columns: torch.Tensor, values: torch.Tensor, m: int, n: int) -> torch.Tensor:
    return torch.sparse_csr_tensor(starts, columns, values, (m, n), check_invariants=False)


def _at_least_kth(pre: torch.Tensor, slack: torch.Tensor | None, k: int) -> torch.Tensor:
    """What can be among the k largest of its row, given how far each value may be off."""
    low = pre if slack is None else pre - slack
    kth = low.topk(k, dim=1).values[:, -1:].clamp_(min=0)
    return (pre if slack is None else pre + slack) >= kth


def _exact(x: torch.Tensor, E: torch.Tensor, b_enc: torch.Tensor, row: torch.Tensor, latent: torch.Tensor) -> torch.Tensor:
    out = torch.empty(len(row), device=x.device)
    for a in range(0, len(row), _GATHER):
        r, s = row[a : a + _GATHER], latent[a : a + _GATHER]
        out[a : a + _GATHER] = (x[r] * E[s]).sum(1).add_(b_enc[s])
    return out


def _k_of_each(
    row: torch.Tensor, latent: torch.Tensor, value: torch.Tensor, k: int, n: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The k largest of each row; of equal ones the lower latent (candidates come in order of row, then latent)."""
    by_value = torch.sort(value, descending=True, stable=True).indices
    order = by_value[torch.sort(row[by_value], stable=True).indices]
    counts = torch.bincount(row, minlength=n)
    rank = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row[order]]
    kept = torch.sort(order[rank < k]).values
    return row[kept], latent[kept], value[kept]


def _only(codes: Codes, keep: torch.Tensor) -> Codes:
    kept = torch.cat([torch.zeros(1, dtype=torch.int64, device=keep.device), keep.long().cumsum(0)])
    return Codes(kept[codes.row_start], codes.latent[keep], codes.value[keep], codes.n_latents)
