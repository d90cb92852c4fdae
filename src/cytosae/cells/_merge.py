"""Several tables of cells as one, with the origin of every cell kept."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from cytosae._errors import CytosaeError, UsageError
from cytosae.cells._images import split_window
from cytosae.cells._table import BUNDLED_ROOT, SCHEMA, Cells, read_cells, write_cells


def merge_cells(tables: Sequence[Path | str], out: Path | str) -> Cells:
    """Write one table of the cells of several.

    ``cell_id`` is numbered anew; ``source`` (where the table has none: the table's name) and ``source_cell_id`` say
    where a cell comes from. Groups that are numbers of cells (``near_duplicate_group``) are shifted with them; values of
    ``patient`` are left as they are: the same code in two tables is the same patient. Identical files of two tables
    come into one near-duplicate group; near duplicates across tables are found only when images are read again.

    Raises
    ------
    UsageError
        Fewer than two tables, or the same one twice.
    CytosaeError
        A table that cannot be read, or bundled cells together with others.
    """
    paths = [Path(p) for p in tables]
    if len(paths) < 2:
        raise UsageError("Merging takes at least two tables; give 'cytosae cells merge A B --out X'.")
    read = [read_cells(p) for p in paths]
    hashes = [c.hash for c in read]
    for i, value in enumerate(hashes):
        if value in hashes[:i]:
            raise UsageError(f"{paths[i]} is the same table as {paths[hashes.index(value)]}; give each table once.")
    roots = {c.root for c in read}
    if BUNDLED_ROOT in roots and len(roots) > 1:
        raise CytosaeError(
            "The bundled cells lie inside the package and cannot be merged with files; "
            "name the image parquet by its path instead of 'bundled' and read it again."
        )
    root = next(iter(roots)) if len(roots) == 1 else _common(sorted(roots))
    names = _names(paths)
    frames, start, ranges = [], 0, {}
    for path, cells, name in zip(paths, read, names, strict=True):
        frames.append(_shifted(cells, name, start, root, path))
        own = cells.frame["cell_id"].to_numpy()
        if "source_cell_id" in cells.frame or ("source" in cells.frame and np.array_equal(own, np.arange(len(own)))):
            # its cells keep their own `source`, so they are found by where they lie; its own ids run from 0
            ranges[name] = [start, start + len(cells)]
        start += len(cells)
    frame = _together(frames)
    if "near_duplicate_group" in frame:
        frame["near_duplicate_group"] = _identical(frame)
    inputs = dict(zip(names, hashes, strict=True))
    write_cells(Path(out), frame, root=root, inputs=inputs, config={"merged": names, "ranges": ranges})
    return read_cells(out)


def _shifted(cells: Cells, name: str, start: int, root: str, path: Path) -> pd.DataFrame:
    frame = cells.frame.copy()
    if frame["cell_id"].isna().any():
        raise CytosaeError(f"{path} has a cell without cell_id; make it again with 'cytosae cells'.")
    if "source_cell_id" not in frame:
        frame["source_cell_id"] = frame["cell_id"]
    if "source" not in frame:
        frame["source"] = name
    frame["cell_id"] = range(start, start + len(frame))
    if "near_duplicate_group" in frame:
        frame["near_duplicate_group"] = frame.groupby("near_duplicate_group")["cell_id"].transform("min")
    if cells.root != root:
        frame["image"] = [_moved(cells.root, value, root) for value in frame["image"]]
        frame["mask"] = [None if pd.isna(v) else _moved(cells.root, v, root) for v in frame["mask"]]
    return frame


def _together(frames: list[pd.DataFrame]) -> pd.DataFrame:
    """All rows; a column that is text in one table and number in another becomes text."""
    extra = list(dict.fromkeys(c for f in frames for c in f.columns if c not in SCHEMA.names))
    for name in extra:
        kinds = {f[name].dtype.kind for f in frames if name in f and f[name].notna().any()}
        if len(kinds) > 1 and not kinds <= set("iuf"):
            for f in frames:
                if name in f:
                    f[name] = f[name].map(lambda v: None if not isinstance(v, list) and pd.isna(v) else str(v))
    whole = {name for f in frames for name in extra if name in f and f[name].dtype.kind in "iu"}
    frame = pd.concat([f.astype(object) for f in frames], ignore_index=True)
    for name in extra:
        if name in whole and all(name not in f or f[name].dtype.kind in "iu" for f in frames):
            frame[name] = frame[name].astype("Int64")
        elif frame[name].map(lambda v: isinstance(v, int | float) and not isinstance(v, bool)).all():
            frame[name] = frame[name].astype("float64")
    return frame[[*SCHEMA.names, *extra]]


def _identical(frame: pd.DataFrame) -> pd.Series:
    """Near-duplicate groups in which identical files of several tables are united."""
    from cytosae.cells._split import linked

    known = frame["near_duplicate_group"].fillna(frame["cell_id"].astype("Int64")).astype("int64")
    unit = linked(pd.DataFrame({"group": known, "file": frame["sha256"]}), ["group", "file"])
    lowest = frame["cell_id"].astype("int64").groupby(unit).transform("min")
    return lowest.astype("int64")


def _moved(old_root: str, image: str, root: str) -> str:
    """The name of an image relative to another root."""
    file, window, is_mask = split_window(image)
    moved = os.path.relpath(Path(old_root) / file, root)
    return window.of(moved, mask=is_mask) if window else moved


def _common(roots: list[str]) -> str:
    try:
        return os.path.commonpath(roots)
    except ValueError:
        raise CytosaeError(
            "The tables lie on different drives and have no common folder; copy them together."
        ) from None


def _names(paths: list[Path]) -> list[str]:
    """A short name of each table, unique among them: its stem, else with its folder, else with a number."""
    for name in (lambda p: p.stem, lambda p: f"{p.resolve().parent.name}/{p.stem}"):
        names = [name(p) for p in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{p.stem}-{i}" for i, p in enumerate(paths)]
