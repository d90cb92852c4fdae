"""The mathematics of one training step; each fast path stands beside its dense reference."""

from cytosae.sae.ops._choose import choose, has_bfloat16
from cytosae.sae.ops._interface import AdamStep, Codes, Path, RowGradients, Rule, Term, Weights
from cytosae.sae.ops._products import Room

__all__ = ["AdamStep", "Codes", "Path", "Room", "RowGradients", "Rule", "Term", "Weights", "choose", "has_bfloat16"]
