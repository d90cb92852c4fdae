"""Differential concepts."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy import stats
from small_cohorts import memory_cohort

from cytosae import CytosaeError
from cytosae.patients import DifferentialConfig, differential, profile_patients
from cytosae.patients._effects import benjamini_hochberg, effect_interval
from cytosae.patients._permute import Part, permutation_p

QUICK = DifferentialConfig(n_permutations=5_000, n_bootstrap=200)


def one(X, member, config, block=None):
    return permutation_p([Part(X)], member, config, block)[0]


def test_the_exact_test_is_the_enumeration_by_hand():
    rng = np.random.default_rng(0)
    X = rng.integers(0, 4, (7, 5)) / 4.0
    member = np.array([[1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1, 1]], bool)
    found = one(X, member, DifferentialConfig())
    p = found.p
    assert found.exact.all()
    assert (found.n == 35).all()
    assert np.allclose(found.smallest, 1 / 35)
    for j in range(5):
        real = abs(X[:3, j].mean() - X[3:, j].mean())
        count = sum(
            abs(X[list(i), j].mean() - np.delete(X[:, j], i).mean()) >= real - 1e-9 for i in combinations(range(7), 3)
        )
        assert p[0, j] == count / 35 == p[1, j]


def test_random_permutations_agree_with_the_exact_test_and_never_give_zero():
    X = np.random.default_rng(1).normal(size=(12, 30))
    X[:6, 0] += 9
    member = (np.arange(12) < 6)[None]
    exact = one(X, member, DifferentialConfig())
    drawn = one(X, member, DifferentialConfig(exact_limit=10, n_permutations=20_000))
    assert not drawn.exact.any()
    assert (drawn.n == 20_000).all()
    assert drawn.smallest[0] == 1 / 20_001
    assert np.abs(exact.p - drawn.p).max() < 0.015
    assert exact.p[0, 0] == exact.smallest[0] == 2 / 924
    assert drawn.p.min() > 0


def test_q_values_are_those_of_benjamini_and_hochberg():
    p = np.random.default_rng(0).random(500) ** 2
    assert np.allclose(benjamini_hochberg(p), stats.false_discovery_control(p))


def test_a_concept_planted_in_one_diagnosis_comes_out_first_and_hardly_another():
    table = differential(profile_patients(memory_cohort()), QUICK)
    hits = table[table["q"] < 0.05]
    assert hits["latent"].nunique() <= 2  # 180 tests at 5% FDR may bring a false one
    best = hits.sort_values("p").iloc[0]
    assert (best["latent"], best["diagnosis"]) == (0, "simulated C")
    assert best["low"] > 0.02
    assert best["effect"] == pytest.approx(best["mean_in"] - best["mean_out"])
    assert (best["n_in"], best["n_out"]) == (8, 16)
    assert table["simulated"].all()


def test_under_permuted_diagnoses_hits_are_as_rare_as_promised():
    """Any hit at 5% FDR in at most 5% of null cohorts: of 40, more than 5 would happen with a chance below 1.5%."""
    any_hit = 0
    for seed in range(40):
        cohort = memory_cohort(seed)
        rng = np.random.default_rng(seed)
        cohort.patients["diagnosis"] = rng.permutation(cohort.patients["diagnosis"].to_numpy())
        table = differential(profile_patients(cohort), DifferentialConfig(n_permutations=20_000, n_bootstrap=100))
        any_hit += bool((table["q"] < 0.05).any())
    assert stats.binom.sf(5, 40, 0.05) < 0.015
    assert any_hit <= 5


def test_intervals_of_the_effect_cover_the_truth_with_eight_patients_a_side():
    rng = np.random.default_rng(3)
    inside, outside = rng.binomial(20, 0.25, (8, 2000)) / 20, rng.binomial(20, 0.1, (16, 2000)) / 20
    low, high = effect_interval(inside, outside, 1_000, 0)
    assert 0.91 <= ((low <= 0.15) & (high >= 0.15)).mean() <= 0.99


def test_an_effect_is_split_into_composition_and_within_types_without_remainder():
    cohort = memory_cohort()
    table = differential(profile_patients(cohort), QUICK, cohort=cohort)
    assert np.allclose(table["effect"], table["effect_composition"] + table["effect_within"], atol=1e-12)


def test_the_order_of_patients_changes_nothing():
    cohort = memory_cohort()
    profiles = profile_patients(cohort)
    order = np.random.default_rng(4).permutation(profiles.n_obs)
    table = differential(profiles, QUICK, cohort=cohort)
    assert table.equals(differential(profiles[order].copy(), QUICK, cohort=cohort))


def test_pure_composition_is_called_composition():
    cohort = memory_cohort(marked=0)
    rng = np.random.default_rng(0)
    inside = np.isin(cohort.owner, np.flatnonzero(cohort.classes == "simulated C"))
    cohort.labels[:] = np.where(rng.random(len(inside)) < np.where(inside, 0.6, 0.2), "blast", "other")
    values = cohort.maximum.toarray()
    values[:, 1] = (cohort.labels == "blast") * 5.0
    from dataclasses import replace

    import scipy.sparse as sp

    from cytosae.patients import ProfileRule

    cohort = replace(cohort, maximum=sp.csr_matrix(values))
    table = differential(profile_patients(cohort, ProfileRule(quantile=0)), QUICK, cohort=cohort)
    row = table[(table["latent"] == 1) & (table["diagnosis"] == "simulated C")].iloc[0]
    assert row["effect"] > 0.3
    assert row["effect_within"] == pytest.approx(0, abs=1e-12)


def test_without_labels_the_split_is_unknown_not_zero():
    cohort = memory_cohort()
    cohort.labels[3] = None
    table = differential(profile_patients(cohort), QUICK, cohort=cohort)
    assert table["effect_composition"].isna().all()


def test_one_diagnosis_alone_cannot_be_compared():
    cohort = memory_cohort()
    cohort.patients["diagnosis"] = "simulated A"
    with pytest.raises(CytosaeError, match="two or more"):
        differential(profile_patients(cohort), QUICK)
