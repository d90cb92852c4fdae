"""Recipes: named, complete training configurations, and how single fields are overridden."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cytosae._errors import UsageError, nearest


@dataclass(frozen=True)
class Recipe:
    """Every number that training depends on.

    Attributes
    ----------
    name
        Of the recipe.
    model
        ``batchtopk`` or ``relu-l1``.
    expansion
        Latents for each dimension of a token.
    k
        BatchTopK: active latents a token, on average.
    l1
        ReLU: weight of the sum of codes beside the FVU (inputs scaled to a mean norm of sqrt(d_in)).
    background
        Share of the patches off the cell (by a simple foreground estimate) that train; 1: all.
    presentations
        Tokens shown in all, passes over the data included.
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
    aux_k, aux_weight
        AuxK: dead latents that reconstruct the residual of a token, and the weight of that loss.
    dead_after
        Tokens without a code after which a latent counts as dead.
    blend
        Decoder rows at the start: random directions (0), centred training tokens (1), or a blend, scaled to unit length.
    products
        ``float32``, ``bfloat16``, or ``auto`` (bfloat16 where the processor multiplies in it).
    """

    name: str = "default"
    model: str = "batchtopk"
    expansion: int = 16
    k: int = 32
    l1: float = 0.0
    background: float = 1.0
    presentations: int = 10_000_000
    batch: int = 4096
    lr: float = 8e-4
    beta1: float = 0.9
    beta2: float = 0.999
    warmup: int = 200
    decay: float = 0.33
    aux_k: int = 64
    aux_weight: float = 1 / 32
    dead_after: int = 500_000
    blend: float = 0.0
    products: str = "auto"

    def __post_init__(self) -> None:
        checks = {
            "model": self.model in ("batchtopk", "relu-l1"),
            "blend": 0 <= self.blend <= 1,
            "products": self.products in ("auto", "float32", "bfloat16"),
            "expansion": self.expansion >= 1,
            "k": self.k >= 1,
            "l1": 0 <= self.l1 < float("inf"),
            "background": 0 <= self.background <= 1,
            "presentations": self.presentations >= 1,
            "batch": self.batch >= 1,
            "lr": 0 < self.lr < 1,
            "beta1": 0 <= self.beta1 < 1,
            "beta2": 0 <= self.beta2 < 1,
            "warmup": self.warmup >= 0,
            "decay": 0 <= self.decay <= 1,
            "aux_k": self.aux_k >= 0,
            "aux_weight": 0 <= self.aux_weight < float("inf"),
            "dead_after": self.dead_after >= 1,
        }
        for name, fine in checks.items():
            if not fine:
                raise UsageError(f"{name}={getattr(self, name)} is not a possible value in recipe {self.name!r}.")

    def as_dict(self) -> dict[str, Any]:
        """Plain values for `sae.json`."""
        return dataclasses.asdict(self)


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in [
        Recipe(),
        Recipe(
            name="small",
            expansion=2,
            k=8,
            background=0.02,
            presentations=1_500_000,
            batch=512,
            lr=1e-3,
            warmup=100,
            dead_after=100_000,
        ),
        Recipe(name="relu-l1", model="relu-l1", k=1, l1=0.01, aux_k=0, aux_weight=0.0),
    ]
}


def override(name: str, settings: Sequence[str] = ()) -> Recipe:
    """The recipe `name` with fields replaced by ``key=value``.

    Raises
    ------
    UsageError
        Unknown recipe or key (the nearest known one is named), or a value of the wrong kind.
    """
    if name not in RECIPES:
        raise UsageError(f"There is no recipe {name!r}{nearest(name, RECIPES)}.")
    recipe = RECIPES[name]
    kinds = {f.name: type(getattr(recipe, f.name)) for f in dataclasses.fields(Recipe) if f.name != "name"}
    changes: dict[str, Any] = {}
    for setting in settings:
        key, sign, value = setting.partition("=")
        if not sign:
            raise UsageError(f"--set {setting!r} is not of the form key=value.")
        if key not in kinds:
            raise UsageError(f"A recipe has no field {key!r}{nearest(key, kinds)}.")
        try:
            changes[key] = kinds[key](float(value)) if kinds[key] is int and "e" in value.lower() else kinds[key](value)
        except ValueError:
            raise UsageError(f"--set {setting}: {key} wants a value of kind {kinds[key].__name__}.") from None
    return dataclasses.replace(recipe, **changes)
