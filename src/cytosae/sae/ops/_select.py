"""Which pre-activations become codes."""

from __future__ import annotations

import torch


def kth_largest(values: torch.Tensor, k: int) -> float:
    """The `k`-th largest of positive values in a dense tensor (0 when fewer are positive).

    A sample of rows gives a bound below the answer, so that only the few values above it have to be ordered: several
    times faster than `torch.topk` on the whole, and exact.
    """
    if k <= 0:
        return float("inf")
    stride = max(1, len(values) // 64)
    sample = values[::stride].flatten()
    wanted = min(sample.numel(), int(1.3 * k * sample.numel() / values.numel()) + 16)
    bound = max(float(torch.topk(sample, wanted).values[-1]), 0.0)
    above = values[values > bound]
    if above.numel() < k:  # the sample was unlucky
        above = values[values > 0]
        if above.numel() < k:
            return 0.0
    return float(torch.topk(above, k, sorted=False).values.min())


def batch_topk(pre: torch.Tensor, k: int) -> torch.Tensor:
    """Keep the ``k * n_tokens`` largest positive pre-activations of a batch, in place (BatchTopK, arXiv 2412.06410).

    Parameters
    ----------
    pre
        float32 [n_tokens, n_latents]; overwritten.
    k
        Active latents a token, on average.

    Returns
    -------
    codes [n_tokens, n_latents]; values that tie with the last one are all kept.
    """
    least = kth_largest(pre, k * len(pre))
    return torch.where(pre >= least, pre, 0).clamp_(min=0) if least > 0 else pre.clamp_(min=0)


def row_topk(pre: torch.Tensor, k: int) -> torch.Tensor:
    """Keep the `k` largest positive pre-activations of each token: codes [n_tokens, n]."""
    values, index = torch.topk(pre, min(k, pre.shape[1]), dim=1, sorted=False)
    return torch.zeros_like(pre).scatter_(1, index, values.clamp_(min=0))
