"""CytoSAE: readable concepts of blood cells, by sparse autoencoders on cell foundation models.

Research use only.
"""

from __future__ import annotations

import importlib
from typing import Any

from cytosae._errors import CytosaeError
from cytosae._version import __version__

#: public name -> room that holds it; imported on first use, so that ``import cytosae`` needs no torch
_PUBLIC = {
    "read_cells": "cytosae.cells",
    "load_backbone": "cytosae.backbones",
    "extract_tokens": "cytosae.tokens",
    "TokenStore": "cytosae.tokens",
    "SparseAutoencoder": "cytosae.sae",
    "load_sae": "cytosae.sae",
    "fit": "cytosae.training",
    "splice": "cytosae.evaluation",
    "index_concepts": "cytosae.concepts",
    "ConceptIndex": "cytosae.concepts",
    "concept_map": "cytosae.concepts",
    "explain": "cytosae.concepts",
    "profile_patients": "cytosae.patients",
    "differential": "cytosae.patients",
    "classify": "cytosae.patients",
}

__all__ = ["CytosaeError", "__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'cytosae' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
