"""From entries to a checked `cells.parquet`: every image is opened once, and what cannot be read is quarantined."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from cytosae._errors import CytosaeError
from cytosae._progress import track
from cytosae.cells._decode import UnreadableImageError, decode_image
from cytosae.cells._images import ImageReader
from cytosae.cells._table import SCHEMA, Cells, read_cells, write_cells
from cytosae.cells.layouts import Entry, Source, open_source
from cytosae.storage import hash_bytes


def build_cells(source: Path | str, out: Path | str, *, layout: str = "auto", on_error: str = "quarantine") -> Cells:
    """Open every image of a source and write the table of its cells.

    Parameters
    ----------
    source
        A folder of class folders, a manifest (CSV, TSV, parquet), or an image parquet.
    out
        The table to write.
    layout
        A name of `LAYOUTS`, or ``auto``.
    on_error
        ``quarantine`` keeps a cell whose image cannot be read whole, with the reason; ``fail`` stops there.

    Raises
    ------
    CytosaeError
        The source has no readable image, or (``fail``) one of them is unreadable.
    """
    source, out = Path(source), Path(out)
    found = open_source(source, layout)
    reader = ImageReader(found.root)
    rows = []
    for cell_id, entry in enumerate(track(found.entries, len(found.entries), "cells", "images")):
        row = _inspect(entry, reader)
        if on_error == "fail" and row["status"] != "ok":
            raise CytosaeError(f"{entry.image}: {row['reason']}; mend or remove it, or use --on-error quarantine.")
        rows.append({"cell_id": cell_id, **row})
    if all(row["status"] != "ok" for row in rows):
        raise CytosaeError(
            f"None of the {len(rows)} images of {source} can be read (the first: {rows[0]['image']}, {rows[0]['reason']})."
        )
    write_cells(out, _frame(rows), root=found.root, inputs={}, config=_config(found, on_error))
    return read_cells(out)


def _inspect(entry: Entry, reader: ImageReader) -> dict[str, Any]:
    row: dict[str, Any] = {name: getattr(entry, name) for name in
                           ("image", "label", "patient", "diagnosis", "dataset", "split", "mask", "um_per_px")}  # fmt: skip
    row |= {"sha256": None, "width": None, "height": None, "mode": None, "status": "ok", "reason": None}
    try:
        data = reader.read(entry.image)
        row["sha256"] = hash_bytes(data)
        decoded = decode_image(data)
        row["height"], row["width"] = decoded.pixels.shape[:2]
        row["mode"] = decoded.mode
    except UnreadableImageError as error:
        row |= {"status": "quarantined", "reason": str(error)}
    except CytosaeError:
        row |= {"status": "quarantined", "reason": "the file cannot be opened"}
    return {**{k: v for k, v in entry.extra.items() if k not in row}, **row}


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows)
    extra = [c for c in frame.columns if c not in SCHEMA.names]
    for name in extra:  # a column of nothing but nulls, or of mixed kinds, is text
        kinds = {type(v) for v in frame[name].dropna()}
        if len(kinds) != 1:
            frame[name] = frame[name].map(lambda v: None if pd.isna(v) else str(v)).astype("string")
    return frame[[*SCHEMA.names, *extra]]


def _config(found: Source, on_error: str) -> dict[str, Any]:
    return {"layout": found.layout, "on_error": on_error, "passed_over": found.passed_over}
