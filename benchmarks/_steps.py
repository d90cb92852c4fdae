"""What every training step is timed on, and how it is timed; needs torch alone, so that other libraries' environments can import it."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

#: Latents a token of TopK; active latents a token of ReLU in the trained regime; learning rate.
K, L0, LR = 64, 130, 4e-4
#: ``topk``; ``relu`` in the trained regime; ``relu-start`` with half the latents on; ``ghost``: ReLU with half of them dead.
KINDS = ("topk", "relu", "relu-start", "ghost")
Step = Callable[[torch.Tensor], float]


def problem(d: int, n_latents: int, n: int, kind: str) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Three batches of tokens [n, d], a dictionary [n_latents, d] of unit rows, and the encoder's bias.

    The tokens are random with a spectrum that falls like that of real ones; half of a latent's direction comes from such a
    token.
    """
    g = torch.Generator().manual_seed(0)
    basis = torch.randn(d, d, generator=g) * (torch.arange(1, d + 1).float() ** -0.6)[:, None]

    def tokens(count: int) -> torch.Tensor:
        x = torch.randn(count, d, generator=g) @ basis
        return x.mul_(d**0.5 / float(x.norm(dim=1).mean()))

    D = F.normalize(
        F.normalize(tokens(n_latents), dim=1) + F.normalize(torch.randn(n_latents, d, generator=g), dim=1), dim=1
    )
    batches = [tokens(n) for _ in range(3)]
    bias = torch.zeros(n_latents)
    if kind in ("relu", "ghost"):
        alive = D[: n_latents // 2] if kind == "ghost" else D
        pre = (batches[0][:64] @ alive.T).flatten()
        bias -= float(torch.topk(pre, L0 * 64, sorted=False).values.min())
    if kind == "ghost":
        bias[n_latents // 2 :] = -2.0 * d**0.5  # never on, and its exponential is no denormal number
    return batches, D, bias


def timed(step: Step, batches: list[torch.Tensor]) -> dict[str, float]:
    """Tokens a second after a first step that is not counted, peak memory of the process, active latents a token."""
    seconds, l0 = [], 0.0
    for x in batches:
        start = time.perf_counter()
        l0 = step(x)
        seconds.append(time.perf_counter() - start)
        if len(seconds) == 2 and seconds[1] > 8:
            break
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"tokens_per_second": len(batches[0]) / statistics.mean(seconds[1:]), "peak_gb": peak, "l0": l0}
