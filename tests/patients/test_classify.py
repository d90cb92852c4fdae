"""Classification of patients, and one patient explained."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from sklearn import metrics
from sklearn.linear_model import LogisticRegression
from small_cohorts import build, memory_cohort

from cytosae import CytosaeError
from cytosae.patients import ClassifyConfig, classify, contributions, profile_patients
from cytosae.patients._linear import fit_l2
from cytosae.patients._scores import interval, patient_draws, score, verdict

FEW = ("mean_tokens", "composition", "majority")
QUICK = ClassifyConfig(n_repeats=2, n_folds=4, Cs=(1.0, 100.0), n_bootstrap=200, models=FEW, n_concepts=())


def test_noise_in_place_of_the_test_patients_cells_leaves_every_fitted_object_byte_identical():
    cohort = memory_cohort()
    values, rng = cohort.maximum.toarray(), np.random.default_rng(9)
    before = classify(cohort, QUICK).folds
    for chosen in (0, 3, 5):
        test = cohort.patients["patient"].isin(before[chosen].test).to_numpy()[cohort.owner]
        noisy, labels, tokens = values.copy(), cohort.labels.copy(), cohort.tokens.copy()
        noisy[test] = rng.gamma(5, 5, noisy[test].shape) * (rng.random(noisy[test].shape) < 0.8)
        labels[test], tokens[test] = "monocyte", rng.normal(size=tokens[test].shape) * 50
        after = classify(build(cohort.patients, cohort.owner, noisy, labels, tokens), QUICK).folds[chosen]
        assert after.test == before[chosen].test
        assert set(after.models) == {"concept_profile", "mean_tokens", "composition"}
        for name, model in after.models.items():
            assert model.to_bytes() == before[chosen].models[name].to_bytes(), name


def test_the_order_of_cells_changes_no_byte_of_the_record():
    cohort = memory_cohort()
    order = np.random.default_rng(2).permutation(len(cohort.owner))
    other = replace(
        cohort, owner=cohort.owner[order], maximum=cohort.maximum[order], mean=cohort.mean[order],
        patch_share=cohort.patch_share[order], labels=cohort.labels[order], tokens=cohort.tokens[order],
    )  # fmt: skip
    a, b = classify(cohort, QUICK), classify(other, QUICK)
    assert json.dumps(a.record, sort_keys=True) == json.dumps(b.record, sort_keys=True)
    assert a.final.to_bytes() == b.final.to_bytes()


def test_a_planted_concept_tells_its_diagnosis_from_the_others():
    cohort = memory_cohort(marked=8)
    record = classify(cohort, QUICK).record
    marked = record["models"]["concept_profile"]["per_class"]["simulated C"]["f1"]
    assert marked["value"] > 0.8
    assert record["differences"]["majority"]["macro_f1"]["verdict"] == "better"
    p = record["predictions"]["concept_profile"]
    assert len(p) == 24
    assert all(sum(row["probabilities"].values()) == pytest.approx(1) for row in p)
    assert record["simulated"] is True


def test_with_permuted_diagnoses_accuracy_is_at_chance():
    values = []
    for seed in range(20):
        cohort = memory_cohort(seed, marked=8)
        order = np.random.default_rng(seed + 100).permutation(24)
        cohort.patients["diagnosis"] = cohort.patients["diagnosis"].to_numpy()[order]
        config = replace(QUICK, n_repeats=1, seed=seed)
        models = classify(cohort, config).record["models"]
        values.append([models[m]["metrics"]["balanced_accuracy"]["value"] for m in ("concept_profile", "mean_tokens")])
    assert np.abs(np.mean(values, axis=0) - 1 / 3).max() < 0.09  # 4 standard errors of 20 x 24 guesses


def test_a_class_with_fewer_patients_than_folds_is_named_with_the_remedy():
    cohort = memory_cohort(n_patients=15)
    with pytest.raises(CytosaeError, match=r"'simulated A' has 5 patients .* 6 folds .* use --folds 5 or fewer"):
        classify(cohort, replace(QUICK, n_folds=6))
    cohort.patients.loc[[0, 3, 6, 9], "diagnosis"] = "simulated B"
    with pytest.raises(CytosaeError, match="has 1 patient with usable cells"):
        classify(cohort, QUICK)


def test_patients_without_cells_or_diagnosis_are_left_out_by_name():
    cohort = memory_cohort()
    keep = np.flatnonzero(cohort.owner != 5)
    cohort.patients.loc[7, "diagnosis"] = None
    cohort = replace(
        cohort, owner=cohort.owner[keep], maximum=cohort.maximum[keep], mean=cohort.mean[keep],
        patch_share=cohort.patch_share[keep], labels=cohort.labels[keep], tokens=cohort.tokens[keep],
    )  # fmt: skip
    record = classify(cohort, QUICK).record
    assert record["protocol"]["patients_left_out"] == ["p05", "p07"]
    assert record["protocol"]["n_patients"] == 22


def test_every_patient_is_tested_once_a_repetition_and_the_majority_is_a_constant_guess():
    record = classify(memory_cohort(), QUICK).record
    for repeat in range(2):
        tested = [p for f in record["folds"] if f["repeat"] == repeat for p in f["test"]]
        assert sorted(tested) == sorted(set(tested))
        assert len(tested) == 24
    majority = record["models"]["majority"]["metrics"]
    assert majority["balanced_accuracy"]["value"] == pytest.approx(1 / 3)
    assert majority["auroc"]["value"] == 0.5


def test_missing_baselines_are_said_to_be_missing():
    cohort = replace(memory_cohort(), tokens=None)
    cohort.labels[:] = None
    record = classify(cohort, QUICK).record
    assert set(record["models"]) == {"concept_profile", "majority"}
    assert set(record["absent"]) == {"mean_tokens", "composition"}


def test_scores_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    y = np.arange(30) % 3
    P = rng.dirichlet(np.ones(3), 30)
    P[:4] = P[4]  # ties
    s = score(P, y, np.ones((1, 30)))
    guess = P.argmax(1)
    assert s["macro_f1"][0] == pytest.approx(metrics.f1_score(y, guess, average="macro"))
    assert s["weighted_f1"][0] == pytest.approx(metrics.f1_score(y, guess, average="weighted"))
    assert s["balanced_accuracy"][0] == pytest.approx(metrics.balanced_accuracy_score(y, guess))
    assert s["auroc"][0] == pytest.approx(metrics.roc_auc_score(y, P, multi_class="ovr"))
    draws = patient_draws(y, 50, 0)
    assert (draws[0] == 1).all()
    drawn = np.repeat(np.arange(30), draws[7].astype(int))
    assert score(P, y, draws)["macro_f1"][7] == pytest.approx(metrics.f1_score(y[drawn], guess[drawn], average="macro"))
    assert score(P, y, draws)["auroc"][7] == pytest.approx(metrics.roc_auc_score(y[drawn], P[drawn], multi_class="ovr"))


def test_only_an_interval_above_zero_is_called_better():
    assert verdict({"low": 0.01, "high": 0.2}) == "better"
    assert verdict({"low": 0.0, "high": 0.2}) == "comparable"
    assert verdict({"low": -0.3, "high": -0.01}) == "worse"
    assert interval(np.array([1.0, *np.arange(101)]))["low"] == 2.5


@pytest.mark.parametrize("scaling", ["common", "standard"])
@pytest.mark.parametrize(
    ("n_classes", "n", "n_features"), [(2, 20, 50), (3, 20, 50), (5, 100, 160), (5, 450, 600), (5, 300, 40)]
)
def test_the_fit_in_the_span_of_the_patients_is_the_fit_in_all_features(n_classes, n, n_features, scaling):
    rng = np.random.default_rng(0)
    y = np.arange(n) % n_classes
    X = rng.random((n, n_features)) ** 3
    X[:, 0] += 0.3 * y
    Cs, new = [0.1, 3.0, 1e3, 1e5], rng.random((100, n_features)) ** 3
    models = fit_l2(X, y, list("abcde"[:n_classes]), Cs, np.ones(n_features, bool), np.zeros(n_features), scaling)
    Z = (X - models[0].centre) / models[0].scale
    assert (Z**2).sum(1).mean() == pytest.approx(1)
    for C, model in zip(Cs, models, strict=True):
        reference = LogisticRegression(
            C=2 * C if n_classes == 2 else C,
            solver="newton-cholesky" if n_features < 500 else "newton-cg",
            tol=1e-10,
            max_iter=1000,
        ).fit(Z, y)
        wanted = reference.predict_proba((new - model.centre) / model.scale)
        assert np.allclose(model.probabilities(new), wanted, atol=1e-4)


def test_the_order_of_the_penalties_changes_no_prediction():
    rng = np.random.default_rng(1)
    X, y = rng.random((60, 200)), np.arange(60) % 3
    Cs = [10.0, 0.1, 1e4, 1.0]
    keep, none = np.ones(200, bool), np.zeros(0)
    there = fit_l2(X, y, list("abc"), Cs, keep, none)
    alone = [fit_l2(X, y, list("abc"), [C], keep, none)[0] for C in Cs]
    for one, other in zip(there, alone, strict=True):
        assert np.allclose(one.probabilities(X), other.probabilities(X), atol=1e-4)


def test_what_speaks_for_and_against_adds_up_to_the_logit():
    cohort = memory_cohort(marked=8)
    profiles, model = profile_patients(cohort), classify(cohort, QUICK).final
    for patient in ("p00", "p02"):
        parts = contributions(model, profiles, patient)
        x = np.asarray(profiles.X)[[int(patient[1:])]]
        for k, name in enumerate(parts.classes):
            assert parts.table[name].sum() + parts.intercepts[k] == pytest.approx(model.logits(x)[0, k], abs=1e-9)
        assert parts.probabilities.sum() == pytest.approx(1)
    first = contributions(model, profiles, "p02").for_class("simulated C")
    assert first["latent"].iloc[0] == 0
    with pytest.raises(CytosaeError, match="There is no patient 'p2'"):
        contributions(model, profiles, "p2")
