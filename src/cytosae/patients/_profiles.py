"""Profiles: a patient described by the share of its cells in which each concept exceeds its threshold.

A concept's threshold is a quantile of its values over all cells, every patient weighing the same: a concept active in few
cells counts wherever it is active, a concept active everywhere counts where it is strong. The threshold looks at neither
the patients' names nor their diagnoses; in cross-validation it is taken from the training patients alone. The default was
chosen on cohorts simulated from the cells that trained the demo's dictionary, never on those the demo reports.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from cytosae._errors import UsageError
from cytosae.patients._cohort import Cohort, Floats, Ints
from cytosae.storage import created_by

KIND, VERSION = "profiles", 1
LAYERS = ("patch_share", "mean", "max", "upper")


@dataclass(frozen=True)
class ProfileRule:
    """How profiles are counted."""

    quantile: float = 0.9
    """A cell carries a concept when it is active and above this quantile of all cells' values; 0: any activity."""
    min_frequency: float = 0.01
    """Concepts whose mean profile over all patients lies below this, or above 1 less this, are not tested or fitted."""
    upper: float = 0.9
    """The layer ``upper`` is this quantile of a patient's own cells, inactive ones included."""

    def __post_init__(self) -> None:
        if not 0 <= self.quantile < 1:
            raise UsageError(f"The quantile {self.quantile} must lie between 0 and below 1.")
        if not 0 <= self.min_frequency < 0.5:
            raise UsageError(f"min_frequency {self.min_frequency} must lie between 0 and below 0.5.")
        if not 0 < self.upper < 1:
            raise UsageError(f"The quantile 'upper' is {self.upper}; it must lie between 0 and 1.")


class CellValues:
    """Positive values of all concepts, sorted once, so that thresholds for any set of patients cost one pass at most.

    Only columns in which enough cells are active are passed over: elsewhere the threshold is 0 and the profile known. Two
    numbers a positive value are kept, in the value's own type and the smallest integer that counts the patients.

    Parameters
    ----------
    maximum
        Sparse [n_cells, n_latents].
    owner
        int64 [n_cells]: patient of each cell.
    n_patients
        Number of patients.
    """

    def __init__(self, maximum: sp.csr_matrix, owner: Ints, n_patients: int) -> None:
        columns = sp.csr_matrix(maximum).tocsc()
        if (columns.data <= 0).any():
            columns.data = np.maximum(columns.data, 0)
            columns.eliminate_zeros()
        small = np.asarray(owner).astype(np.uint16 if n_patients < 2**16 else np.int32)
        self._values, self._ends = columns.data, columns.indptr[1:].astype(np.int64)
        self._owner = small[columns.indices]
        del columns
        self.n_latents = int(maximum.shape[1])
        self.n_patients = n_patients
        self.n_cells = np.bincount(owner, minlength=n_patients)
        divisor = np.where(self.n_cells > 0, self.n_cells, np.nan)
        self._active = np.empty((n_patients, self.n_latents))
        for j in range(self.n_latents):
            start, end = self._span(j)
            order = np.argsort(self._values[start:end])
            self._values[start:end] = self._values[start:end][order]
            self._owner[start:end] = self._owner[start:end][order]
            self._active[:, j] = np.bincount(self._owner[start:end], minlength=n_patients) / divisor

    def _span(self, j: int) -> tuple[int, int]:
        return int(self._ends[j - 1]) if j else 0, int(self._ends[j])

    def thresholds(self, quantile: float, patients: Ints | None = None) -> Floats:
        """Thresholds of the concepts, float64 [n_latents]; 0 where a concept is active in too few cells.

        The smallest value at or below which lie `quantile` of the cells, inactive ones (0) included; each of `patients`
        (all where None) weighs 1, shared by its cells. So duplicating a patient's cells changes nothing.
        """
        out = np.zeros(self.n_latents)
        if quantile == 0 or not len(self._values):
            return out
        chosen = np.zeros(self.n_patients)
        chosen[np.arange(self.n_patients) if patients is None else patients] = 1.0
        chosen[self.n_cells == 0] = 0.0
        weight = chosen / np.maximum(self.n_cells, 1)
        active = chosen[chosen > 0] @ self._active[chosen > 0]
        # weights are sums of 1/n: the tolerance keeps rounding from deciding which of two cells is the quantile
        wanted = active - chosen.sum() * (1 - quantile + 1e-7)
        for j in map(int, np.flatnonzero(wanted > 0)):
            start, end = self._span(j)
            running = np.cumsum(weight[self._owner[start:end]])
            place = min(int(np.searchsorted(running, wanted[j], side="left")), end - start - 1)
            out[j] = self._values[start + place]
        return out

    def shares(self, thresholds: Floats) -> Floats:
        """Profiles: share of each patient's cells above `thresholds`, [n_patients, n_latents]; NaN without cells."""
        out = self._active.copy()
        divisor = np.where(self.n_cells > 0, self.n_cells, np.nan)
        for j in map(int, np.flatnonzero(thresholds > 0)):
            start, end = self._span(j)
            first = start + int(np.searchsorted(self._values[start:end], thresholds[j], side="right"))
            out[:, j] = np.bincount(self._owner[first:end], minlength=self.n_patients) / divisor
        return out


def frequent(profiles: Floats, min_frequency: float) -> npt.NDArray[np.bool_]:
    """Concepts neither too rare nor everywhere over all patients given, whatever their diagnoses: bool [n_latents]."""
    overall = profiles.mean(0)
    return np.asarray((overall >= min_frequency) & (overall <= 1 - min_frequency) & (np.ptp(profiles, axis=0) > 0))


def profile_patients(cohort: Cohort, rule: ProfileRule | None = None) -> Any:
    """Describe every patient by concepts.

    Parameters
    ----------
    cohort
        From `read_cohort`.
    rule
        How to count. Thresholds are set on the patients whose target is known (on all where none is).

    Returns
    -------
    AnnData, patients x concepts, sorted by patient: ``X`` float64, the share of the patient's usable cells in which the
    concept exceeds its threshold; layers ``patch_share`` (share of active patches), ``mean`` (mean code over patches),
    ``max`` (largest code), ``upper`` (upper quantile of the cells' largest codes); all NaN for a patient without usable
    cells. ``obs``: the patients; ``var``: the concept table with ``threshold``, ``mean_profile``, ``tested`` and, where
    concepts are excluded, ``excluded``; ``uns["cytosae"]``: the record, as JSON.
    """
    rule = rule or ProfileRule()
    values = CellValues(cohort.maximum, cohort.owner, len(cohort.patients))
    thresholds = values.thresholds(rule.quantile, threshold_patients(cohort))
    shares = values.shares(thresholds)
    del values
    largest, upper = order_statistics(cohort, rule.upper)
    layers = {
        "patch_share": cohort.by_patient(cohort.patch_share),
        "mean": cohort.by_patient(cohort.mean),
        "max": largest,
        "upper": upper,
    }
    return build_profiles(cohort, rule, shares, thresholds, layers)


def threshold_patients(cohort: Cohort) -> Ints | None:
    """The patients on whom thresholds are set: those with a known target, as the model sets them; all (None) where there is none."""
    return cohort.judged if len(cohort.judged) else None


def build_profiles(
    cohort: Cohort, rule: ProfileRule, shares: Floats, thresholds: Floats, layers: dict[str, Floats],
    record: dict[str, Any] | None = None,
) -> Any:  # fmt: skip
    """The AnnData of profiles as `profile_patients` describes it; patients whose profile is NaN are not looked at."""
    import anndata

    has_profile = np.asarray(~np.isnan(shares).any(axis=1))
    judged = cohort.judged[has_profile[cohort.judged]]
    tested = frequent(shares[judged], rule.min_frequency) if len(judged) else np.zeros(shares.shape[1], bool)
    n_filtered = int((~tested).sum())
    var = cohort.concepts.copy()
    if cohort.excluded is not None:
        tested = tested & ~cohort.excluded
        var["excluded"] = cohort.excluded
    var["threshold"], var["tested"] = thresholds, tested
    var["mean_profile"] = shares[has_profile].mean(0) if has_profile.any() else np.nan
    var.index = pd.Index([str(i) for i in var["latent"]], name="concept")
    obs = cohort.patients.copy()
    obs["simulated"] = obs["simulated"].astype(bool) if "simulated" in obs else False
    obs.index = pd.Index(obs["patient"].astype(str), name="name")
    whole = {
        "kind": KIND, "version": VERSION, "created_by": created_by(), "semantics": "default", "target": cohort.target,
        "quantile": rule.quantile, "min_frequency": rule.min_frequency, "upper": rule.upper, **cohort.record,
        "n_concepts_filtered": n_filtered, "patients_without_cells": patients_without_cells(cohort), **(record or {}),
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return anndata.AnnData(X=shares, obs=_plain(obs), var=_plain(var), layers=layers,
                               uns={"cytosae": json.dumps(whole, sort_keys=True)})  # fmt: skip


def order_statistics(cohort: Cohort, quantile: float) -> tuple[Floats, Floats]:
    """Largest value of each patient's cells, and the smallest value at or below which lie `quantile` of them.

    Returns
    -------
    two float64 [n_patients, n_latents], of ``cohort.maximum``; NaN for a patient without cells
    """
    largest, upper = np.full((2, len(cohort.patients), cohort.maximum.shape[1]), np.nan)
    for patients, rows in cohort.blocks(1):
        if not len(rows):
            continue
        i, some = patients[0], cohort.maximum[rows]
        positive = some.data > 0
        value, column = some.data[positive], some.indices[positive]
        order = np.lexsort((value, column))
        value, column = value[order], column[order]
        names, first, count = np.unique(column, return_index=True, return_counts=True)
        largest[i] = upper[i] = 0.0
        largest[i, names] = value[first + count - 1]
        # rank from below, the inactive cells being the lowest
        rank = int(np.ceil(quantile * len(rows) - 1e-9)) - (len(rows) - count)
        there = rank > 0
        upper[i, names[there]] = value[(first + rank - 1)[there]]
    return largest, upper


def patients_without_cells(cohort: Cohort) -> list[str]:
    """Names of the patients of whom no cell could be used."""
    return [str(v) for v in cohort.patients["patient"][cohort.n_cells == 0]]


def write_profiles(path: Path, profiles: Any) -> None:
    """Write the AnnData file; the same profiles give the same content."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        profiles.write_h5ad(path, compression="gzip")


def read_profiles(path: Path | str) -> Any:
    """Read it back, unknown text as None again."""
    import anndata

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        profiles = anndata.read_h5ad(path)
    for table in (profiles.obs, profiles.var):
        for name in table.columns:
            if table[name].dtype == "category":
                text = table[name].astype(object)
                table[name] = text.where(text.notna() & (text != ""), None)
    return profiles


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    """Columns of types h5ad holds: text becomes categories, an unknown one the empty category."""
    for name in table.columns:
        if table[name].dtype == object or str(table[name].dtype) == "string":
            text = table[name].astype(object)
            table[name] = text.where(text.notna(), "").astype(str).astype("category")
    return table
