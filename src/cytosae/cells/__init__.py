"""Cells: manifests, data set layouts, decoding, quarantine, near duplicates, splits."""

from cytosae.cells._audit import Audit, audit_cells
from cytosae.cells._box_list import Corners, box_windows, read_boxes
from cytosae.cells._build import Built, build_cells, build_table
from cytosae.cells._decode import Decoded, UnreadableImageError, decode_image
from cytosae.cells._foreground import cell_share_of_patches, estimate_cell
from cytosae.cells._images import ImageParquet, ImageReader, Window, bundled_path
from cytosae.cells._inspect import Cut
from cytosae.cells._merge import merge_cells
from cytosae.cells._page import write_page
from cytosae.cells._resize import read_resized
from cytosae.cells._split import parse_parts, split_cells
from cytosae.cells._table import BUNDLED_ROOT, SCHEMA, Cells, read_cells, select, select_any, write_cells
from cytosae.cells.layouts import LAYOUTS, LayoutOptions, image_paths

__all__ = [
    "BUNDLED_ROOT",
    "LAYOUTS",
    "SCHEMA",
    "Audit",
    "Built",
    "Cells",
    "Corners",
    "Cut",
    "Decoded",
    "ImageParquet",
    "ImageReader",
    "LayoutOptions",
    "UnreadableImageError",
    "Window",
    "audit_cells",
    "box_windows",
    "build_cells",
    "build_table",
    "bundled_path",
    "cell_share_of_patches",
    "decode_image",
    "estimate_cell",
    "image_paths",
    "merge_cells",
    "parse_parts",
    "read_boxes",
    "read_cells",
    "read_resized",
    "select",
    "select_any",
    "split_cells",
    "write_cells",
    "write_page",
]
