"""The mathematics of one training step; each fast path stands beside its dense reference."""

from cytosae.sae.ops._choose import choose
from cytosae.sae.ops._interface import AdamStep, Codes, Path, Rule, Term, Weights
from cytosae.sae.ops._portable import Gradients, Parameters, auxiliary_step, main_step
from cytosae.sae.ops._select import batch_topk, kth_largest, row_topk

__all__ = ["AdamStep", "Codes", "Gradients", "Parameters", "Path", "Rule", "Term", "Weights", "auxiliary_step",
           "batch_topk", "choose", "kth_largest", "main_step", "row_topk"]  # fmt: skip
