"""Training: recipes and the fit loop."""

from cytosae.training._fit import fit
from cytosae.training._recipes import RECIPES, Recipe, override

__all__ = ["RECIPES", "Recipe", "fit", "override"]
