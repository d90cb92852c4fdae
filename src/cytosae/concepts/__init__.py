"""Concepts: what can be said of every latent over a set of cells, and where in an image it sits."""

from cytosae.concepts._atlas import make_atlas
from cytosae.concepts._bundle import Bundle, load_bundle
from cytosae.concepts._cells_by_concepts import CellsByConcepts, read_cells_by_concepts
from cytosae.concepts._compare import agreement, compare_indices, draw_comparison, relative_entropy
from cytosae.concepts._draw import draw_maps, spread_map
from cytosae.concepts._entropy import N_JUDGED, label_entropy
from cytosae.concepts._explain import Explanation, explain, explain_pixels, rank_concepts, read_pixels
from cytosae.concepts._index import KIND, VERSION, ConceptIndex, indexed_cells, wheres_of
from cytosae.concepts._landscape import active_jaccard, draw_landscape, landscape_numbers
from cytosae.concepts._maps import (
    class_token_codes,
    concept_map,
    concept_maps,
    concepts_within,
    patch_box,
    region_shares,
)
from cytosae.concepts._merge import merge_indices
from cytosae.concepts._names import (
    Name,
    add_names,
    name_concept,
    name_list,
    named_concepts,
    names_path,
    read_name_list,
    read_names,
)
from cytosae.concepts._pack import pack_captions, pack_index, pack_reference, pack_technical
from cytosae.concepts._pass import index_concepts
from cytosae.concepts._reference import Reference, read_reference
from cytosae.concepts._released import import_statistics, infer_n_cells
from cytosae.concepts._statistics import ConceptStatistics
from cytosae.concepts._stream import backbone_of, check_tokens, merged_sources
from cytosae.concepts._tables import patient_barcodes
from cytosae.concepts._unusual import KnownCells, Unusual

__all__ = [
    "KIND",
    "N_JUDGED",
    "VERSION",
    "Bundle",
    "CellsByConcepts",
    "ConceptIndex",
    "ConceptStatistics",
    "Explanation",
    "KnownCells",
    "Name",
    "Reference",
    "Unusual",
    "active_jaccard",
    "add_names",
    "agreement",
    "backbone_of",
    "check_tokens",
    "class_token_codes",
    "compare_indices",
    "concept_map",
    "concept_maps",
    "concepts_within",
    "draw_comparison",
    "draw_landscape",
    "draw_maps",
    "explain",
    "explain_pixels",
    "import_statistics",
    "index_concepts",
    "indexed_cells",
    "infer_n_cells",
    "label_entropy",
    "landscape_numbers",
    "load_bundle",
    "make_atlas",
    "merge_indices",
    "merged_sources",
    "name_concept",
    "name_list",
    "named_concepts",
    "names_path",
    "pack_captions",
    "pack_index",
    "pack_reference",
    "pack_technical",
    "patch_box",
    "patient_barcodes",
    "rank_concepts",
    "read_cells_by_concepts",
    "read_name_list",
    "read_names",
    "read_pixels",
    "read_reference",
    "region_shares",
    "relative_entropy",
    "spread_map",
    "wheres_of",
]
