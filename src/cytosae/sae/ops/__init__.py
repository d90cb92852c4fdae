"""The mathematics of one training step; each fast path stands beside its dense reference."""

from cytosae.sae.ops._interface import AdamStep, Codes, Path, RowGradients, Rule, Term, Weights
from cytosae.sae.ops._dense_tmp import choose

__all__ = ["AdamStep", "Codes", "Path", "RowGradients", "Rule", "Term", "Weights", "choose"]
