"""One training step with gradients written out: plain PyTorch, any device; the products optionally in bfloat16.

In training both matrices are latent-major, ``E`` (encoder) and ``D`` (decoder) [n_latents, d_in]: the rows of one latent
lie together, and bfloat16 products run at twice the rate. Masters, sums and updates stay float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from cytosae.sae.ops._select import batch_topk, row_topk


@dataclass
class Parameters:
    """Weights in training: `E`, `D` [n_latents, d_in], `b_enc` [n_latents], `b_dec` [d_in], float32."""

    E: torch.Tensor
    D: torch.Tensor
    b_enc: torch.Tensor
    b_dec: torch.Tensor


class Gradients(NamedTuple):
    """Gradients of the loss, in the shapes of `Parameters`."""

    E: torch.Tensor
    D: torch.Tensor
    b_enc: torch.Tensor
    b_dec: torch.Tensor


class StepResult(NamedTuple):
    """`codes` [n, n_latents], residual `x - y` [n, d_in], pre-activations of the dead latents [n, n_dead] or None."""

    codes: torch.Tensor
    residual: torch.Tensor
    dead_pre: torch.Tensor | None
    loss: float
    gradients: Gradients


def product(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``a @ b`` with both factors rounded to `dtype` and the result in float32."""
    if dtype == torch.float32:
        return a @ b
    return (a.to(dtype) @ b.to(dtype)).float()


def main_step(
    x: torch.Tensor,
    p: Parameters,
    *,
    variance: float,
    k: int | None = None,
    l1: float = 0.0,
    dead: torch.Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> StepResult:
    """Loss and gradients of one batch.

    loss = mean over tokens of ``||y - x||^2 / variance`` + `l1` * mean over tokens of ``sum codes``.

    Parameters
    ----------
    x
        float32 [n, d_in].
    variance
        Mean squared distance of a token from the mean token: makes the first term the FVU.
    k
        BatchTopK's active latents a token; ReLU where None.
    l1
        Weight of the sum of codes (decoder rows have unit norm).
    dead
        int64 indices of dead latents whose pre-activations `auxiliary_step` needs.
    dtype
        Of the factors of the large products.
    """
    n = len(x)
    centred = x - p.b_dec
    pre = product(centred, p.E.T, dtype).add_(p.b_enc)
    dead_pre = pre[:, dead].clone() if dead is not None and len(dead) else None
    codes = pre.clamp_(min=0) if k is None else batch_topk(pre, k)
    residual = x - product(codes, p.D, dtype).add_(p.b_dec)
    per_token = 1.0 / (n * variance)
    loss = float(residual.square().sum()) * per_token + l1 * float(codes.sum()) / n

    g_y = residual * (-2 * per_token)
    g_pre = product(g_y, p.D.T, dtype)
    if l1:
        g_pre.add_(l1 / n)
    g_pre.mul_(codes > 0)
    g_enc = g_pre.sum(0)
    gradients = Gradients(
        E=product(g_pre.T, centred, dtype),
        D=product(codes.T, g_y, dtype),
        b_enc=g_enc,
        b_dec=g_y.sum(0) - g_enc @ p.E,
    )
    return StepResult(codes, residual, dead_pre, loss, gradients)


def auxiliary_step(
    x: torch.Tensor,
    residual: torch.Tensor,
    dead_pre: torch.Tensor,
    dead: torch.Tensor,
    p: Parameters,
    gradients: Gradients,
    *,
    variance: float,
    k: int,
    weight: float,
) -> float:
    """AuxK (arXiv 2406.04093): the dead latents reconstruct what is left over; adds to `gradients`, gives the loss.

    loss = `weight` * mean over tokens of ``||residual - z @ D[dead]||^2 / variance``, z the `k` largest pre-activations of
    the dead latents; the residual is a constant, and the decoder bias has no part in it.
    """
    z = row_topk(dead_pre, k)
    D = p.D[dead]
    left = residual - z @ D
    per_token = weight / (len(x) * variance)
    g_y = left * (-2 * per_token)
    g_pre = (g_y @ D.T) * (z > 0)
    gradients.D[dead] += z.T @ g_y
    gradients.E[dead] += g_pre.T @ (x - p.b_dec)
    g_enc = g_pre.sum(0)
    gradients.b_enc[dead] += g_enc
    gradients.b_dec.sub_(g_enc @ p.E[dead])
    return float(left.square().sum()) * per_token
