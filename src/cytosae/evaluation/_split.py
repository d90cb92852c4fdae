"""Which cells choose and which are scored: never a crop of the same field, patient or picture on both sides."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cytosae.cells._split import GROUPS, linked

#: The column with WBCAtt's published split.
WBCATT = "wbcatt_split"


def usable_cells(frame: pd.DataFrame, open_test: bool) -> tuple[pd.DataFrame, int]:
    """The cells without WBCAtt's closed test split, and how many those are.

    Parameters
    ----------
    frame
        Cells that are not quarantined.
    open_test
        Keep them: for the one final measurement.
    """
    if WBCATT not in frame or open_test:
        return frame.reset_index(drop=True), 0
    closed = (frame[WBCATT].astype("string") == "test").fillna(False).to_numpy(bool)
    return frame[~closed].reset_index(drop=True), int(closed.sum())


def linked_cells(frame: pd.DataFrame) -> npt.NDArray[np.int64]:
    """For each cell the number of its group (patient, slide, field, near duplicates), from 0; a cell alone is a group."""
    unit = linked(frame, [name for name in GROUPS if name in frame and frame[name].notna().any()])
    return np.unique(unit, return_inverse=True)[1]


def split_for_scoring(
    frame: pd.DataFrame, seed: int, open_test: bool
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """For each cell ``choose``, ``score`` or ``""``, and the number of its group.

    WBCAtt's published split decides where it is known: ``train`` chooses, ``val`` is scored (with `open_test`: ``train`` and
    ``val`` choose, ``test`` is scored). All other groups of linked cells (patient, slide, field, near duplicates) go
    whole to one half, by a hash of the seed and their lowest cell_id. Scored cells whose group also holds a choosing cell
    are left out.
    """
    unit = linked_cells(frame)
    n = int(unit.max()) + 1 if len(unit) else 0
    published = frame[WBCATT].astype("string").fillna("").to_numpy(str) if WBCATT in frame else np.full(len(frame), "")
    choosing = np.isin(published, ["train", "val"] if open_test else ["train"])
    scoring = published == ("test" if open_test else "val")
    has_choosing, has_scoring = np.zeros(n, bool), np.zeros(n, bool)
    has_choosing[unit[choosing]] = True
    has_scoring[unit[scoring]] = True
    lowest = np.full(n, np.iinfo(np.int64).max)
    np.minimum.at(lowest, unit, frame["cell_id"].to_numpy(np.int64))
    half = np.array([hashlib.sha256(f"{seed}:{i}".encode()).digest()[0] % 2 == 0 for i in lowest], bool)
    group_part = np.where(has_choosing, "choose", np.where(has_scoring, "score", np.where(half, "choose", "score")))
    part = group_part[unit] if n else np.empty(0, dtype="<U6")
    return np.where(scoring & (part == "choose"), "", part), unit
