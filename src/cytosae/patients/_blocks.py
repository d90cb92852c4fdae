"""Blocks: patients of one batch, centre or age group, within whom alone diagnoses are compared."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from cytosae._errors import UsageError, nearest
from cytosae.patients._cohort import Floats, Ints


def blocks_of(obs: pd.DataFrame, columns: Sequence[str], n_bins: int) -> Ints:
    """The block of each patient, counted from 0; all 0 where no column is blocked.

    Parameters
    ----------
    obs
        One row a patient.
    columns
        Every combination of their values is a block; an unknown value is a value of its own.
    n_bins
        A column of numbers with more values is cut into so many parts of equal size.

    Raises
    ------
    UsageError
        A column the patients do not have; it must be constant within each patient.
    """
    keys = pd.DataFrame(index=np.arange(len(obs)))
    for name in columns:
        if name not in obs.columns:
            raise UsageError(
                f"The patients have no column {name!r}{nearest(name, obs.columns)}; what is blocked must be in the "
                "cells table, with one value a patient."
            )
        values = obs[name].reset_index(drop=True)
        if (
            pd.api.types.is_numeric_dtype(values)
            and not pd.api.types.is_bool_dtype(values)
            and values.nunique() > n_bins
        ):
            values = pd.qcut(values, n_bins, labels=False, duplicates="drop")
        text = values.astype(object)
        keys[name] = text.where(text.notna(), "").astype(str)
    if not columns:
        return np.zeros(len(obs), np.int64)
    return np.asarray(keys.groupby(list(columns), sort=True).ngroup(), np.int64)


def informative(block: Ints, inside: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Which blocks have patients on both sides, bool [n_blocks] (of those that occur, in order)."""
    _, at = np.unique(block, return_inverse=True)
    n_in, n = np.bincount(at, weights=inside), np.bincount(at)
    return np.asarray((n_in > 0) & (n_in < n))


def centre(values: Floats, block: Ints) -> Floats:
    """Values [n] or [n, m] less their mean within each block."""
    out = np.array(values, np.float64)
    for b in np.unique(block):
        out[block == b] -= out[block == b].mean(0)
    return out
