"""Differential concepts: pairs, blocks, both parts of an effect, and tables of plots."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from small_cohorts import build, memory_cohort

from cytosae import CytosaeError
from cytosae.patients import (
    DifferentialConfig,
    ProfileRule,
    against_each_other,
    differential,
    profile_patients,
    sensitivity,
    volcano,
)
from cytosae.patients._blocks import blocks_of
from cytosae.patients._effects import blocked_interval, effect
from cytosae.patients._permute import Part, permutation_p

QUICK = DifferentialConfig(n_permutations=5_000, n_bootstrap=200)


def one(X, member, config, block=None):
    return permutation_p([Part(X)], member, config, block)[0]


def test_pairs_are_the_comparisons_of_two_diagnoses_alone():
    cohort = memory_cohort()
    profiles = profile_patients(cohort)
    table = differential(profiles, replace(QUICK, pairwise=True))
    assert table[["diagnosis", "against"]].drop_duplicates().to_numpy().tolist() == [
        ["simulated A", "simulated B"], ["simulated A", "simulated C"], ["simulated B", "simulated C"],
    ]  # fmt: skip
    X, names = np.asarray(profiles.X), cohort.classes
    for row in table.sample(20, random_state=0).itertuples():
        wanted = X[names == row.diagnosis, row.latent].mean() - X[names == row.against, row.latent].mean()
        assert row.effect == pytest.approx(wanted)
        assert (row.n_in, row.n_out) == (8, 8)
    two = profiles[names != "simulated B"].copy()
    alone = differential(two, QUICK)
    alone, mine = (t[t["diagnosis"] == "simulated A"] for t in (alone, table[table["against"] == "simulated C"]))
    assert np.allclose(mine["p"], alone["p"])


def test_with_blocks_the_exact_test_is_the_enumeration_within_them():
    rng = np.random.default_rng(0)
    X = rng.integers(0, 4, (9, 6)) / 4.0
    block = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2])
    inside = np.array([1, 1, 0, 0, 1, 0, 0, 1, 1], bool)  # block 2 has one side only
    found = one(X, inside[None], DifferentialConfig(), block)
    assert found.exact[0]
    assert (found.n == 18).all()
    whole = np.abs(effect(X, inside, block))
    count = np.zeros(6)
    for a in combinations(range(4), 2):
        for b in combinations(range(4, 7), 1):
            other = np.zeros(9, bool)
            other[[*a, *b, 7, 8]] = True
            count += np.abs(effect(X, other, block)) >= whole - 1e-9
    assert np.allclose(found.p[0], count / 18)
    drawn = one(X, inside[None], DifferentialConfig(exact_limit=1, n_permutations=20_000), block)
    assert np.abs(drawn.p - found.p).max() < 0.015


def test_the_blocked_effect_is_that_of_least_squares_with_one_intercept_a_block():
    rng = np.random.default_rng(1)
    block, inside = rng.integers(0, 3, 30), rng.random(30) < 0.4
    X = rng.random((30, 4)) + block[:, None]
    design = np.column_stack([inside, *(block == b for b in range(3))]).astype(float)
    assert np.allclose(effect(X, inside, block), np.linalg.lstsq(design, X, rcond=None)[0][0])
    low, high = blocked_interval(X, inside, block)
    assert ((low < effect(X, inside, block)) & (effect(X, inside, block) < high)).all()


def test_one_block_gives_the_interval_of_welch():
    rng = np.random.default_rng(2)
    X, inside = rng.random((12, 3)), np.arange(12) < 5
    low, high = blocked_interval(X, inside, np.zeros(12, int))
    variance = X[inside].var(0, ddof=1) / 5 + X[~inside].var(0, ddof=1) / 7
    from scipy import stats

    assert np.allclose((high - low) / 2, stats.t.ppf(0.975, 4) * np.sqrt(variance))


def test_intervals_within_blocks_cover_the_truth():
    rng = np.random.default_rng(3)
    X, inside, block = [], [], []
    for b, (n_in, n_out) in enumerate(((6, 3), (3, 6), (4, 4))):
        X += [rng.binomial(20, 0.3 + 0.1 * b, (n_in, 2000)) / 20, rng.binomial(20, 0.15 + 0.1 * b, (n_out, 2000)) / 20]
        inside += [True] * n_in + [False] * n_out
        block += [b] * (n_in + n_out)
    low, high = blocked_interval(np.concatenate(X), np.array(inside), np.array(block))
    assert 0.91 <= ((low <= 0.15) & (high >= 0.15)).mean() <= 0.99


def with_batch(seed: int = 0):
    """Two diagnoses that differ in nothing; seven eighths of one in a laboratory where 40 concepts are commoner."""
    cohort = memory_cohort(seed, n_patients=32, marked=0, n_classes=2)
    number = np.arange(32) // 2
    second = np.where(np.arange(32) % 2 == 0, number % 8 == 0, number % 8 != 0)
    values = cohort.maximum.toarray()
    extra = np.random.default_rng(seed).random((len(cohort.owner), 40)) < 0.5
    values[:, :40] += extra * second[cohort.owner][:, None] * 6
    patients = cohort.patients.assign(batch=np.where(second, "two", "one"))
    return build(patients, cohort.owner, values, cohort.labels, None)


def test_a_batch_is_not_reported_as_disease_once_blocked():
    profiles = profile_patients(with_batch())
    free, blocked = differential(profiles, QUICK), differential(profiles, replace(QUICK, block=("batch",)))
    assert free.loc[free["q"] < 0.05, "latent"].nunique() >= 20
    assert blocked.loc[blocked["q"] < 0.05, "latent"].nunique() <= 1
    assert (blocked["n_blocks"] == 2).all()


def test_what_is_wholly_confounded_is_unknown_and_not_nothing():
    cohort = memory_cohort()
    cohort.patients["batch"] = np.where(cohort.classes == "simulated C", "two", "one")
    table = differential(profile_patients(cohort), replace(QUICK, block=("batch",)), cohort=cohort)
    alone = table["diagnosis"] == "simulated C"
    assert table.loc[alone, ["effect", "low", "p", "q", "p_within"]].isna().all(axis=None)
    assert table.loc[~alone, ["effect", "p", "q"]].notna().all(axis=None)
    cohort.patients["batch"] = cohort.patients["diagnosis"]
    with pytest.raises(CytosaeError, match="cannot be told apart"):
        differential(profile_patients(cohort), replace(QUICK, block=("batch",)))
    with pytest.raises(CytosaeError, match="did you mean 'batch'"):
        differential(profile_patients(cohort), replace(QUICK, block=("bacth",)))


def test_numbers_are_cut_and_unknown_values_are_a_block_of_their_own():
    obs = pd.DataFrame({"age": [20.0, 30, 40, 50, 60, np.nan], "sex": ["f", "f", "m", "m", "f", "f"]})
    assert len(set(blocks_of(obs, ["age"], 2))) == 3
    assert len(set(blocks_of(obs, ["sex"], 2))) == 2
    assert len(set(blocks_of(obs, ["age", "sex"], 2))) == 5
    assert set(blocks_of(obs, [], 2)) == {0}


def test_stopping_early_gives_the_same_p_but_for_chance():
    rng = np.random.default_rng(4)
    X, inside = rng.normal(size=(30, 200)), (np.arange(30) < 9)[None]
    X[:9, :5] += 2
    full = one(X, inside, DifferentialConfig(n_permutations=20_000, stop_after=0))
    soon = one(X, inside, DifferentialConfig(n_permutations=20_000, stop_after=400))
    assert np.abs(full.p - soon.p).max() < 0.08
    assert np.array_equal(full.p[:, :5], soon.p[:, :5])
    assert soon.n.mean() < 5_000


def typed(seed: int, *, more_blasts: bool, vacuoles: bool):
    """Two diagnoses; blasts carry concept 1, half of them concept 2 where there are vacuoles, else a tenth."""
    cohort = memory_cohort(seed, n_patients=24, n_cells=40, marked=0, n_classes=2, n_latents=20)
    rng = np.random.default_rng(seed)
    inside = np.isin(cohort.owner, np.flatnonzero(cohort.classes == "simulated B"))
    blast = rng.random(len(inside)) < np.where(inside & more_blasts, 0.7, 0.3)
    values = cohort.maximum.toarray()
    values[:, 1] = blast * 5.0
    values[:, 2] = blast * (rng.random(len(inside)) < np.where(inside & vacuoles, 0.6, 0.1)) * 5.0
    labels = np.where(blast, "blast", "other").astype(object)
    return replace(cohort, maximum=sp.csr_matrix(values), labels=labels)


def parts(cohort, latent):
    table = differential(profile_patients(cohort, ProfileRule(quantile=0)), QUICK, cohort=cohort)
    return table[(table["latent"] == latent) & (table["diagnosis"] == "simulated B")].iloc[0]


def test_the_same_mixture_with_more_vacuoles_is_a_change_within_a_type():
    row = parts(typed(0, more_blasts=False, vacuoles=True), 2)
    assert row["q_within"] < 0.01
    assert row["p_composition"] > 0.05
    assert row["effect_within"] > 0.1 > abs(row["effect_composition"])


def test_another_mixture_is_composition_and_no_change_within():
    for latent in (1, 2):
        row = parts(typed(1, more_blasts=True, vacuoles=False), latent)
        assert row["q_composition"] < 0.01, latent
        assert not row["p_within"] < 0.05, latent


def test_rates_noisier_on_one_side_do_not_pass_for_a_change_within():
    """Four patients with many blasts against twenty with few: at most 15 of 100 at 5% (a chance below 1e-4)."""
    rng, hits = np.random.default_rng(5), 0
    inside = np.arange(24) < 4
    for _ in range(100):
        n = rng.binomial(40, np.where(inside, 0.35, 0.05))
        share = np.stack([n / 40, 1 - n / 40], 1)
        joint = np.stack([rng.binomial(n, 0.5), rng.binomial(40 - n, 0.02)], 1) / 40
        within = joint.sum(1) - share @ (joint.sum(0) / np.maximum(share.sum(0), 1e-9))
        config = DifferentialConfig(exact_limit=1, n_permutations=499)
        hits += permutation_p([Part(within[:, None], True)], inside[None], config)[0].p[0, 0] < 0.05
    assert hits <= 15


def test_plots_are_told_what_the_table_says():
    cohort = memory_cohort()
    table = differential(profile_patients(cohort), QUICK, cohort=cohort)
    points = volcano(table, "simulated C")
    assert points["latent"].iloc[0] == 0
    assert points["hit"].iloc[0]
    assert points["where"].iloc[0] in ("composition", "within")
    assert (points["height"] <= points["ceiling"] + 1e-9).all()
    plane = against_each_other(table, "simulated A", "simulated C")
    assert plane.set_index("latent").loc[0, "shared"] in ("second", "opposite")
    pairs = differential(profile_patients(cohort), replace(QUICK, pairwise=True))
    turned = volcano(pairs, "simulated C", "simulated A").set_index("latent")["effect"]
    assert np.allclose(
        turned, -volcano(pairs, "simulated A", "simulated C").set_index("latent")["effect"][turned.index]
    )
    with pytest.raises(CytosaeError, match="does not compare"):
        volcano(table, "simulated D")


def test_the_largest_code_finds_one_marker_cell_a_patient():
    cohort = memory_cohort(marked=1)
    profiles = profile_patients(cohort)
    table = differential(profiles, replace(QUICK, layer="max"))
    best = table[table["diagnosis"] == "simulated C"].sort_values("p").iloc[0]
    assert best["latent"] == 0
    assert best["effect"] == pytest.approx(best["mean_in"] - best["mean_out"])
    assert best["effect"] > 10
    with pytest.raises(CytosaeError, match="did you mean 'max'"):
        differential(profiles, replace(QUICK, layer="maxx"))


def test_two_marker_cells_in_forty_drown_at_the_default_quantile_and_are_found_by_the_largest_code_or_a_higher_one():
    cohort = memory_cohort(n_cells=40)
    rng = np.random.default_rng(0)
    values = cohort.maximum.toarray()
    values[:, 0] = rng.gamma(2.0, 1.0, len(values))  # a concept that every cell carries a little
    for patient in np.flatnonzero(cohort.patients["diagnosis"] == "simulated C"):
        values[np.flatnonzero(cohort.owner == patient)[:2], 0] += 20
    cohort = build(cohort.patients, cohort.owner, values, cohort.labels, cohort.tokens)

    def q(rule=None, **how):
        table = differential(profile_patients(cohort, rule), replace(QUICK, **how))
        return table.query("diagnosis == 'simulated C' and latent == 0")["q"].item()

    assert q() > 0.05
    assert q(layer="max") < 0.05
    assert q(ProfileRule(quantile=0.97)) < 0.05


def test_the_sensitivity_curve_meets_the_rule_at_its_own_quantile():
    curve = sensitivity(memory_cohort(n_latents=20), (0.0, 0.9), config=QUICK).set_index("quantile")
    assert curve.loc[0.9, "correlation"] == pytest.approx(1)
    assert curve.loc[0.9, "jaccard"] == 1
    assert curve.loc[0.9, "n_hits"] >= 1
    assert curve.loc[0.0, "mean_profile"] > curve.loc[0.9, "mean_profile"]
    assert curve.loc[0.0, "n_zero"] == 20
