"""Evaluation: what a concept is worth, always beside its controls."""

from cytosae.evaluation._controls import ControlledEntropy, controlled_entropy, measure_controls, random_directions
from cytosae.evaluation._on_cell import on_cell_share

__all__ = ["ControlledEntropy", "controlled_entropy", "measure_controls", "on_cell_share", "random_directions"]
