"""Where cells come from: each layout turns a source into entries; the registry names them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from cytosae._errors import UsageError, nearest
from cytosae.cells.layouts._entry import Box, Entry, LayoutOptions, Source
from cytosae.cells.layouts._fields import read_fields
from cytosae.cells.layouts._folder import image_paths, read_folder
from cytosae.cells.layouts._image_parquet import read_image_parquet
from cytosae.cells.layouts._known import read_acevedo, read_aml_hehr, read_bmc, read_matek19, read_mll23
from cytosae.cells.layouts._manifest import read_manifest_file
from cytosae.storage import is_own_parquet

#: name -> reader(source path, options) -> Source
LAYOUTS: dict[str, Callable[[Path, LayoutOptions], Source]] = {
    "folder": read_folder,
    "manifest": read_manifest_file,
    "hf-parquet": read_image_parquet,
    "mll23": read_mll23,
    "acevedo": read_acevedo,
    "matek19": read_matek19,
    "bmc": read_bmc,
    "aml_hehr": read_aml_hehr,
    "fields": read_fields,
}

__all__ = ["LAYOUTS", "Box", "Entry", "LayoutOptions", "Source", "image_paths", "open_source"]


def open_source(source: Path, layout: str, options: LayoutOptions | None = None) -> Source:
    """The entries of a source; ``layout`` is a name of `LAYOUTS` or ``auto``.

    Raises
    ------
    UsageError
        No such layout.
    CytosaeError
        The source is missing or has no image in it.
    """
    if layout == "auto":
        layout = _guess(source)
    if layout not in LAYOUTS:
        raise UsageError(f"There is no layout {layout!r}{nearest(layout, ['auto', *LAYOUTS])}.")
    return LAYOUTS[layout](source, options or LayoutOptions())


def _guess(source: Path) -> str:
    if source.suffix.lower() in (".csv", ".tsv", ".txt"):
        return "manifest"
    if source.suffix.lower() == ".arrow":
        return "hf-parquet"
    if source.suffix.lower() == ".parquet" and not source.is_dir():
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            column = pq.read_schema(source)
            image = column.field("image").type if column.names.count("image") == 1 else None
            text = image is not None and (pa.types.is_string(image) or pa.types.is_large_string(image))
            return "manifest" if text or ("image" in column.names and image is None) else "hf-parquet"
        except (OSError, pa.ArrowException):
            return "hf-parquet"
    if source.is_dir() and ((source / "dataset_info.json").is_file() or (source / "dataset_dict.json").is_file()):
        return "hf-parquet"
    if _has_parquet(source) or _has_parquet(source / "data"):
        return "hf-parquet"
    return "folder"


def _has_parquet(folder: Path) -> bool:
    """Whether a parquet file of somebody else lies in a folder; its names are looked through one by one, since they may be many."""
    try:
        with os.scandir(folder) as listing:
            return any(item.name.endswith(".parquet") and not is_own_parquet(item.path) for item in listing)
    except OSError:
        return False
