"""Concepts: what can be said of every latent over a set of cells, and where in an image it sits."""

from cytosae.concepts._cells_by_concepts import CellsByConcepts, read_cells_by_concepts
from cytosae.concepts._explain import Explanation, explain, rank_concepts
from cytosae.concepts._index import KIND, VERSION, ConceptIndex
from cytosae.concepts._maps import concept_map, concept_maps, patch_box
from cytosae.concepts._pass import backbone_of, index_concepts
from cytosae.concepts._statistics import ConceptStatistics, label_entropy

__all__ = [
    "KIND",
    "VERSION",
    "CellsByConcepts",
    "ConceptIndex",
    "ConceptStatistics",
    "Explanation",
    "backbone_of",
    "concept_map",
    "concept_maps",
    "explain",
    "index_concepts",
    "label_entropy",
    "patch_box",
    "rank_concepts",
    "read_cells_by_concepts",
]
