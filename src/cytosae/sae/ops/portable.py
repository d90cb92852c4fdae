"""The portable path: plain PyTorch on any device. A bfloat16 product proposes, float32 decides, and all else is sparse.

The product of tokens and encoder is screened in bfloat16: every latent that could belong to the codes, given how far
rounding can shift a pre-activation, becomes a candidate, and only candidates are computed in float32. So the active set is
that of the float32 reference, while the large product runs at the rate of bfloat16 into one reused buffer.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from cytosae.sae.ops._codes import (
    check_finite,
    codes_from_pairs,
    join_codes,
    join_terms,
    largest_of_batch,
    refuse,
    row_starts,
)
from cytosae.sae.ops._interface import AdamStep, Codes, RowGradients, Rule, Term, Weights
from cytosae.sae.ops.reference import ReferencePath

#: Bytes of the screening buffer, at most; half of it where codes may be many and take the rest.
_BUFFER = 2**27
#: Latents that share one maximum; strided, so that the maximum vectorises.
_GROUP = 16
#: Standard deviations of rounding error that a candidate may be off (two factors rounded to 8 bits: 2^-8.8 a product).
_SIGMAS, _SIGMA = 6.0, 2.0**-8.8
_ROUNDED = 2.0**-8
#: Rows of weights moved at a time: gradients of a block stay in the cache.
_ROWS = 1024
#: A problem below this many multiplications is computed densely.
_SMALL = 2**24


class PortablePath:
    """Screened selection and sparse updates in plain PyTorch.

    Parameters
    ----------
    screen
        Type of the screening product; float32 where bfloat16 is not multiplied in hardware.
    """

    def __init__(self, screen: torch.dtype = torch.float32) -> None:
        """See the class."""
        self.screen = screen
        self.name = "portable-" + str(screen).removeprefix("torch.")
        self._dense = ReferencePath()
        self._buffers: dict[str, torch.Tensor] = {}
        self._bound: dict[tuple[int, int], float] = {}

    def select(self, x: torch.Tensor, E: torch.Tensor, b_enc: torch.Tensor, rule: Rule) -> Codes:
        """See `Path.select`."""
        check_finite(x, "tokens")
        (n, d), n_latents = x.shape, len(E)
        if (
            n * n_latents * d < _SMALL
            or n_latents < 4 * _GROUP
            or (rule.kind == "topk" and 4 * rule.k * _GROUP > n_latents)
        ):
            return self._in_chunks(x, E, b_enc, rule)
        lowest = rule.threshold.clamp(min=0) if rule.threshold is not None else None
        packed, norm4 = self._pack(E, b_enc if lowest is None else b_enc - lowest)
        room = _BUFFER if rule.kind == "topk" else _BUFFER // 2
        chunk = max(min(n, room // (packed.element_size() * len(packed))), 1)
        bounds: list[float] = [0.0]
        if rule.kind == "batchtopk":
            key = (rule.k, n_latents)
            guess = self._guess(x, E, b_enc, rule.k)
            bounds = sorted({0.0, guess * 0.85, min(self._bound.get(key, guess), guess * 1.3) * 0.97}, reverse=True)
        for bound in bounds:
            parts = [self._chunk(x[a : a + chunk], E, b_enc, rule, packed, norm4, bound) for a in range(0, n, chunk)]
            codes = join_codes(parts)
            if rule.kind != "batchtopk":
                return codes
            wanted = rule.k * n
            if bound == 0.0 or int((codes.value > bound).sum()) >= wanted:
                break
        row = codes.row_of()
        keep = largest_of_batch(codes.value, rule.k * n)
        kept = codes_from_pairs(row[keep], codes.latent[keep], codes.value[keep], n, n_latents)
        if len(kept.value):
            self._bound[key] = float(kept.value.min())
        return kept

    def _in_chunks(self, x: torch.Tensor, E: torch.Tensor, b_enc: torch.Tensor, rule: Rule) -> Codes:
        """Dense; in chunks of tokens where the rule looks at one token at a time."""
        chunk = max(1, _BUFFER // (8 * len(E))) if rule.kind != "batchtopk" else max(len(x), 1)
        return join_codes(
            [self._dense.select(x[a : a + chunk], E, b_enc, rule) for a in range(0, max(len(x), 1), chunk)]
        )

    def _pack(self, E: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Encoder with two columns for the bias, rounded, rows padded to whole groups; largest 4-norm of a row."""
        n_latents, d = E.shape
        width, rows = -(-(d + 2) // 32) * 32, -(-n_latents // _GROUP) * _GROUP
        packed = self._buffer("packed", (rows, width), E.device, self.screen)
        high = bias.to(self.screen)
        packed[:, d:] = 0
        packed[:n_latents, d], packed[:n_latents, d + 1] = high, (bias - high.float()).to(self.screen)
        packed[n_latents:] = 0
        packed[n_latents:, d] = -1e30
        largest = torch.zeros((), device=E.device)
        for a in range(0, n_latents, _ROWS):
            block = E[a : a + _ROWS]
            packed[a : a + len(block), :d] = block
            largest = torch.maximum(largest, block.square().square_().sum(1).amax())
        norm4 = float(largest) ** 0.25
        if not (math.isfinite(norm4) and bool(torch.isfinite(bias.sum()))):
            raise refuse("weights")
        return packed, norm4

    def _buffer(self, name: str, shape: tuple[int, int], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        """A buffer that is kept from call to call: fresh memory would cost as much as the product."""
        size = shape[0] * shape[1]
        kept = self._buffers.get(name)
        if kept is None or kept.numel() < size or kept.device != device or kept.dtype != dtype:
            kept = self._buffers[name] = torch.empty(size, device=device, dtype=dtype)
        return kept[:size].view(shape)

    def _chunk(
        self,
        x: torch.Tensor,
        E: torch.Tensor,
        b_enc: torch.Tensor,
        rule: Rule,
        packed: torch.Tensor,
        norm4: float,
        bound: float,
    ) -> Codes:
        (n, d), n_latents = x.shape, len(E)
        rows, width = packed.shape
        rounded = self._buffer("x", (n, width), x.device, self.screen)
        rounded[:, :d], rounded[:, d : d + 2], rounded[:, d + 2 :] = x, 1, 0
        screen = self._buffer("screen", (n, rows), x.device, self.screen)
        torch.mm(rounded, packed.T, out=screen)
        margin = x.square().square_().sum(1).pow_(0.25) * (norm4 * _SIGMAS * _SIGMA)
        if self.screen == torch.float32:
            margin.mul_(2.0**-14)
        groups = screen.view(n, _GROUP, rows // _GROUP)
        largest = groups.amax(1)
        limit = bound - margin - bound * _ROUNDED
        if rule.kind == "topk":
            kth = torch.topk(largest.float(), rule.k, dim=1, sorted=False).values.amin(1)
            limit = torch.maximum(kth - 2 * margin - 2 * _ROUNDED * kth.abs(), -margin)
        hits = largest >= limit.to(self.screen)[:, None].float() - limit.abs()[:, None] * _ROUNDED
        if rule.kind != "topk" and int(hits.sum()) > hits.numel() // 4:  # so dense that the float32 product is cheaper
            inner = Rule("threshold", threshold=torch.full_like(b_enc, bound)) if rule.kind == "batchtopk" else rule
            return self._in_chunks(x, E, b_enc, inner)
        token, group = hits.nonzero(as_tuple=True)
        near = groups[token, :, group].float() >= limit[token, None]
        pair, member = near.nonzero(as_tuple=True)
        key = token[pair] * rows + member * (rows // _GROUP) + group[pair]
        key = key[key % rows < n_latents].sort().values
        token, latent = key // rows, key % rows
        value = products(x, E, row_starts(token, n), latent) + b_enc[latent]
        if rule.kind == "topk":
            keep = _largest_of_rows(token, value, n, rule.k)
        else:
            keep = value > (rule.threshold[latent] if rule.threshold is not None else 0)
        keep &= value > 0
        return codes_from_pairs(token[keep], latent[keep], value[keep], n, n_latents)

    def _guess(self, x: torch.Tensor, E: torch.Tensor, b_enc: torch.Tensor, k: int) -> float:
        """About where the batch's least code lies, from a few tokens."""
        sample = x[:: max(1, len(x) // 32)]
        pre = (sample @ E.T + b_enc).flatten()
        return max(float(torch.topk(pre, min(max(k * len(sample), 1), len(pre)), sorted=False).values.min()), 0.0)

    def decode(self, codes: Codes, D: torch.Tensor, bounds: Sequence[int]) -> torch.Tensor:
        """See `Path.decode`."""
        if len(bounds) == 1:
            return _weighted_rows(codes.latent, D, codes.row_start, codes.value)[None]
        group = torch.searchsorted(torch.as_tensor(list(bounds), device=D.device), codes.latent.long(), right=True)
        row = codes.row_of()
        out = torch.stack([
            _weighted_rows(codes.latent[of], D, row_starts(row[of], codes.n_tokens), codes.value[of])
            for of in (group == j for j in range(len(bounds)))
        ])  # fmt: skip
        return out.cumsum(0)

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
        """See `Path.update`."""
        w, device = weights, x.device
        pairs, g_table = join_terms(terms)
        counts = torch.bincount(pairs.latent, minlength=len(w.E))
        order = pairs.latent.to(torch.int32).argsort(stable=True)
        x_row, g_row, value, l1 = pairs.x_row[order], pairs.g_row[order], pairs.value[order], pairs.l1[order]
        ends = [0, *counts.cumsum(0)[_ROWS - 1 :: _ROWS].tolist()]
        ends += [len(value)] * (-(-len(w.E) // _ROWS) + 1 - len(ends))
        starts = torch.zeros(len(w.E) + 1, dtype=torch.int64, device=device)
        torch.cumsum(counts, 0, out=starts[1:])
        back = torch.zeros(x.shape[1], device=device)
        extra_order, extra_ends = _by_block(extra, len(w.E))
        step = torch.tensor(float(adam.step), device=device)
        for i, a in enumerate(range(0, len(w.E), _ROWS)):
            b = min(a + _ROWS, len(w.E))
            of = slice(ends[i], ends[i + 1])
            start = starts[a : b + 1] - ends[i]
            D, E = w.D[a:b], w.E[a:b]
            gc = products(D, g_table, start, g_row[of]) + l1[of]
            gD = _weighted_rows(g_row[of], g_table, start, value[of])
            gE = _weighted_rows(x_row[of], x, start, gc)
            sums = torch.zeros(of.stop - of.start + 1, dtype=torch.float64, device=device)
            torch.cumsum(gc.double(), 0, out=sums[1:])
            gb = sums[start].diff().float()
            if extra is not None:
                rows = extra_order[extra_ends[i] : extra_ends[i + 1]]
                place = extra.latents[rows] - a
                gE.index_add_(0, place, extra.E[rows])
                gD.index_add_(0, place, extra.D[rows])
                gb.index_add_(0, place, extra.b_enc[rows])
            gD.sub_((gD * D).sum(1, keepdim=True) * D)
            back.add_(gb @ E)
            torch._fused_adam_(
                [E, D, w.b_enc[a:b]], [gE, gD, gb],
                [w.E_avg[a:b], w.D_avg[a:b], w.b_avg[a:b]], [w.E_square[a:b], w.D_square[a:b], w.b_square[a:b]],
                [], [step, step, step], lr=adam.lr, beta1=adam.beta1, beta2=adam.beta2, weight_decay=0.0, eps=adam.eps,
                amsgrad=False, maximize=False,
            )  # fmt: skip
            if normalise:
                D.div_(D.norm(dim=1, keepdim=True).clamp_(min=1e-12))
        return back


def products(a: torch.Tensor, b: torch.Tensor, row_start: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
    """float32 [n_pairs]: ``<a[row], b[column]>`` at the places of a CSR pattern."""
    if not len(column):
        return a.new_zeros(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*beta state.*")
        zero = torch.zeros(len(column), device=a.device)
        pattern = torch.sparse_csr_tensor(row_start, column, zero, (len(a), len(b)), check_invariants=False)
        found: torch.Tensor = torch.sparse.sampled_addmm(pattern, a, b.T, beta=0.0).values()
        return found


def _weighted_rows(row: torch.Tensor, table: torch.Tensor, start: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """float32 [len(start) - 1, d]: sums of weighted rows of `table`."""
    return F.embedding_bag(
        row, table, start.to(row.dtype), mode="sum", per_sample_weights=weight, include_last_offset=True
    )


def _largest_of_rows(token: torch.Tensor, value: torch.Tensor, n: int, k: int) -> torch.Tensor:
    """Mask of the `k` largest of each token; `token` ascends, and of equal values the first wins."""
    counts = torch.bincount(token, minlength=n)
    start = counts.cumsum(0) - counts
    place = torch.arange(len(token), device=token.device) - start[token]
    width = int(counts.max()) if len(counts) else 0
    padded = torch.full((n, width), -math.inf, device=value.device)
    padded[token, place] = value
    order = padded.sort(dim=1, descending=True, stable=True).indices[:, :k]
    kept = torch.zeros_like(padded, dtype=torch.bool).scatter_(1, order, True)
    return kept[token, place]


def _by_block(extra: RowGradients | None, n_latents: int) -> tuple[torch.Tensor, list[int]]:
    """Order of `extra` by block of `_ROWS` latents, and where each block starts."""
    if extra is None:
        return torch.empty(0, dtype=torch.int64), []
    block = extra.latents // _ROWS
    counts = torch.bincount(block, minlength=-(-n_latents // _ROWS))
    return block.argsort(stable=True), [0, *counts.cumsum(0).tolist()]


def refuse_nan(x: torch.Tensor) -> None:
    """Refuse tokens that are not numbers.

    Raises
    ------
    CytosaeError
        There are some.
    """
    check_finite(x, "tokens")
