"""The sections of a scorecard, in the order of the page."""

from __future__ import annotations

from cytosae.evaluation._attributes import Attributes
from cytosae.evaluation._causal import Causal
from cytosae.evaluation._cell_types import CellTypes
from cytosae.evaluation._fidelity import Fidelity
from cytosae.evaluation._localisation import Localisation
from cytosae.evaluation._monosemanticity import Monosemanticity
from cytosae.evaluation._reconstruction import Reconstruction
from cytosae.evaluation._section import Section
from cytosae.evaluation._stability import Stability
from cytosae.evaluation._technical import Technical
from cytosae.evaluation._transfer import Transfer

SECTIONS: tuple[Section, ...] = (
    Reconstruction(),
    Fidelity(),
    Attributes(),
    CellTypes(),
    Localisation(),
    Monosemanticity(),
    Stability(),
    Transfer(),
    Technical(),
    Causal(),
)
