"""Concepts: what can be said of every latent over a set of cells, and where in an image it sits."""

from cytosae.concepts._cells_by_concepts import CellsByConcepts, read_cells_by_concepts
from cytosae.concepts._entropy import N_JUDGED, label_entropy
from cytosae.concepts._explain import Explanation, explain, rank_concepts
from cytosae.concepts._index import KIND, VERSION, ConceptIndex
from cytosae.concepts._maps import concept_map, concept_maps, patch_box
from cytosae.concepts._pass import index_concepts
from cytosae.concepts._statistics import ConceptStatistics
from cytosae.concepts._stream import backbone_of, check_tokens
from cytosae.concepts._tables import patient_barcodes

__all__ = [
    "KIND",
    "N_JUDGED",
    "VERSION",
    "CellsByConcepts",
    "ConceptIndex",
    "ConceptStatistics",
    "Explanation",
    "backbone_of",
    "check_tokens",
    "concept_map",
    "concept_maps",
    "explain",
    "index_concepts",
    "label_entropy",
    "patch_box",
    "patient_barcodes",
    "rank_concepts",
    "read_cells_by_concepts",
]
