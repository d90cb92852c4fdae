"""The dense reference of a training step, by automatic differentiation: what every faster path must equal."""

from __future__ import annotations

import torch

from cytosae.sae.ops._portable import Gradients, Parameters


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
    """Loss and gradients of `main_step` and `auxiliary_step` together, written as the formulas stand."""
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
