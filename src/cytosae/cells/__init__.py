"""Cells: manifests, data set layouts, decoding, quarantine."""

from cytosae.cells._build import build_cells
from cytosae.cells._decode import Decoded, UnreadableImageError, decode_image
from cytosae.cells._foreground import cell_share_of_patches, estimate_cell
from cytosae.cells._images import ImageParquet, ImageReader, bundled_path
from cytosae.cells._table import BUNDLED_ROOT, SCHEMA, Cells, read_cells, select, write_cells
from cytosae.cells.layouts import LAYOUTS

__all__ = [
    "BUNDLED_ROOT",
    "LAYOUTS",
    "SCHEMA",
    "Cells",
    "Decoded",
    "ImageParquet",
    "ImageReader",
    "UnreadableImageError",
    "build_cells",
    "bundled_path",
    "cell_share_of_patches",
    "decode_image",
    "estimate_cell",
    "read_cells",
    "select",
    "write_cells",
]
