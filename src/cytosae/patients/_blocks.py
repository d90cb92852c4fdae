"""Blocks: patients of one batch, centre or age group, within whom alone diagnoses are compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cytosae._errors import UsageError, nearest
from cytosae.patients._cohort import Floats, Ints

#: So many values that count without a gap are codes of something.
_CODES = 20


def blocks_of(obs: pd.DataFrame, columns: Sequence[str], n_bins: int) -> Ints:
    """The block of each patient, counted from 0; all 0 where no column is blocked.

    Parameters
    ----------
    obs
        One row a patient.
    columns
        Every combination of their values is a block; an unknown value is a value of its own.
    n_bins
        A column of numbers with more values is cut into so many parts of equal size. Whole numbers that count without a gap from 0
        or 1 to at most `_CODES` are codes (of centres, batches), and not cut.

    Raises
    ------
    UsageError
        A column the patients do not have (it must be constant within each patient), or one of numbers that cannot be cut into so many parts.
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
            and not _are_codes(values)
        ):
            values = pd.qcut(values, n_bins, labels=False, duplicates="drop")
            if values.nunique() < n_bins:
                raise UsageError(
                    f"The numbers in {name!r} fall into {values.nunique()} parts instead of {n_bins}, since many patients share one value; where "
                    "they are codes, write them as words, else block by fewer parts."
                )
        text = values.astype(object)
        keys[name] = text.where(text.notna(), "").astype(str)
    if not columns:
        return np.zeros(len(obs), np.int64)
    return np.asarray(keys.groupby(list(columns), sort=True).ngroup(), np.int64)


def _are_codes(values: pd.Series[Any]) -> bool:
    """Whether numbers are 0, 1, 2, ... or 1, 2, 3, ... without a gap, at most `_CODES` of them."""
    found = np.unique(values.dropna().to_numpy(np.float64))
    first = found[0] if len(found) else -1
    return len(found) <= _CODES and first in (0, 1) and bool((found == first + np.arange(len(found))).all())


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
