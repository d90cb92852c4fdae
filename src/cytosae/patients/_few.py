"""Patients with few cells: rarefaction to equal numbers, and shrinkage towards the other patients."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from cytosae._errors import CytosaeError, UsageError
from cytosae.patients._cohort import Cohort, Floats, Ints
from cytosae.patients._profiles import CellValues, ProfileRule, build_profiles, threshold_patients


@dataclass(frozen=True)
class Rarefaction:
    """How patients are brought to one number of cells."""

    n_cells: int
    """Cells drawn of every patient, without replacement; patients with fewer take no part."""
    n_draws: int = 100
    """Draws to average over."""
    seed: int = 0
    """Of the draws; a patient's draws depend on it and the patient's name alone."""

    def __post_init__(self) -> None:
        if self.n_cells < 1 or self.n_draws < 1:
            raise UsageError("A rarefaction needs n_cells and n_draws of 1 or more.")


def rarefied_profiles(cohort: Cohort, to: Rarefaction, rule: ProfileRule | None = None) -> Any:
    """Profiles as if every patient had the same number of cells.

    A mean share does not grow with the number of cells; how often a concept is met at all, and the largest code, do.

    Parameters
    ----------
    cohort
        From `read_cohort`.
    to
        The number of cells and draws.
    rule
        How profiles are counted; thresholds are those of all cells.

    Returns
    -------
    AnnData like that of `profile_patients` with ``X`` the share of the drawn cells that carry the concept, mean over
    draws; layers ``draw_sd`` (standard deviation between draws), ``presence`` (share of draws with any such cell) and
    ``max`` (largest code of the drawn cells, mean over all possible draws). NaN for a patient with fewer cells.

    Raises
    ------
    CytosaeError
        No patient has so many cells.
    """
    rule = rule or ProfileRule()
    if not (cohort.n_cells >= to.n_cells).any():
        raise CytosaeError(f"No patient has {to.n_cells} cells (the most is {cohort.n_cells.max()}); rarefy to fewer.")
    thresholds = CellValues(cohort.maximum, cohort.owner, len(cohort.patients)).thresholds(
        rule.quantile, threshold_patients(cohort)
    )
    shape = len(cohort.patients), cohort.maximum.shape[1]
    share, sd, presence, largest = np.full((4, *shape), np.nan)
    for patients, rows in cohort.blocks(1):
        if len(rows) < to.n_cells:
            continue
        i, some = patients[0], cohort.maximum[rows]
        over = (some.data > thresholds[some.indices]).astype(np.float64)
        carried = sp.csr_matrix((over, some.indices, some.indptr), shape=some.shape)
        drawn = (_draws(str(cohort.patients["patient"].iloc[i]), len(rows), to) @ carried).toarray()
        share[i], sd[i] = drawn.mean(0) / to.n_cells, drawn.std(0) / to.n_cells
        presence[i] = (drawn > 0).mean(0)
        largest[i] = _mean_maximum(some, to.n_cells)
    left_out = [str(v) for v in cohort.patients["patient"][cohort.n_cells < to.n_cells]]
    record = {"adjusted": "rarefied", "rarefied_to": to.n_cells, "n_draws": to.n_draws, "seed": to.seed,
              "patients_with_fewer_cells": left_out}  # fmt: skip
    return build_profiles(
        cohort, rule, share, thresholds, {"draw_sd": sd, "presence": presence, "max": largest}, record
    )


def _draws(patient: str, n: int, to: Rarefaction) -> sp.csr_matrix:
    """0/1 [n_draws, n]: the cells of each draw."""
    rng = np.random.Generator(np.random.Philox(key=[to.seed, 2**41 + zlib.crc32(patient.encode())]))
    picked = np.argsort(rng.random((to.n_draws, n)), axis=1)[:, : to.n_cells]
    ends = np.arange(to.n_draws + 1) * to.n_cells
    return sp.csr_matrix((np.ones(picked.size), picked.ravel(), ends), shape=(to.n_draws, n))


def _mean_maximum(values: sp.csr_matrix, k: int) -> Floats:
    """Mean over all choices of k of n cells of the largest value, [n_latents]; inactive cells count 0.

    The r-th smallest of n is the largest of a choice with chance C(r - 1, k - 1) / C(n, k).
    """
    from scipy.special import gammaln

    n = values.shape[0]
    rank = np.arange(1, n + 1)
    log = gammaln(np.maximum(rank, k)) - gammaln(k) - gammaln(np.maximum(rank - k, 0) + 1)
    whole = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    chance = np.where(rank >= k, np.exp(log - whole), 0.0)
    positive = values.data > 0
    value, column = values.data[positive].astype(np.float64), values.indices[positive]
    order = np.lexsort((value, column))
    value, column = value[order], column[order]
    count = np.bincount(column, minlength=values.shape[1])
    first = np.concatenate([[0], np.cumsum(count)[:-1]])
    at = n - count[column] + np.arange(len(column)) - first[column]  # rank from below, counted from 0
    return np.asarray(np.bincount(column, weights=value * chance[at], minlength=values.shape[1]), np.float64)


def shrunken_profiles(profiles: Any, patients: Ints | None = None) -> Any:
    """Profiles drawn towards their mean over patients, the more the fewer cells a patient has.

    Empirical Bayes: the carrying cells of a patient are binomial, their rate Beta(a, b) over the patients, and the profile
    becomes the posterior mean (k + a) / (n + a + b). Mean and spread of the Beta are fitted by moments, each patient
    weighing as much as it tells (J. C. Kleinman, Journal of the American Statistical Association 68, 1973, 46-54). Diagnoses
    are not looked at.

    Parameters
    ----------
    profiles
        AnnData from `profile_patients`.
    patients
        Rows the Beta is fitted on (the training patients of a fold); None: all with cells.

    Returns
    -------
    A copy with ``X`` shrunken, the layer ``share`` as it was, and in ``var`` ``prior_mean`` and ``prior_cells`` (a + b).

    Raises
    ------
    CytosaeError
        Fewer than two patients to fit on.
    """
    out = profiles.copy()
    share, n = np.asarray(profiles.X, np.float64), profiles.obs["n_cells"].to_numpy(np.float64)
    fit = np.flatnonzero(~np.isnan(share).any(1)) if patients is None else np.asarray(patients)
    if len(fit) < 2:
        raise CytosaeError("Shrinkage needs two patients with cells or more; use the profiles as they are.")
    mean, strength = beta_by_moments(share[fit], n[fit])
    out.layers["share"] = share
    with np.errstate(invalid="ignore"):
        kept = n[:, None] / (n[:, None] + strength)
    kept[:, np.isinf(strength)] = 0.0
    out.X = np.where(np.isnan(share), np.nan, kept * share + (1 - kept) * mean)
    out.var["prior_mean"], out.var["prior_cells"] = mean, strength
    record = json.loads(str(profiles.uns["cytosae"]))
    out.uns["cytosae"] = json.dumps({**record, "adjusted": "shrunken"}, sort_keys=True)
    return out


def beta_by_moments(share: Floats, n: Floats) -> tuple[Floats, Floats]:
    """Mean and a + b of the Beta from which the patients' rates come; a + b is infinite where they do not differ.

    Parameters
    ----------
    share
        [n_patients, n_concepts].
    n
        [n_patients]: cells.

    Notes
    -----
    Kleinman's two steps: moments with weights n give a first spread, weights n / (1 + spread (n - 1)) the second. With
    weights w, W = sum w and q = sum w (share - mean)^2, the expected q is mean (1 - mean) times
    (1 - spread) sum w (1 - w / W) / n + spread sum w (1 - w / W), where spread = 1 / (a + b + 1).
    """
    weight = np.repeat(n[:, None], share.shape[1], axis=1)
    for _ in range(2):
        total = weight.sum(0)
        mean = (weight * share).sum(0) / total
        q = (weight * (share - mean) ** 2).sum(0)
        free = weight * (1 - weight / total)
        within, between = (free / n[:, None]).sum(0), free.sum(0)
        variance = mean * (1 - mean)
        with np.errstate(divide="ignore", invalid="ignore"):
            spread = np.clip((q / variance - within) / (between - within), 0, 1)
        spread = np.where((variance > 0) & (between > within), spread, 0.0)
        weight = n[:, None] / (1 + spread * (n[:, None] - 1))
    with np.errstate(divide="ignore"):
        return mean, np.where(spread > 0, 1 / np.maximum(spread, 1e-300) - 1, np.inf)
