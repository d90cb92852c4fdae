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
LAYERS = ("patch_share", "mean", "max")


@dataclass(frozen=True)
class ProfileRule:
    """How profiles are counted."""

    quantile: float = 0.9
    """A cell carries a concept when it is active and above this quantile of all cells' values; 0: any activity."""
    min_frequency: float = 0.01
    """Concepts whose mean profile over all patients lies below this, or above 1 less this, are not tested or fitted."""

    def __post_init__(self) -> None:
        if not 0 <= self.quantile < 1:
            raise UsageError(f"The quantile {self.quantile} must lie between 0 and below 1.")
        if not 0 <= self.min_frequency < 0.5:
            raise UsageError(f"min_frequency {self.min_frequency} must lie between 0 and below 0.5.")


class CellValues:
    """Positive values of all concepts, sorted once, so that thresholds for any set of patients cost one pass.

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
        values = sp.coo_matrix(maximum)
        positive = values.data > 0
        row, column = values.row[positive].astype(np.int64), values.col[positive].astype(np.int64)
        data = values.data[positive].astype(np.float64)
        order = np.lexsort((data, column))
        self._values, self._column, self._owner = data[order], column[order], owner[row[order]]
        self.n_latents = int(maximum.shape[1])
        self.n_patients = n_patients
        self.n_cells = np.bincount(owner, minlength=n_patients)
        self._ends = np.searchsorted(self._column, np.arange(self.n_latents), side="right")

    def thresholds(self, quantile: float, patients: Ints | None = None) -> Floats:
        """Thresholds of the concepts, float64 [n_latents]; 0 where a concept is active in too few cells.

        The smallest value at or below which lie `quantile` of the cells, inactive ones (0) included; each of `patients`
        (all where None) weighs 1, shared by its cells. So duplicating a patient's cells changes nothing.
        """
        if quantile == 0 or not len(self._values):
            return np.zeros(self.n_latents)
        chosen = np.zeros(self.n_patients)
        chosen[np.arange(self.n_patients) if patients is None else patients] = 1.0
        chosen[self.n_cells == 0] = 0.0
        weight = (chosen / np.maximum(self.n_cells, 1))[self._owner]
        running = np.concatenate([[0.0], np.cumsum(weight)])
        start = running[np.concatenate([[0], self._ends[:-1]])]
        active = running[self._ends] - start
        # weights are sums of 1/n: the tolerance keeps rounding from deciding which of two cells is the quantile
        wanted = active - chosen.sum() * (1 - quantile + 1e-7)
        place = np.searchsorted(running[1:], start + wanted, side="left").clip(max=len(self._values) - 1)
        return np.where(wanted > 0, self._values[place], 0.0)

    def shares(self, thresholds: Floats) -> Floats:
        """Profiles: share of each patient's cells above `thresholds`, [n_patients, n_latents]; NaN without cells."""
        over = self._values > thresholds[self._column]
        flat = self._owner[over] * self.n_latents + self._column[over]
        count = np.bincount(flat, minlength=self.n_patients * self.n_latents).reshape(self.n_patients, self.n_latents)
        with np.errstate(invalid="ignore"):
            return np.asarray(count / np.where(self.n_cells > 0, self.n_cells, np.nan)[:, None])


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
        How to count.

    Returns
    -------
    AnnData, patients x concepts, sorted by patient: ``X`` float64, the share of the patient's usable cells in which the
    concept exceeds its threshold; layers ``patch_share`` (share of active patches), ``mean`` (mean code over patches),
    ``max`` (largest code); all NaN for a patient without usable cells. ``obs``: the patients; ``var``: the concept table
    with ``threshold``, ``mean_profile`` and ``tested``; ``uns["cytosae"]``: the record, as JSON.
    """
    import anndata

    rule = rule or ProfileRule()
    values = CellValues(cohort.maximum, cohort.owner, len(cohort.patients))
    thresholds = values.thresholds(rule.quantile)
    shares = values.shares(thresholds)
    has_cells = cohort.n_cells > 0
    largest = np.full(shares.shape, np.nan)
    for i in np.flatnonzero(has_cells):
        largest[i] = cohort.maximum[np.flatnonzero(cohort.owner == i)].max(0).toarray()[0]
    judged = cohort.judged
    tested = frequent(shares[judged], rule.min_frequency) if len(judged) else np.zeros(shares.shape[1], bool)
    var = cohort.concepts.copy()
    var["threshold"], var["tested"] = thresholds, tested
    var["mean_profile"] = shares[has_cells].mean(0) if has_cells.any() else np.nan
    var.index = pd.Index([str(i) for i in var["latent"]], name="concept")
    obs = cohort.patients.copy()
    obs["simulated"] = obs["simulated"].astype(bool) if "simulated" in obs else False
    obs.index = pd.Index(obs["patient"].astype(str), name="name")
    record = {
        "kind": KIND, "version": VERSION, "created_by": created_by(), "semantics": "default", "target": cohort.target,
        "quantile": rule.quantile, "min_frequency": rule.min_frequency, **cohort.record,
        "n_concepts_filtered": int((~tested).sum()), "patients_without_cells": patients_without_cells(cohort),
    }  # fmt: skip
    layers = {
        "patch_share": cohort.by_patient(cohort.patch_share),
        "mean": cohort.by_patient(cohort.mean),
        "max": largest,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return anndata.AnnData(X=shares, obs=_plain(obs), var=_plain(var), layers=layers,
                               uns={"cytosae": json.dumps(record, sort_keys=True)})  # fmt: skip


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
