"""Which exemplars are shown: not the same cell, field or patient again and again. The raw ranking is kept beside it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

#: Columns of which a value is shown once a concept, and how often one patient is shown.
ONCE, PATIENT_TWICE = ("near_duplicate_group", "source_field"), 2
#: Exemplars beyond this rank are kept but never shown.
_LOOKED_AT = 100


def shown_exemplars(cell_id: npt.NDArray[np.int64], frame: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Choose from the raw ranking, best first: one a near-duplicate group, one a source field, two a patient.

    Parameters
    ----------
    cell_id
        int64 [n_latents, n]: the raw ranking; -1 where empty.
    frame
        The cells; columns that it lacks, and cells without a value in them, limit nothing.

    Returns
    -------
    bool [n_latents, n]
    """
    shown = cell_id >= 0
    shown[:, _LOOKED_AT:] = False
    limits = [(name, 1) for name in ONCE] + [("patient", PATIENT_TWICE)]
    codes = [(codes_of(cell_id, frame, name), n) for name, n in limits if name in frame and frame[name].notna().any()]
    for rank in range(1, min(cell_id.shape[1], _LOOKED_AT)):
        for code, n in codes:
            mine = code[:, rank]
            before = ((code[:, :rank] == mine[:, None]) & shown[:, :rank]).sum(1)
            shown[:, rank] &= (mine < 0) | (before < n)
    return shown


def codes_of(cell_id: npt.NDArray[np.int64], frame: pd.DataFrame, column: str) -> npt.NDArray[np.int64]:
    """Number of the value that each cell has in a column, -1 for none: the shape of `cell_id`."""
    codes, _ = pd.factorize(frame[column].astype(object).where(frame[column].notna(), None), use_na_sentinel=True)
    return lookup(cell_id, frame["cell_id"].to_numpy(np.int64), codes)


def lookup(cell_id: npt.NDArray[np.int64], known: npt.NDArray[np.int64], value: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The `value` of every cell; -1 for a cell that is not among the `known` (ascending)."""
    if not len(known):
        return np.full(cell_id.shape, -1, np.int64)
    row = np.minimum(np.searchsorted(known, cell_id), len(known) - 1)
    return np.where(known[row] == cell_id, value[row], -1)
