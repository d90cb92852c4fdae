"""Evaluation: what a concept is worth, always beside its controls."""

from cytosae.evaluation._controls import ControlledEntropy, controlled_entropy, random_directions

__all__ = ["ControlledEntropy", "controlled_entropy", "random_directions"]
