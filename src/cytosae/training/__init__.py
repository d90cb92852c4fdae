"""Training: recipes and the fit loop."""

from cytosae.sae.ops import has_bfloat16
from cytosae.training._fit import SHARED, Member, fit, fit_many, train
from cytosae.training._measure import measure
from cytosae.training._recipes import RECIPES, Recipe, override, replace
from cytosae.training._stream import CellStream
from cytosae.training._tensorboard import tensorboard_log
from cytosae.training._trainer import TokenFacts, Trainer

__all__ = [
    "RECIPES", "SHARED", "CellStream", "Member", "Recipe", "TokenFacts", "Trainer", "fit", "fit_many",
    "has_bfloat16", "measure", "override", "replace", "tensorboard_log", "train",
]  # fmt: skip
