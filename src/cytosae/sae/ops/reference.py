"""The dense reference of the three operations, as the formulas stand: what every faster path must equal."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cytosae.sae.ops._codes import check_finite
from cytosae.sae.ops._interface import AdamStep, Codes, RowGradients, Rule, Term, Weights


class ReferencePath:
    """Dense tensors, float32, any device; see `cytosae.sae.ops.Path`."""

    name = "reference"

    def select(self, x: torch.Tensor, E: torch.Tensor, b_enc: torch.Tensor, rule: Rule) -> Codes:
        """Codes of centred tokens [n, d_in]."""
        check_finite(x, "tokens")
        pre = x @ E.T + b_enc
        check_finite(pre, "weights")
        keep = pre > 0
        if rule.threshold is not None:
            keep &= pre > rule.threshold
        if rule.kind in ("topk", "batchtopk"):
            values = pre if rule.kind == "topk" else pre.reshape(1, -1)
            k = min(rule.k if rule.kind == "topk" else rule.k * len(pre), values.shape[1])
            first = values.sort(dim=1, descending=True, stable=True).indices[:, :k]
            keep &= torch.zeros_like(values, dtype=torch.bool).scatter_(1, first, True).view_as(pre)
        counts = torch.cat([torch.zeros(1, dtype=torch.int64, device=x.device), keep.sum(1).cumsum(0)])
        return Codes(counts, torch.nonzero(keep)[:, 1].int(), pre[keep], len(E))

    def decode(self, codes: Codes, D: torch.Tensor, bounds: Sequence[int]) -> torch.Tensor:
        """Reconstructions without bias [n_groups, n, d_in]."""
        h = codes.dense()
        return torch.stack([h[:, :end] @ D[:end] for end in bounds])

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
        gE, gD, gb = torch.zeros_like(weights.E), torch.zeros_like(weights.D), torch.zeros_like(weights.b_enc)
        for term in terms:
            rows = slice(None) if term.latents is None else term.latents
            h, D = term.codes.dense(), weights.D[rows]
            group = torch.bucketize(
                torch.arange(len(D), device=x.device), torch.tensor(term.bounds, device=x.device), right=True
            )
            g_codes = torch.stack([g @ D.T for g in term.g_y])[group, :, torch.arange(len(D), device=x.device)].T
            g_codes = (g_codes + term.l1) * (h > 0)
            masked = [h * (group == j) for j in range(len(term.bounds))]
            gD[rows] += sum((m.T @ g for m, g in zip(masked, term.g_y, strict=True)), torch.zeros_like(D))
            gE[rows] += g_codes.T @ x
            gb[rows] += g_codes.sum(0)
        return move_weights(weights, gE, gD, gb, adam, normalise, extra)


def move_weights(
    w: Weights,
    gE: torch.Tensor,
    gD: torch.Tensor,
    gb: torch.Tensor,
    adam: AdamStep,
    normalise: bool,
    extra: RowGradients | None = None,
) -> torch.Tensor:
    """From whole gradients (overwritten) to moved weights: the end of `Path.update`, and what it returns.

    Adam as in arXiv 1412.6980, with bias-corrected moments.
    """
    if extra is not None:
        gE.index_add_(0, extra.latents, extra.E)
        gD.index_add_(0, extra.latents, extra.D)
        gb.index_add_(0, extra.latents, extra.b_enc)
    carry = gb @ w.E
    gD -= (gD * w.D).sum(1, keepdim=True) * w.D
    for p, g, avg, square in (
        (w.E, gE, w.E_avg, w.E_square), (w.D, gD, w.D_avg, w.D_square), (w.b_enc, gb, w.b_avg, w.b_square),
    ):  # fmt: skip
        avg.lerp_(g, 1 - adam.beta1)
        square.mul_(adam.beta2).addcmul_(g, g, value=1 - adam.beta2)
        size = (square / (1 - adam.beta2**adam.step)).sqrt_().add_(adam.eps)
        p.addcdiv_(avg, size, value=-adam.lr / (1 - adam.beta1**adam.step))
    if normalise:
        w.D.div_(w.D.norm(dim=1, keepdim=True).clamp(min=1e-12))
    return carry
