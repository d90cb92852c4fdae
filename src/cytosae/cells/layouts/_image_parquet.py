from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from cytosae._errors import CytosaeError
from cytosae.cells._images import ROW_MARK, ImageParquet, bundled_path
from cytosae.cells._table import BUNDLED_ROOT
from cytosae.cells.layouts._entry import Entry, Source

_KNOWN = ("label", "patient", "diagnosis", "dataset", "split", "mask")


def read_image_parquet(source: Path) -> Source:
    """Rows of an image parquet as Hugging Face `datasets` writes it; further columns are kept.

    Raises
    ------
    CytosaeError
        Missing, not parquet, or without a column of image bytes.
    """
    if not source.is_file():
        raise CytosaeError(f"The image parquet {source} does not exist; check the path.")
    parquet = ImageParquet(source)
    frame = parquet.frame()
    extra_names = [c for c in frame.columns if c not in (*_KNOWN, "um_per_px")]
    entries = []
    for row, record in enumerate(frame.to_dict("records")):
        fields: dict[str, Any] = {k: _text(record.get(k)) for k in _KNOWN}
        fields["dataset"] = fields["dataset"] or source.stem
        extra = {str(k): _plain(record[k]) for k in extra_names}
        entries.append(Entry(image=f"{source.name}{ROW_MARK}{row}", extra=extra, **fields))
    bundled = source.resolve() == bundled_path().resolve()
    return Source(BUNDLED_ROOT if bundled else str(source.resolve().parent), entries, "hf-parquet")


def _text(value: Any) -> str | None:
    return None if value is None or pd.isna(value) or str(value).strip() == "" else str(value).strip()


def _plain(value: Any) -> Any:
    return None if pd.api.types.is_scalar(value) and pd.isna(value) else value
