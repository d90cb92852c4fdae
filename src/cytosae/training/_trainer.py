"""One dictionary in training: its weights, one step, its state for a checkpoint, and the finished dictionary."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from cytosae._errors import CytosaeError
from cytosae._progress import say
from cytosae.sae import SparseAutoencoder
from cytosae.sae.models import (
    AuxK,
    BatchTopK,
    Error,
    JumpRelu,
    Matryoshka,
    Model,
    ReluL1,
    TopK,
    auxiliary_term,
    cluster_rows,
    geometric_median,
    ghost_gradients,
    group_bounds,
    published_start,
    resample,
    start_rows,
)  # fmt: skip
from cytosae.sae.ops import AdamStep, Path, Room, Term, Weights
from cytosae.sae.ops.dense import SwitchingPath
from cytosae.training._calibrate import calibrate_threshold
from cytosae.training._recipes import Recipe

#: A loss so many times the lowest smoothed loss so far is a spike.
_SPIKE = 20.0
#: Encoder rows of ``start=clusters`` are so much of the decoder's: neighbouring centres are alike, and their codes add up.
CLUSTERS_ENCODE = 1 / 16
_WEIGHTS = ("E", "D", "b_enc", "E_avg", "E_square", "D_avg", "D_square", "b_avg", "b_square")


@dataclass(frozen=True)
class TokenFacts:
    """What is measured on a sample of the training tokens before the first step.

    Attributes
    ----------
    sample
        float32 [m, d_in].
    mean, norm, variance
        Mean token [d_in]; mean distance from it; mean squared distance from it.
    first
        Tokens of the cells of one batch, [cells, n_tokens, d_in], for the geometric median; None where not needed.
    n_blocks
        Blocks of the backbone side by side in a token.
    """

    sample: torch.Tensor
    mean: torch.Tensor
    norm: float
    variance: float
    first: torch.Tensor | None = None
    n_blocks: int = 1

    @classmethod
    def of(cls, sample: torch.Tensor, first: torch.Tensor | None = None, n_blocks: int = 1) -> TokenFacts:
        """Measure a sample.

        Raises
        ------
        CytosaeError
            All tokens are equal.
        """
        sample = sample.float()
        mean = sample.mean(0)
        distance = (sample - mean).norm(dim=1)
        norm = float(distance.mean())
        if not norm > 0:
            raise CytosaeError("All tokens are equal, so there is nothing to learn; check the images.")
        return cls(sample, mean, norm, float(distance.square().mean()), first, n_blocks)


class Trainer:
    """The state of one dictionary and what changes it.

    Parameters
    ----------
    recipe, seed
        Its configuration, and the seed of its start (not of the order of tokens).
    facts
        Of the training tokens.
    path
        How steps are computed.
    n_steps
        Length of the training, for the schedules.
    """

    def __init__(
        self, recipe: Recipe, seed: int, facts: TokenFacts, path: Path, n_steps: int, device: str = "cpu"
    ) -> None:
        d = facts.sample.shape[1]
        n = recipe.expansion * d // facts.n_blocks
        self.recipe, self.seed, self.path, self.n_steps, self.device = recipe, seed, path, n_steps, device
        self.room = Room()
        standardised = recipe.inputs == "standardise"
        self.scale = math.sqrt(d) / facts.norm if standardised else 1.0
        self.shift = (facts.mean if standardised else torch.zeros(d)).to(device)
        self.error = Error(recipe.error, facts.variance * self.scale**2)
        generator = torch.Generator().manual_seed(seed)
        if recipe.start == "published":
            E, D = published_start(n, d, generator)
        elif recipe.start == "clusters":
            n_clusters = min(n, recipe.clusters * d // facts.n_blocks)
            say(f"fit: {n_clusters:,} clusters of the tokens to start from")
            centred = facts.sample - facts.mean
            D = cluster_rows(n_clusters, centred, generator)
            if n_clusters < n:
                D = torch.cat([D, start_rows(n - n_clusters, centred, recipe.blend, generator)])
            E = D * CLUSTERS_ENCODE
        else:
            D = start_rows(n, facts.sample - facts.mean, recipe.blend, generator)
            E = D.clone()
        self.b_dec = torch.zeros(d, device=device)
        if recipe.bias == "geometric-median":
            points = facts.first if facts.first is not None else facts.sample[:, None]
            self.b_dec.copy_((geometric_median(points).to(device) - self.shift) * self.scale)
        self.weights = Weights.start(E.to(device), D.to(device))
        self.frozen = self.weights.D.clone() if recipe.decoder == "frozen" else None
        self.b_dec_avg, self.b_dec_square = torch.zeros_like(self.b_dec), torch.zeros_like(self.b_dec)
        self.model = _model(recipe, n, device)
        self.silent = torch.zeros(n, dtype=torch.int64, device=device)  # tokens, or steps, since a latent last fired
        self.smooth = torch.tensor([math.inf, math.inf], dtype=torch.float64)  # smoothed loss, and the lowest so far

    def step(self, tokens: torch.Tensor, step: int) -> dict[str, float]:
        """One step on tokens [n, d_in] of any type; gives what is logged.

        Raises
        ------
        CytosaeError
            The loss is no longer a number, or many times what it was.
        """
        r, w = self.recipe, self.weights
        x = (tokens.to(self.device).float() - self.shift).mul_(self.scale)
        if r.normalise == "before":
            w.D.div_(w.D.norm(dim=1, keepdim=True))
        centred = x - self.b_dec
        lr = r.lr * _schedule(step, self.n_steps, r)
        if r.l1_warmup:
            self.model.l1 = r.l1 * min(1.0, (step + 1) / (r.l1_warmup * self.n_steps))

        encoded = self.model.encode(self.path, centred, w)
        codes = encoded.codes
        recon = self.path.decode(codes, w.D, self.model.bounds).add_(self.b_dec)
        residual = x - recon[-1]
        losses, g_y = self.model.loss(x, recon, codes, self.error)
        terms = [Term(codes, g_y, self.model.bounds, self.model.l1 / len(x))]
        dead = torch.nonzero(self.silent > r.dead_after).flatten()
        extra = None
        if len(dead) and r.dead == "auxk" and r.n_aux and r.aux_weight:
            aux = AuxK(r.n_aux, r.aux_weight, self.error.variance)
            losses["aux"], term = auxiliary_term(self.path, centred, residual, w, dead, aux)
            terms.append(term)
        elif len(dead) and r.dead == "ghost":
            dtype = self.path.dtype if isinstance(self.path, SwitchingPath) else torch.float32
            losses["ghost"], extra = ghost_gradients(centred, x, residual, w, dead, dtype=dtype, room=self.room)
        losses["loss"] += losses.get("aux", 0.0) + losses.get("ghost", 0.0)
        self._check(losses["loss"], step)

        self.model.learn(encoded, g_y, w, lr)
        adam = AdamStep(step + 1, lr, r.beta1, r.beta2)
        carry = self.path.update(w, centred, terms, adam, normalise=r.normalise == "after", extra=extra)
        if self.frozen is not None:
            w.D.copy_(self.frozen)
        self._move_b_dec(g_y[0].sum(0) - carry, adam)
        self.silent.add_(1 if r.cells_per_step else len(x)).masked_fill_(codes.fired(), 0)
        if r.dead == "resample" and len(dead) and (step + 1) % r.resample_every == 0:
            resample(w, dead, residual, torch.Generator().manual_seed(self.seed * 1_000_003 + step))
            self.silent[dead] = 0
        return {**losses, "l0": codes.n_codes / len(x), "n_dead": len(dead), "lr": lr}

    def _move_b_dec(self, gradient: torch.Tensor, adam: AdamStep) -> None:
        self.b_dec_avg.lerp_(gradient, 1 - adam.beta1)
        self.b_dec_square.mul_(adam.beta2).addcmul_(gradient, gradient, value=1 - adam.beta2)
        size = (self.b_dec_square / (1 - adam.beta2**adam.step)).sqrt_().add_(adam.eps)
        self.b_dec.addcdiv_(self.b_dec_avg / (1 - adam.beta1**adam.step), size, value=-adam.lr)

    def _check(self, loss: float, step: int) -> None:
        remedy = "the last checkpoint is whole; lower the learning rate (--set lr=...) or lengthen the warm-up."
        if not math.isfinite(loss):
            raise CytosaeError(f"The loss is no longer a number at step {step}; {remedy}")
        now, lowest = self.smooth.tolist()
        now = loss if math.isinf(now) else 0.9 * now + 0.1 * loss
        self.smooth[0], self.smooth[1] = now, min(lowest, now)
        if now > _SPIKE * self.smooth[1]:
            raise CytosaeError(
                f"The loss rose from {float(self.smooth[1]):.3g} to {now:.3g} by step {step}, so the training diverges; {remedy}"
            )

    def state(self) -> dict[str, torch.Tensor]:
        """Everything a fresh process needs to go on; the tensors themselves."""
        named = {name: getattr(self.weights, name) for name in _WEIGHTS}
        own = {"b_dec": self.b_dec, "b_dec_avg": self.b_dec_avg, "b_dec_square": self.b_dec_square,
               "silent": self.silent, "smooth": self.smooth}  # fmt: skip
        return {**named, **own, **{f"model.{name}": t for name, t in self.model.state().items()}}

    def is_finite(self) -> bool:
        """Whether the weights are numbers: others are not worth a checkpoint."""
        return all(
            bool(torch.isfinite(t).all()) for t in (self.weights.E, self.weights.D, self.weights.b_enc, self.b_dec)
        )

    def finish(self, sample: torch.Tensor) -> tuple[SparseAutoencoder, dict[str, Any]]:
        """The dictionary in the tokens' own units, its threshold calibrated on `sample` [m, d_in], and a summary."""
        w, s = self.weights, self.scale
        parts = (w.E.T.contiguous(), w.b_enc / s, w.D, self.shift + self.b_dec / s)
        summary = {"n_steps": self.n_steps, "n_dead": int((self.silent > self.recipe.dead_after).sum()),
                   "path": self.path.name, "scale": s}  # fmt: skip
        learned = self.model.threshold()
        if learned is not None:
            return SparseAutoencoder(*parts, "threshold", learned / s), summary
        if self.model.activation == "topk":
            return SparseAutoencoder(*parts, "topk", k=self.recipe.k), summary
        trained = SparseAutoencoder(*parts)
        if self.model.activation == "relu":
            return trained, summary
        threshold = calibrate_threshold(trained, sample, self.recipe.k)
        return SparseAutoencoder(*parts, "threshold", torch.full_like(w.b_enc, threshold)), summary


def _model(r: Recipe, n: int, device: str) -> Model:
    if r.model == "relu-l1":
        return ReluL1(n, l1=r.l1)
    if r.model == "jumprelu":
        return JumpRelu(
            n, k=r.k, sparsity=r.sparsity, bandwidth=r.bandwidth, start=max(r.bandwidth, 0.5), device=device
        )
    if r.model == "matryoshka":
        return Matryoshka(n, k=r.k, bounds=group_bounds(n, r.levels))
    return (TopK if r.model == "topk" else BatchTopK)(n, k=r.k)


def _schedule(step: int, n_steps: int, recipe: Recipe) -> float:
    """Linear warm-up, constant, linear decay to zero over the last share."""
    up = (step + 1) / recipe.warmup if recipe.warmup else 1.0
    down = (n_steps - step) / (recipe.decay * n_steps) if recipe.decay else 1.0
    return min(1.0, up, down)
