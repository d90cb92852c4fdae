"""The dense reference of every operation, in float32 as the formulas stand: what every faster path must equal."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cytosae.sae.ops._codes import check_finite, codes_from_mask, global_latents, group_of, refuse
from cytosae.sae.ops._interface import AdamStep, Codes, Rule, Term, Weights
from cytosae.sae.ops._portable import Gradients, Parameters


class ReferencePath:
    """Dense float32 products; any device; for tests and very small problems."""

    name = "reference"

    def select(self, x: torch.Tensor, E: torch.Tensor, b_enc: torch.Tensor, rule: Rule) -> Codes:
        """See `Path.select`."""
        check_finite(x, "tokens")
        pre = x @ E.T + b_enc
        if bool(pre.isnan().any()):
            raise refuse("weights")
        n, n_latents = pre.shape
        keep = torch.zeros_like(pre, dtype=torch.bool)
        if rule.kind == "topk":
            order = pre.sort(dim=1, descending=True, stable=True).indices
            keep.scatter_(1, order[:, : rule.k], True)
        elif rule.kind == "batchtopk":
            order = pre.T.flatten().sort(descending=True, stable=True).indices[: rule.k * n]
            keep[order % max(n, 1), order // max(n, 1)] = True
        else:
            keep = pre > (rule.threshold if rule.threshold is not None else 0)
        return codes_from_mask(pre, keep & (pre > 0))

    def decode(self, codes: Codes, D: torch.Tensor, bounds: Sequence[int]) -> torch.Tensor:
        """See `Path.decode`."""
        h = codes.dense()
        return torch.stack([h[:, :end] @ D[:end] for end in bounds])

    def update(
        self, weights: Weights, x: torch.Tensor, terms: Sequence[Term], adam: AdamStep, *, normalise: bool
    ) -> torch.Tensor:
        """See `Path.update`."""
        w = weights
        gE, gD, gb = torch.zeros_like(w.E), torch.zeros_like(w.D), torch.zeros_like(w.b_enc)
        for term in terms:
            row, latent, group = term.codes.row_of(), global_latents(term), group_of(term)
            for j, g in enumerate(term.g_y):
                of = group == j
                h = torch.zeros(len(x), len(w.E), device=x.device)
                h[row[of], latent[of]] = term.codes.value[of]
                gc = (g @ w.D.T + term.l1) * (h > 0)
                gD += h.T @ g
                gE += gc.T @ x
                gb += gc.sum(0)
        gD -= (gD * w.D).sum(1, keepdim=True) * w.D
        back = gb @ w.E
        moved = ((w.E, w.E_avg, w.E_square, gE), (w.D, w.D_avg, w.D_square, gD), (w.b_enc, w.b_avg, w.b_square, gb))
        for value, avg, square, g in moved:
            avg.mul_(adam.beta1).add_(g, alpha=1 - adam.beta1)
            square.mul_(adam.beta2).addcmul_(g, g, value=1 - adam.beta2)
            scale = (square / (1 - adam.beta2**adam.step)).sqrt_().add_(adam.eps)
            value.sub_(adam.lr / (1 - adam.beta1**adam.step) * avg / scale)
        if normalise:
            w.D.div_(w.D.norm(dim=1, keepdim=True).clamp_(min=1e-12))
        return back


def reference_step(
    x: torch.Tensor,
    p: Parameters,
    *,
    variance: float,
    k: int | None,
    l1: float,
    dead: torch.Tensor | None,
    k_aux: int,
    aux_weight: float,
) -> tuple[float, Gradients]:
    """Loss and gradients of `main_step` and `auxiliary_step` together, by automatic differentiation."""
    leaves = [t.detach().clone().requires_grad_(True) for t in (p.E, p.D, p.b_enc, p.b_dec)]
    E, D, b_enc, b_dec = leaves
    pre = (x - b_dec) @ E.T + b_enc
    h = pre.relu()
    if k is not None:
        least = h.detach().flatten().sort(descending=True).values[min(k * len(x), h.numel()) - 1]
        h = h * (h >= least)
    y = h @ D + b_dec
    loss = (y - x).square().sum(1).mean() / variance + l1 * h.sum(1).mean()
    if dead is not None and len(dead):
        top = pre[:, dead].topk(min(k_aux, len(dead)), dim=1)
        z = torch.zeros_like(pre[:, dead]).scatter(1, top.indices, top.values.relu())
        left = (x - y).detach() - z @ D[dead]
        loss = loss + aux_weight * left.square().sum(1).mean() / variance
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach()), Gradients(*(t.grad if t.grad is not None else torch.zeros_like(t) for t in leaves))
