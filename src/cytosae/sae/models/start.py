"""Where training starts: decoder rows, and the decoder bias."""

from __future__ import annotations

import math

import torch


def start_rows(n_latents: int, points: torch.Tensor, blend: float, generator: torch.Generator) -> torch.Tensor:
    """Unit decoder rows, float32 [n_latents, d_in].

    Parameters
    ----------
    points
        Centred training tokens, float32 [m, d_in].
    blend
        0: random directions; 1: directions of training tokens (data-point initialisation); else a mixture of both.
    generator
        Of the random numbers, on the CPU.
    """
    normalize = torch.nn.functional.normalize
    rows = normalize(torch.randn(n_latents, points.shape[1], generator=generator), dim=1)
    if blend:
        chosen = points[torch.randint(len(points), (n_latents,), generator=generator)]
        rows = (1 - blend) * rows + blend * normalize(chosen.cpu(), dim=1)
    return normalize(rows, dim=1)


#: Of `cluster_rows`: tokens a cluster (as far as there are so many); passes over them, at least and at most, within so many
#: multiplications; tokens compared at once.
_PER_CLUSTER, _PASSES, _WORK, _CHUNK = 50, (3, 15), 2e12, 4096


def cluster_rows(n_latents: int, points: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Centres of a spherical k-means of the tokens' directions (Dhillon and Modha, 2001): unit rows, float32 [n_latents, d_in].

    Fifteen passes, fewer where the dictionary is wide. In the first half of them a centre that has lost its tokens moves to
    the token that is farthest from its own centre. With fewer directions than latents every token is a row, and random
    directions fill the rest.

    Parameters
    ----------
    points
        Centred training tokens, float32 [m, d_in].
    generator
        Of the random numbers, on the CPU.
    """
    normalize = torch.nn.functional.normalize
    points = points.cpu()
    points = points[points.norm(dim=1) > 0]
    points = points[torch.randperm(len(points), generator=generator)[: _PER_CLUSTER * n_latents]]
    x = normalize(points, dim=1)
    if len(x) <= n_latents:
        rest = torch.randn(n_latents - len(x), points.shape[1], generator=generator)
        return torch.cat([x, normalize(rest, dim=1)])
    centres = x[torch.randperm(len(x), generator=generator)[:n_latents]].clone()
    passes = int(min(max(_WORK / (len(x) * centres.numel()), _PASSES[0]), _PASSES[1]))
    for number in range(passes):
        best = [(x[i : i + _CHUNK] @ centres.T).max(1) for i in range(0, len(x), _CHUNK)]
        likeness, nearest = torch.cat([b.values for b in best]), torch.cat([b.indices for b in best])
        sums = torch.zeros_like(centres).index_add_(0, nearest, x)
        alone = torch.bincount(nearest, minlength=n_latents) < 2
        centres[~alone] = normalize(sums[~alone], dim=1)
        if number < passes // 2 and alone.any():
            centres[alone] = x[likeness.topk(int(alone.sum()), largest=False).indices]
    return normalize(centres, dim=1)


def published_start(n_latents: int, d_in: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Encoder and decoder rows [n_latents, d_in] as the published code draws them: untied, Kaiming uniform, unit decoder.

    Kaiming uniform of torch (fan-in is the second dimension, gain sqrt 2) on ``W_enc [d_in, n_latents]`` and
    ``W_dec [n_latents, d_in]``.
    """
    encoder, decoder = math.sqrt(6 / n_latents), math.sqrt(6 / d_in)
    E = (2 * torch.rand(n_latents, d_in, generator=generator) - 1) * encoder
    D = (2 * torch.rand(n_latents, d_in, generator=generator) - 1) * decoder
    return E, torch.nn.functional.normalize(D, dim=1)


def geometric_median(tokens: torch.Tensor, *, max_iterations: int = 100) -> torch.Tensor:
    """Geometric median over images, averaged over the tokens: the published start of the decoder bias.

    Each image is one point of ``n_tokens * d_in`` numbers. Weiszfeld's iteration with distances held above 1e-6 (as the
    package geom-median does), at most `max_iterations`, or until the mean distance no longer falls.

    Parameters
    ----------
    tokens
        [n_images, n_tokens, d_in].

    Returns
    -------
    float32 [d_in]
    """
    points = tokens.double().flatten(1)
    median = points.mean(0)
    before = float((points - median).norm(dim=1).mean())
    for _ in range(max_iterations):
        weight = 1 / (points - median).norm(dim=1).clamp(min=1e-6)
        median = (weight @ points) / weight.sum()
        now = float((points - median).norm(dim=1).mean())
        if abs(before - now) <= 1e-12 * now:
            break
        before = now
    return median.view(tokens.shape[1:]).mean(0).float()
