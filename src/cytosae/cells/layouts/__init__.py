"""Where cells come from: each layout turns a source into entries; the registry names them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from cytosae._errors import UsageError, nearest
from cytosae.cells.layouts._entry import Entry, Source
from cytosae.cells.layouts._folder import read_folder
from cytosae.cells.layouts._image_parquet import read_image_parquet
from cytosae.cells.layouts._manifest import read_manifest_file

#: name -> reader(source path) -> Source
LAYOUTS: dict[str, Callable[[Path], Source]] = {
    "folder": read_folder,
    "manifest": read_manifest_file,
    "hf-parquet": read_image_parquet,
}

__all__ = ["LAYOUTS", "Entry", "Iterator", "Source", "open_source"]


def open_source(source: Path, layout: str) -> Source:
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
    return LAYOUTS[layout](source)


def _guess(source: Path) -> str:
    if source.suffix.lower() in (".csv", ".tsv", ".txt"):
        return "manifest"
    if source.suffix.lower() == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            column = pq.read_schema(source)
            image = column.field("image").type if "image" in column.names else None
            return "manifest" if image is not None and pa.types.is_string(image) else "hf-parquet"
        except (OSError, pa.ArrowException):
            return "hf-parquet"
    return "folder"
