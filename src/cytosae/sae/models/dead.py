"""What is done for latents that no longer fire: AuxK, ghost gradients, resampling."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cytosae.sae.ops import Path, Room, RowGradients, Rule, Term, Weights
from cytosae.sae.ops._products import LATENTS, TOKENS, Factors, blocks

#: Ghost products with fewer multiplications than this are made in float32 whatever type is asked for.
_SMALL = 1 << 32


@dataclass(frozen=True)
class AuxK:
    """AuxK (arXiv 2406.04093): the dead latents reconstruct what is left over.

    loss = `weight` * mean over tokens of ``||residual - z @ D[dead]||^2 / variance``, z the `k` largest positive
    pre-activations of the dead latents. The residual is a constant, and the decoder bias has no part in it: the gradient is
    that of the plain problem "residual from z".
    """

    k: int
    weight: float
    variance: float


def auxiliary_term(
    path: Path, centred: torch.Tensor, residual: torch.Tensor, weights: Weights, dead: torch.Tensor, aux: AuxK
) -> tuple[float, Term]:
    """Loss and term of AuxK; `residual` is ``x - y`` [n, d_in], `dead` int64 indices of the dead latents."""
    D = weights.D[dead]
    rule = Rule("topk", k=min(aux.k, len(dead)))
    codes = path.select(centred, weights.E[dead], weights.b_enc[dead], rule)
    left = path.decode(codes, D, (len(dead),))[0].sub_(residual)
    per_token = aux.weight / (len(centred) * aux.variance)
    loss = float(left.square().sum()) * per_token
    return loss, Term(codes, left.mul_(2 * per_token)[None], (len(dead),), latents=dead)


def ghost_gradients(
    centred: torch.Tensor,
    x: torch.Tensor,
    residual: torch.Tensor,
    weights: Weights,
    dead: torch.Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    room: Room | None = None,
) -> tuple[float, RowGradients]:
    """The published code's ghost term and its gradients, for the error weighted by the tokens' norms (kind ``norm``).

    The dead latents' ``exp(pre-activation)`` through their decoder rows gives g; per token it is scaled to half the length
    of the residual (the factor detached), compared with the residual (squared differences over the residual's length), and
    rescaled element by element to the size of the main error (detached).

    Parameters
    ----------
    centred, x, residual
        float32 [n, d_in]: tokens without the decoder bias, tokens, and ``x - y``.
    weights
        Those of the whole dictionary.
    dead
        int64 [m].
    dtype
        Of the factors of the products, where these are large. With bfloat16 the gradients of the encoder were off by .4
        to 7% of their length, those of the decoder by .5 to 30% (measured against float64): the rescaling has poles where a
        ghost meets its residual.
    room
        Memory that is used again in the next step.

    Returns
    -------
    The ghost loss, and the gradients of the dead rows.
    """
    n, d, m = len(x), x.shape[1], len(dead)
    low = Factors(dtype if n * d * m >= _SMALL else torch.float32)
    D, b = weights.D[dead].to(low.dtype), low.parts(weights.b_enc[dead])
    gE, gD, gb = (torch.zeros(m, *size, device=x.device) for size in ((d,), (d,), ()))
    one, total = torch.ones(1, device=x.device), 0.0
    tokens = low.of(centred, one, one, one)
    for some in blocks(n, TOKENS):
        r = residual[some]
        ghost = (room or Room()).borrow(len(r), m, low.dtype, x.device)
        for block in blocks(m, LATENTS):
            rows = low.of(weights.E[dead[block]], *(part[block] for part in b))
            _exp_product(tokens[some], rows.T, ghost[:, block])
        length = r.norm(dim=1, keepdim=True)
        g = torch.mm(ghost, D).float()
        factor = length / (1e-6 + 2 * g.norm(dim=1, keepdim=True))
        difference = g.mul_(factor).sub_(r)
        error = difference.square() / length
        rescale = (r.square() / x[some].norm(dim=1, keepdim=True)) / (error + 1e-6)
        total += float((error * rescale).sum())
        g_y = difference.mul_(rescale).mul_(factor * (2 / length / x.numel())).to(low.dtype)
        for block in blocks(m, LATENTS):
            h = ghost[:, block]
            gD[block] += torch.mm(h.T, g_y)
            both = torch.mm(torch.mm(g_y, D[block].T).mul_(h).T, tokens[some])  # with the bias's gradient beside it
            gE[block] += both[:, :d]
            gb[block] += both[:, d]
    return total / x.numel(), RowGradients(dead, gE, gD, gb)


def _exp_product(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    """``exp(a @ b)`` into `out`; the product of a lower type in two parts, since its rounding would be a factor of the result."""
    torch.mm(a, b, out=out)
    if out.dtype == torch.float32:
        out.exp_()
        return
    rest = torch.addmm(out, a, b, beta=-1)
    out.exp_().mul_(rest.exp_())


def resample(
    weights: Weights, dead: torch.Tensor, residual: torch.Tensor, generator: torch.Generator, *, scale: float = 0.2
) -> None:
    """Point dead latents at badly reconstructed tokens (Bricken et al. 2023, "Towards Monosemanticity"), in place.

    Tokens are drawn with probability proportional to the square of their loss; the decoder row becomes the unit residual,
    the encoder row the same direction at `scale` times the mean norm of the living ones; bias and moments become zero.

    Parameters
    ----------
    residual
        ``x - y`` of a batch, float32 [n, d_in].
    """
    loss = residual.square().sum(1)
    probability = loss.double().square().cpu()
    if not float(probability.sum()) > 0:
        return
    chosen = torch.multinomial(probability, len(dead), replacement=True, generator=generator)
    rows = torch.nn.functional.normalize(residual[chosen.to(residual.device)], dim=1)
    living = torch.ones(len(weights.E), dtype=torch.bool, device=weights.E.device)
    living[dead] = False
    norm = float(weights.E[living].norm(dim=1).mean()) if bool(living.any()) else 1.0
    weights.D[dead] = rows
    weights.E[dead] = rows * (scale * norm)
    weights.b_enc[dead] = 0
    for moment in (weights.E_avg, weights.E_square, weights.D_avg, weights.D_square, weights.b_avg, weights.b_square):
        moment[dead] = 0
