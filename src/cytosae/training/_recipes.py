"""Recipes: named, complete training configurations, and how single fields are overridden."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from cytosae._errors import UsageError, nearest
from cytosae.sae.models import MODELS

R = TypeVar("R", bound=Any)


@dataclass(frozen=True)
class Recipe:
    """Every number that training depends on.

    Attributes
    ----------
    name
        Of the recipe.
    model
        ``relu-l1``, ``topk``, ``batchtopk``, ``jumprelu`` or ``matryoshka``.
    expansion
        Latents for each dimension of the backbone; of tokens of several blocks, for each dimension of one block.
    k
        Active latents a token: exactly (TopK), on average (BatchTopK, Matryoshka), or as a target (JumpReLU).
    levels
        Matryoshka: shares of the dictionary that have to reconstruct alone; the whole is always added.
    l1
        ReLU: weight of the sum of codes beside the error.
    l1_warmup
        Share of the steps over which that weight rises from zero.
    sparsity, bandwidth
        JumpReLU: weight of the penalty, and width of the rectangle around a threshold.
    tokens
        Kinds of token trained on: ``patch``, ``class`` or ``all``.
    background
        Share of the patches off the cell (by a simple foreground estimate) that train; 1: all.
    cells_per_step
        0: a step takes `batch` shuffled tokens. Else all tokens of so many whole cells.
    presentations
        Tokens shown in all, passes over the data included (whole cells, where a step takes those).
    batch
        Tokens a step.
    lr
        Learning rate of Adam after warm-up.
    beta1, beta2
        Of Adam.
    warmup
        Steps of linear warm-up.
    decay
        Last share of the steps over which the rate falls linearly to zero.
    error
        ``fvu`` (squared error over the tokens' variance) or ``norm`` (over each token's norm, as published).
    inputs
        ``standardise`` (centred, mean norm sqrt(d_in); folded into the weights at the end) or ``raw``.
    start
        ``clusters`` (decoder rows are centres of a k-means of the tokens' directions, the encoder a sixteenth of them), ``tied``
        (encoder = decoder, unit rows, see `blend`), or ``published`` (untied, Kaiming uniform).
    clusters
        Of ``start=clusters``: rows for each dimension (as `expansion` counts) that start at a centre; more start in random
        directions, since not all of very many centres stay in use.
    blend
        Of ``start=tied``, decoder rows: random directions (0), centred training tokens (1), or a blend, scaled to unit length.
    decoder
        ``trained``, or ``frozen``: the directions stay as they start, a control for what a dictionary learns.
    bias
        Decoder bias at the start: ``zero`` or ``geometric-median``.
    normalise
        Decoder rows are scaled to unit norm ``after`` each step, or ``before`` it (as published).
    dead
        What is done for latents that do not fire: ``auxk``, ``ghost``, ``resample`` or ``nothing``.
    dead_after
        Tokens without a code after which a latent counts as dead (steps, where a step takes whole cells).
    aux_k, aux_weight
        AuxK: dead latents that reconstruct the residual of a token (-1: 256, and ``8 k`` where k is above 64; 0: no
        AuxK), and the weight of that loss.
    resample_every
        Steps between two resamplings of dead latents.
    products
        ``float32``, ``bfloat16``, or ``auto`` (the fastest whose result equals float32 within stated tolerances).
    """

    name: str = "default"
    model: str = "batchtopk"
    expansion: int = 8
    k: int = 32
    levels: tuple[float, ...] = (1 / 16, 1 / 4)
    l1: float = 0.0
    l1_warmup: float = 0.0
    sparsity: float = 0.1
    bandwidth: float = 0.2
    tokens: str = "patch"
    background: float = 1.0
    cells_per_step: int = 0
    presentations: int = 6_000_000
    batch: int = 512
    lr: float = 1.4e-3
    beta1: float = 0.9
    beta2: float = 0.999
    warmup: int = 200
    decay: float = 0.6
    error: str = "fvu"
    inputs: str = "standardise"
    start: str = "clusters"
    clusters: int = 4
    blend: float = 0.0
    decoder: str = "trained"
    bias: str = "zero"
    normalise: str = "after"
    dead: str = "auxk"
    dead_after: int = 10_000
    aux_k: int = -1
    aux_weight: float = 1.0
    resample_every: int = 500
    products: str = "auto"

    def __post_init__(self) -> None:
        checks = {
            "model": self.model in MODELS,
            "expansion": self.expansion >= 1,
            "k": self.k >= 1,
            "levels": all(0 < level <= 1 for level in self.levels),
            "l1": 0 <= self.l1 < math.inf,
            "l1_warmup": 0 <= self.l1_warmup <= 1,
            "sparsity": 0 <= self.sparsity < math.inf,
            "bandwidth": 0 < self.bandwidth < math.inf,
            "tokens": self.tokens in ("patch", "class", "all"),
            "background": 0 <= self.background <= 1,
            "cells_per_step": self.cells_per_step >= 0,
            "presentations": self.presentations >= 1,
            "batch": self.batch >= 1,
            "lr": 0 < self.lr < 1,
            "beta1": 0 <= self.beta1 < 1,
            "beta2": 0 <= self.beta2 < 1,
            "warmup": self.warmup >= 0,
            "decay": 0 <= self.decay <= 1,
            "error": self.error in ("fvu", "norm"),
            "inputs": self.inputs in ("standardise", "raw"),
            "start": self.start in ("clusters", "tied", "published"),
            "clusters": self.clusters >= 1,
            "blend": 0 <= self.blend <= 1,
            "decoder": self.decoder in ("trained", "frozen"),
            "bias": self.bias in ("zero", "geometric-median"),
            "normalise": self.normalise in ("after", "before"),
            "dead": self.dead in ("auxk", "ghost", "resample", "nothing"),
            "dead_after": self.dead_after >= 1,
            "aux_k": self.aux_k >= -1,
            "aux_weight": 0 <= self.aux_weight < math.inf,
            "resample_every": self.resample_every >= 1,
            "products": self.products in ("auto", "float32", "bfloat16"),
        }
        for name, fine in checks.items():
            if not fine:
                raise UsageError(f"{name}={getattr(self, name)} is not a possible value in recipe {self.name!r}.")
        if self.dead == "ghost" and self.error != "norm":
            raise UsageError("dead=ghost belongs to error=norm (the published loss); use dead=auxk with error=fvu.")
        if self.blend and self.start != "tied":
            raise UsageError(f"blend={self.blend} belongs to start=tied; give both with --set.")
        if self.background < 1 and self.tokens != "patch":
            raise UsageError(f"background={self.background} chooses among patches; use it with tokens=patch.")

    @property
    def n_aux(self) -> int:
        """Dead latents that AuxK takes for a token. With 128 codes a token, 256 left 8% of the latents dead, 1,024 5%."""
        if self.aux_k >= 0:
            return self.aux_k
        return 256 if self.k <= 64 else 8 * self.k

    def as_dict(self) -> dict[str, Any]:
        """Plain values for `sae.json`; `aux_k` as it is used."""
        values = {**dataclasses.asdict(self), "aux_k": self.n_aux}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in [
        Recipe(),
        Recipe(
            name="small",
            expansion=2,
            start="tied",
            decay=0.33,
            k=8,
            background=0.02,
            presentations=1_500_000,
            batch=512,
            lr=1e-3,
            warmup=100,
            dead_after=100_000,
            aux_k=64,
            aux_weight=1 / 32,
        ),
        Recipe(
            name="relu-l1", model="relu-l1", expansion=16, k=1, l1=0.003, presentations=10_000_000, batch=1024, lr=6e-3, warmup=50,
            decay=0.33, start="tied", dead="nothing", dead_after=120_000, aux_weight=1 / 16,
        ),
        Recipe(
            name="cytosae-2025", model="relu-l1", expansion=64, k=1, l1=8e-5, tokens="all", cells_per_step=64,
            presentations=1_000_000, batch=1024, lr=4e-4, warmup=500, decay=0.0, error="norm", inputs="raw", start="published",
            bias="geometric-median", normalise="before", dead="ghost", dead_after=64,
            aux_weight=1 / 16,
        ),
    ]
}  # fmt: skip


def override(name: str, settings: Sequence[str] = ()) -> Recipe:
    """The recipe `name` with fields replaced by ``key=value``.

    Raises
    ------
    UsageError
        Unknown recipe or key (the nearest known one is named), or a value of the wrong kind.
    """
    if name not in RECIPES:
        raise UsageError(f"There is no recipe {name!r}{nearest(name, RECIPES)}.")
    return replace(RECIPES[name], settings)


def replace(recipe: R, settings: Sequence[str], what: str = "A recipe") -> R:
    """`recipe`, or another frozen dataclass (`what` in messages), with fields replaced by ``key=value``; errors as in `override`."""
    kinds = {f.name: type(getattr(recipe, f.name)) for f in dataclasses.fields(recipe) if f.name != "name"}
    changes: dict[str, Any] = {}
    for setting in settings:
        key, sign, value = setting.partition("=")
        if not sign:
            raise UsageError(f"--set {setting!r} is not of the form key=value.")
        if key not in kinds:
            raise UsageError(f"{what} has no field {key!r}{nearest(key, kinds)}.")
        try:
            changes[key] = _parse(value, kinds[key])
        except (ValueError, OverflowError):
            wanted = "shares separated by commas" if kinds[key] is tuple else f"a value of kind {kinds[key].__name__}"
            raise UsageError(f"--set {setting}: {key} wants {wanted}.") from None
    return dataclasses.replace(recipe, **changes)


def _parse(value: str, kind: type) -> Any:
    if kind is tuple:
        return tuple(_number(part) for part in value.split(",") if part.strip())
    if kind is float:
        return _number(value)
    if kind is int and "e" in value.lower():
        number = float(value)
        if number != int(number):
            raise ValueError(value)
        return int(number)
    return kind(value)


def _number(text: str) -> float:
    above, bar, below = text.partition("/")
    return float(above) / float(below) if bar and float(below) else float(text)
