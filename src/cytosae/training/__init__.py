"""Training: recipes and the fit loop."""

from cytosae.training._fit import fit, has_bfloat16
from cytosae.training._recipes import RECIPES, Recipe, override

__all__ = ["RECIPES", "Recipe", "fit", "has_bfloat16", "override"]
