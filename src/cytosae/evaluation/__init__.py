"""Evaluation: what a concept is worth, always beside its controls."""

from cytosae.evaluation._context import Context
from cytosae.evaluation._controls import (
    ControlledEntropy,
    TooFewCellsError,
    controlled_entropy,
    measure_controls,
    random_directions,
)
from cytosae.evaluation._on_cell import on_cell_share
from cytosae.evaluation._open import open_context
from cytosae.evaluation._scorecard import chosen_sections, make_scorecard
from cytosae.evaluation._section import Section
from cytosae.evaluation._sections import SECTIONS
from cytosae.evaluation._splice import Spliced, keep_concepts, remove_concepts, splice, steer
from cytosae.evaluation._units import Units

__all__ = [
    "SECTIONS", "Context", "ControlledEntropy", "Section", "Spliced", "TooFewCellsError", "Units", "chosen_sections", "controlled_entropy",
    "keep_concepts", "make_scorecard", "measure_controls", "on_cell_share", "open_context", "random_directions",
    "remove_concepts", "splice", "steer",
]  # fmt: skip
