from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from cytosae._errors import CytosaeError, nearest
from cytosae.cells.layouts._entry import Entry, Source

_KNOWN = ("label", "patient", "diagnosis", "dataset", "split", "mask")


def read_manifest_file(source: Path) -> Source:
    """A table with a column ``image`` (path relative to the table's folder, or absolute), one row a cell.

    CSV, TSV or parquet. The columns ``label``, ``patient``, ``diagnosis``, ``dataset``, ``split``, ``mask`` and
    ``um_per_px`` are understood; all others are kept as they are.

    Raises
    ------
    CytosaeError
        Missing, unreadable, without the column ``image``, with a column twice, without rows, or with web addresses.
    """
    frame = _read(source)
    columns = list(frame.columns)
    if "image" not in columns:
        raise CytosaeError(
            f"{source} has no column 'image'{nearest('image', columns) if columns else ''}; name the column of paths 'image'."
        )
    twice = {c for c in columns if columns.count(c) > 1}
    if twice:
        raise CytosaeError(f"{source} has the column {sorted(twice)[0]!r} twice; keep one.")
    if frame.empty:
        raise CytosaeError(f"{source} has no rows; give a manifest with one row a cell.")
    images = frame["image"].astype("string")
    if images.isna().any() or (images.str.strip() == "").any():
        row = int((images.isna() | (images.str.strip() == "")).to_numpy().argmax())
        raise CytosaeError(f"{source} has no image path in data row {row + 1}; fill it or remove the row.")
    web = images.str.match(r"(?i)^[a-z][a-z0-9+.-]*://")
    if web.any():
        raise CytosaeError(
            f"{source} names a web address ({images[web].iloc[0]}); download the images first and give paths."
        )
    scale = pd.to_numeric(frame["um_per_px"], errors="coerce") if "um_per_px" in columns else None
    extra_names = [c for c in columns if c not in (*_KNOWN, "image", "um_per_px")]
    entries = []
    for index, row in enumerate(frame.to_dict("records")):
        fields: dict[str, Any] = {k: _text(row.get(k)) for k in _KNOWN}
        fields["dataset"] = fields["dataset"] or source.resolve().parent.name
        um = None if scale is None or pd.isna(scale.iloc[index]) else float(scale.iloc[index])
        extra = {str(k): None if pd.isna(row[k]) else row[k] for k in extra_names}
        entries.append(Entry(image=str(row["image"]), um_per_px=um, extra=extra, **fields))
    return Source(str(source.resolve().parent), entries, "manifest")


def _read(source: Path) -> pd.DataFrame:
    if not source.is_file():
        raise CytosaeError(f"The manifest {source} does not exist; check the path.")
    try:
        if source.suffix.lower() == ".parquet":
            return pd.read_parquet(source)
        separator = "\t" if source.suffix.lower() == ".tsv" else ","
        header = pd.read_csv(source, sep=separator, header=None, nrows=1, dtype=str, encoding="utf-8-sig")
        frame = pd.read_csv(
            source,
            sep=separator,
            header=None,
            skiprows=1,
            dtype=str,
            encoding="utf-8-sig",
            keep_default_na=False,
            na_values=[""],
        )
        if frame.shape[1] != header.shape[1]:
            raise CytosaeError(
                f"{source} has {header.shape[1]} column names but rows of {frame.shape[1]}; check the separator."
            )
        frame.columns = pd.Index([str(v).strip() for v in header.iloc[0]])
        return frame
    except pd.errors.EmptyDataError:
        raise CytosaeError(f"{source} has no rows; give a manifest with one row a cell.") from None
    except UnicodeDecodeError:
        raise CytosaeError(f"{source} is not UTF-8 text; save it as CSV in UTF-8.") from None
    except (pd.errors.ParserError, OSError, ValueError) as error:
        raise CytosaeError(f"{source} cannot be read as a table ({(str(error).splitlines() or ['?'])[0]}).") from None


def _text(value: Any) -> str | None:
    return None if value is None or pd.isna(value) or str(value).strip() == "" else str(value).strip()
