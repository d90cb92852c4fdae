"""Profiles of patients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_cohorts import build, memory_cohort

from cytosae.patients import ProfileRule, profile_patients
from cytosae.patients._profiles import LAYERS, CellValues, read_profiles, write_profiles

QUANTILES = (0.0, 0.5, 0.9)


def rows(cohort, order):
    """The cohort with its cells (or some of them again) in another order."""
    tokens = None if cohort.tokens is None else cohort.tokens[order]
    return replace(
        cohort, owner=cohort.owner[order], maximum=cohort.maximum[order], mean=cohort.mean[order],
        patch_share=cohort.patch_share[order], labels=cohort.labels[order], tokens=tokens,
    )  # fmt: skip


def same(a, b):
    assert np.array_equal(a.X, b.X)
    assert np.array_equal(a.var["threshold"], b.var["threshold"])
    for name in LAYERS:
        assert np.array_equal(a.layers[name], b.layers[name]), name


@pytest.mark.parametrize("quantile", QUANTILES)
def test_duplicating_a_patients_cells_leaves_every_profile_unchanged(quantile):
    cohort = memory_cohort()
    cells = np.flatnonzero(cohort.owner == 4)
    twice = rows(cohort, np.concatenate([np.arange(len(cohort.owner)), cells, cells]))
    same(profile_patients(cohort, ProfileRule(quantile)), profile_patients(twice, ProfileRule(quantile)))


@pytest.mark.parametrize("quantile", QUANTILES)
def test_the_order_of_cells_changes_nothing(quantile):
    cohort = memory_cohort()
    order = np.random.default_rng(5).permutation(len(cohort.owner))
    same(profile_patients(cohort, ProfileRule(quantile)), profile_patients(rows(cohort, order), ProfileRule(quantile)))


@pytest.mark.parametrize("quantile", QUANTILES)
def test_profiles_equal_the_ten_lines_that_define_them(quantile):
    cohort = memory_cohort(n_patients=7, n_cells=9)
    profiles = profile_patients(cohort, ProfileRule(quantile))
    values = cohort.maximum.toarray().astype(float)
    for j in range(values.shape[1]):
        order = np.argsort(values[:, j])
        weight = np.cumsum((1 / cohort.n_cells[cohort.owner])[order])
        threshold = values[order, j][np.searchsorted(weight, quantile * 7 - 1e-6)] if quantile else 0.0
        assert profiles.var["threshold"].iloc[j] == threshold
        for i in range(7):
            mine = values[cohort.owner == i, j]
            assert profiles.X[i, j] == (mine > threshold).mean()
            assert profiles.layers["max"][i, j] == mine.max()
            assert profiles.layers["upper"][i, j] == np.quantile(mine, 0.9, method="inverted_cdf")
            assert profiles.layers["mean"][i, j] == pytest.approx(mine.mean() / 4, abs=1e-6)
            assert profiles.layers["patch_share"][i, j] == pytest.approx((mine > 0).mean() / 16, abs=1e-9)


def test_thresholds_do_not_see_patients_left_out():
    cohort = memory_cohort()
    train = np.arange(3, 24)
    values = cohort.maximum.toarray()
    noisy = values.copy()
    noisy[cohort.owner < 3] = np.random.default_rng(0).gamma(9, 9, (60, values.shape[1]))
    parts = [
        CellValues(build(cohort.patients, cohort.owner, v, cohort.labels, None).maximum, cohort.owner, 24)
        for v in (values, noisy)
    ]
    assert parts[0].thresholds(0.5, train).tobytes() == parts[1].thresholds(0.5, train).tobytes()


def test_a_patient_without_usable_cells_is_listed_with_an_unknown_profile():
    cohort = memory_cohort()
    without = rows(cohort, np.flatnonzero(cohort.owner != 5))
    profiles = profile_patients(without)
    assert profiles.n_obs == 24
    assert np.isnan(profiles.X[5]).all()
    assert all(np.isnan(profiles.layers[name][5]).all() for name in LAYERS)
    assert not np.isnan(np.delete(profiles.X, 5, 0)).any()
    assert '"patients_without_cells": ["p05"]' in profiles.uns["cytosae"]


def test_profiles_open_in_scanpy_with_unknown_text_kept_apart(tmp_path):
    scanpy = pytest.importorskip("scanpy")
    cohort = memory_cohort()
    cohort.patients.loc[2, "diagnosis"] = None
    write_profiles(tmp_path / "p.h5ad", profile_patients(cohort))
    data = scanpy.read_h5ad(tmp_path / "p.h5ad")
    assert data.shape == (24, 60)
    assert list(data.layers) == ["max", "mean", "patch_share", "upper"]
    assert data.obs["simulated"].all()
    scanpy.pp.pca(data, n_comps=3)
    back = read_profiles(tmp_path / "p.h5ad")
    assert back.obs["diagnosis"].iloc[2] is None
