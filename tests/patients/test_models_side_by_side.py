"""The models side by side: fixed folds, what may see what, calibration, the number of concepts."""

from __future__ import annotations

import json
import weakref
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import brier_score_loss
from small_cohorts import memory_cohort

from cytosae import CytosaeError
from cytosae.patients import MODELS, ClassifyConfig, Extras, PooledTokens, classify, read_fixed_folds
from cytosae.patients._calibration import brier, calibration_error, fit_temperature, reliability
from cytosae.patients._designs import Components, Fixed, Profiles, RawNeurons
from cytosae.patients._linear import fit_l1
from cytosae.patients._methods import most_different
from cytosae.patients._mil import mil_is_there
from cytosae.patients._plan import inner_parts
from cytosae.patients._pooled import DenseValues, ordered_keys
from cytosae.patients._solvers import lasso_path, softmax

QUICK = ClassifyConfig(n_repeats=1, n_folds=4, Cs=(1.0, 100.0), n_bootstrap=200, n_concepts=(1, 5))


def extras_of(cohort, seed=0) -> Extras:
    rng = np.random.default_rng(seed)
    tokens = cohort.tokens.astype(np.float32)
    marked = (cohort.maximum[:, [0]].toarray().ravel() > 15)[:, None]
    files = pd.DataFrame({"file_header": rng.choice(["JPEG q80", "JPEG q90"], len(tokens)),
                          "file_bytes": rng.integers(5_000, 9_000, len(tokens))})  # fmt: skip
    first = (tokens + 3 * marked).astype(np.float32)
    return Extras(PooledTokens(first, tokens, (tokens + 1).astype(np.float16), (tokens - 1).astype(np.float16)), files)


@pytest.fixture(scope="module")
def all_models():
    cohort = memory_cohort(marked=8)
    return cohort, classify(cohort, QUICK, extras=extras_of(cohort)).record


def test_every_model_whose_ingredient_is_there_is_in_the_table_and_the_others_are_named(all_models):
    record = all_models[1]
    there = set(record["models"]) | set(record["absent"])
    assert there == set(MODELS)
    assert set(record["absent"]) == (set() if mil_is_there() else {"attention_mil"})
    bare = classify(replace(memory_cohort(), tokens=None), replace(QUICK, n_concepts=())).record["absent"]
    assert set(bare) == {"class_token", "mean_tokens", "raw_neurons", "pca", "file_header", "attention_mil"}
    assert all(bare.values())


def test_better_is_said_only_where_the_whole_interval_lies_above_0(all_models):
    record = all_models[1]
    assert set(record["differences"]) == set(record["models"]) - {"concept_profile"}
    for scores in record["differences"].values():
        for d in scores.values():
            assert (d["verdict"] == "better") == (d["low"] > 0)
    assert record["best_baseline"] != "concept_profile_l1"


def test_a_planted_concept_is_the_one_chosen_inside_every_fold(all_models):
    one, five, every = all_models[1]["by_n_concepts"]
    assert (one["n"], five["n"], every["n"]) == (1, 5, None)
    assert one["chosen"][0] == {"latent": 0, "n_folds": 4}
    assert every["metrics"] == all_models[1]["models"]["concept_profile"]["metrics"]


def test_pooled_tokens_may_be_read_when_the_models_of_concepts_are_fitted():
    cohort, calls = memory_cohort(marked=8), []
    eager = extras_of(cohort)
    config = replace(QUICK, Cs=(10.0,))

    def later():
        calls.append(1)
        return eager.pooled

    read_later = classify(cohort, config, extras=Extras(later, eager.files))
    at_once = classify(cohort, config, extras=eager)
    assert json.dumps(read_later.record) == json.dumps(at_once.record)
    assert calls == [1]
    classify(cohort, replace(config, models=("concept_profile", "concept_profile_l1")), extras=Extras(later))
    assert calls == [1], "tokens are read though no model wants them"


def test_a_model_is_the_same_whichever_others_are_asked_for(all_models):
    cohort, record = all_models
    for names in (("pca",), ("n_cells", "raw_neurons"), ("composition", "class_token", "concept_profile_l1")):
        some = classify(cohort, replace(QUICK, models=names, n_concepts=()), extras=extras_of(cohort)).record
        for name in ("concept_profile", *names):
            assert some["models"][name] == record["models"][name], name
            assert some["predictions"][name] == record["predictions"][name], name


def test_what_one_model_is_made_of_is_gone_before_the_next_is_made(monkeypatch):
    alive, held = weakref.WeakSet(), []
    for cls in (Profiles, Fixed, RawNeurons, Components):

        def made(self, *args, before=cls.__init__):
            held.append(len(alive))
            alive.add(self)
            before(self, *args)

        monkeypatch.setattr(cls, "__init__", made)
    monkeypatch.setattr("cytosae.patients._classify.LARGE", 0)
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    cohort = memory_cohort()
    config = replace(QUICK, Cs=(10.0,), n_concepts=(), models=[m for m in MODELS if m != "attention_mil"])
    classify(cohort, config, extras=extras_of(cohort))
    assert held == [0] * 8


def test_noise_in_place_of_the_test_cells_changes_no_byte_of_any_model():
    cohort = memory_cohort()
    config = replace(QUICK, n_concepts=(), Cs=(10.0,))
    before = classify(cohort, config, extras=extras_of(cohort)).folds[0]
    test = cohort.patients["patient"].isin(before.test).to_numpy()[cohort.owner]
    noise = np.random.default_rng(4).normal(size=cohort.tokens.shape).astype(np.float32) * 9
    e = extras_of(cohort)
    pooled = PooledTokens(*(np.where(test[:, None], noise, part).astype(part.dtype)
                            for part in (e.pooled.class_token, e.pooled.mean, e.pooled.highest, e.pooled.lowest)))  # fmt: skip
    files = e.files.assign(file_bytes=np.where(test, 77, e.files["file_bytes"]))
    after = classify(cohort, config, extras=Extras(pooled, files)).folds[0]
    for name in ("concept_profile_l1", "class_token", "mean_tokens", "raw_neurons", "pca", "n_cells", "file_header"):
        assert after.models[name].to_bytes() == before.models[name].to_bytes(), name


def test_with_permuted_diagnoses_every_model_is_at_chance():
    names = ("concept_profile", "concept_profile_l1", "class_token", "raw_neurons", "pca")
    values = []
    for seed in range(6):
        cohort = memory_cohort(seed, marked=8)
        order = np.random.default_rng(seed + 50).permutation(24)
        cohort.patients["diagnosis"] = cohort.patients["diagnosis"].to_numpy()[order]
        config = replace(QUICK, seed=seed, models=names, n_concepts=(), Cs=(10.0,))
        models = classify(cohort, config, extras=extras_of(cohort, seed)).record["models"]
        values.append([models[m]["metrics"]["balanced_accuracy"]["value"] for m in names])
    assert np.abs(np.mean(values, axis=0) - 1 / 3).max() < 0.16  # 4 standard errors of 6 x 24 guesses


def test_folds_fitted_beside_one_another_give_the_same_bytes(monkeypatch):
    cohort = memory_cohort(marked=8)
    config = replace(QUICK, models=("mean_tokens", "majority"), Cs=(10.0,))
    alone = classify(cohort, config)
    monkeypatch.setattr("cytosae.patients._classify.LARGE", 0)
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    together = classify(cohort, config)
    assert json.dumps(alone.record) == json.dumps(together.record)
    for a, b in zip(alone.folds, together.folds, strict=True):
        assert a.models["mean_tokens"].to_bytes() == b.models["mean_tokens"].to_bytes()


# folds from files


def written(path, text):
    path.write_text(text)
    return path


def test_a_fold_column_tests_every_patient_once_in_its_fold(tmp_path):
    cohort = memory_cohort()
    rows = "".join(f"{p},{i // 3 % 2}\n" for i, p in enumerate(cohort.patients["patient"]))
    fixed = read_fixed_folds(written(tmp_path / "f.csv", "patient,fold\n" + rows))
    record = classify(cohort, replace(QUICK, models=("majority",), n_concepts=()), fixed=fixed).record
    assert [len(f["test"]) for f in record["folds"]] == [12, 12]
    assert record["folds"][1]["test"] == [f"p{i:02d}" for i in range(24) if i // 3 % 2 == 1]
    assert record["protocol"]["folds_from"]["name"] == "f.csv"
    assert record["protocol"]["chosen_on"] == "inner folds of the training part"
    assert len(record["models"]["concept_profile"]["by_fold"]) == 2


def test_with_validation_patients_settings_are_chosen_on_them_and_test_patients_alone_are_scored(tmp_path):
    cohort = memory_cohort()
    which = ["train", "train", "val", "test"]
    rows = "".join(f"{p},{which[i // 3 % 4]}\n" for i, p in enumerate(cohort.patients["patient"][:21]))
    fixed = read_fixed_folds(written(tmp_path / "f.csv", "patient,set\n" + rows))
    record = classify(cohort, replace(QUICK, models=("majority",), n_concepts=()), fixed=fixed).record
    protocol = record["protocol"]
    assert (protocol["n_patients"], protocol["n_trained_on_only"]) == (3, 18)
    assert protocol["patients_left_out"] == ["p21", "p22", "p23"]
    assert protocol["chosen_on"] == "validation patients of each fold"
    fold = fixed.folds(list(cohort.patients["patient"]))[0]
    parts = inner_parts(fold, np.arange(24) % 3, 3, 0)
    assert [(p.tolist(), r.tolist()) for p, r in parts] == [(fold.train.tolist(), fold.val.tolist())]


@pytest.mark.shared
def test_the_published_folds_are_read_as_they_lie(tmp_path):
    from pathlib import Path

    pack = Path(__file__).resolve().parents[3] / "shared" / "data" / "aml_hehr" / "folds"
    if not pack.is_dir():
        pytest.skip("the data pack is not beside the repository")
    fixed = read_fixed_folds(pack)
    assert len(fixed.parts) == 5
    assert len(fixed.tested) == 43
    assert set(fixed.diagnoses.values()) == {"AML-CBFB-MYH11", "AML-NPM1", "AML-PML-RARA", "AML-RUNX1-RUNX1T1", "SCD"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("patient,group\np00,1\n", "must have the columns patient and fold"),
        ("patient,fold\np00,1\np00,2\n", "gives patient p00 twice"),
        ("patient,fold\np00,1\np01,1\n", "has one fold only"),
        ("patient,set\np00,train\np01,dev\n", "has the set 'dev'"),
        ("patient,set\np00,train\nx9,test\n", "has no test patient in this cohort"),
        ("patient,set\nx1,train\nx9,test\n", "names none of the cohort's patients"),
        (
            "patient,set\np00,train\np01,test\np02,train\np04,train\n",
            "trains on no patient of 'simulated B'|tests no patient",
        ),
        ("patient,fold\np00,\n", "without patient or fold"),
    ],
)
def test_folds_that_do_not_fit_are_refused_in_one_sentence(text, message, tmp_path):
    cohort = memory_cohort()
    with pytest.raises(CytosaeError, match=message):
        classify(cohort, QUICK, fixed=read_fixed_folds(written(tmp_path / "f.csv", text)))


# the parts


def test_the_lasso_fulfils_its_optimality_conditions_and_a_large_penalty_uses_nothing():
    rng = np.random.default_rng(0)
    Z, y = rng.normal(size=(60, 200)), np.arange(60) % 3
    Z[:, 0] += 2 * (y == 1)
    Z = (Z - Z.mean(0)) / Z.std(0)
    for W, b, penalty in lasso_path(Z, y, 3, (1.0, 0.6, 0.3)):
        gradient = (softmax(Z @ W.T + b) - np.eye(3)[y]).T @ Z / 60
        used = W != 0
        assert (np.abs(gradient) <= penalty * 1.02).all()
        assert np.allclose(gradient[used], -penalty * np.sign(W[used]), atol=0.02 * penalty)
    first, *_, last = fit_l1(Z, y, list("abc"), (1.0, 0.3), np.ones(200, bool), np.zeros(0))
    assert len(first.kept) == 0
    assert 0 in last.kept
    assert len(last.kept) < 60


def test_dense_values_are_counted_as_a_plain_quantile_would():
    rng = np.random.default_rng(1)
    owner = np.repeat(np.arange(5), 20)
    values = rng.normal(size=(100, 7)).astype(np.float16)
    keys = ordered_keys([values[:64], values[64:]], (7, 100))
    shares = DenseValues(keys, keys, owner, 5).shares(0.9, np.arange(5))
    by_patient = values.reshape(5, 20, 7)
    cut = np.sort(values, 0)[89]
    assert np.allclose(shares[:, :7], (by_patient > cut).mean(1))
    low = np.sort(values, 0)[10]
    assert np.allclose(shares[:, 7:], (by_patient < low).mean(1))
    assert np.allclose(shares.mean(0), 0.1)


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.97])
def test_values_sorted_once_are_counted_as_all_of_them_are_wherever_the_threshold_lies(quantile):
    rng = np.random.default_rng(3)
    n_cells = np.array([3, 40, 0, 25, 60, 1, 31])
    owner = np.repeat(np.arange(7), n_cells)
    values = rng.normal(size=(160, 6)) + 3 * (owner == 4)[:, None]  # one patient has nearly all of the highest values
    values[:, 2], values[:, 3] = np.round(values[:, 2]), 1.0
    keys = ordered_keys([values], (6, 160))
    other = ordered_keys([values - 1], (6, 160))
    plain, quick = DenseValues(keys, other, owner, 7), DenseValues(keys, other, owner, 7, 2 * (1 - 0.9))
    without = np.array([0, 1, 3, 6])
    assert quick._among_sorted(0, np.isin(np.arange(7), without) / np.maximum(n_cells, 1), 4.0, 2.0) is None
    for patients in (without, np.arange(7), np.array([4]), np.array([5])):
        expected = plain.shares(quantile, patients)
        assert np.array_equal(quick.shares(quantile, patients), expected, equal_nan=True)
        assert np.isnan(expected[2]).all()


def test_the_features_with_the_largest_f_are_kept():
    rng = np.random.default_rng(2)
    X, y = rng.normal(size=(30, 10)), np.arange(30) % 2
    X[:, 4] += 5 * y
    X[:, 7] += 2 * y
    keep = np.ones(10, bool)
    assert np.flatnonzero(most_different(X, y, keep, 2)).tolist() == [4, 7]
    keep[4] = False
    assert np.flatnonzero(most_different(X, y, keep, 1)).tolist() == [7]


def test_the_temperature_is_the_one_the_logits_were_multiplied_by():
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(4000, 3)) * 2
    y = np.array([rng.choice(3, p=p) for p in softmax(logits)])
    assert fit_temperature(logits, y) == pytest.approx(1, abs=0.1)
    assert fit_temperature(logits * 5, y) == pytest.approx(5, rel=0.1)
    P, once = softmax(logits), np.ones((1, 4000))
    assert calibration_error(P, y, once)[0] < 0.03 < calibration_error(softmax(logits * 5), y, once)[0]
    two = np.stack([1 - P[:, 0], P[:, 0]], 1)
    assert brier(two, (y == 0).astype(int), once)[0] == pytest.approx(2 * brier_score_loss(y == 0, P[:, 0]))
    assert sum(b["n"] for b in reliability(P, y)) == 4000


def test_the_record_is_plain_json_without_nan(all_models):
    json.dumps(all_models[1], allow_nan=False)


@pytest.mark.skipif(not mil_is_there(), reason="torchmil is not installed")
def test_attention_over_class_tokens_finds_marked_cells(all_models):
    attention = all_models[1]["models"]["attention_mil"]
    assert attention["metrics"]["auroc"]["value"] > 0.6
    assert len(attention["steps_chosen"]) == 4
