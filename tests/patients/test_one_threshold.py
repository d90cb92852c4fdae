"""What a patient without a diagnosis, a code of numbers, a target of numbers and a side without spread must not change."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from small_cohorts import build, memory_cohort

from cytosae.cells import read_cells
from cytosae.concepts import ConceptIndex, index_concepts, indexed_cells, merge_indices
from cytosae.concepts._atlas import captions
from cytosae.evaluation import open_context
from cytosae.patients import (
    ClassifyConfig,
    FixedFolds,
    ProfileRule,
    classify,
    contributions,
    differential,
    hit_cells,
    profile_patients,
)
from cytosae.patients._blocks import blocks_of
from cytosae.sae import load_sae
from cytosae.tokens import TokenStore

QUICK = ClassifyConfig(n_folds=3, n_repeats=1, models=("concept_profile", "majority"), n_concepts=(1,), n_bootstrap=100)


def some_unknown():
    cohort = memory_cohort(0, n_patients=30)
    unknown = np.array([1, 7, 13, 19, 25, 28])
    patients = cohort.patients.astype({"diagnosis": object})
    patients.loc[unknown, "diagnosis"] = None
    codes = cohort.maximum.toarray()
    codes[np.isin(cohort.owner, unknown)] *= 2  # another stain, say
    return replace(cohort, patients=patients, maximum=sp.csr_matrix(codes)), unknown


def test_profiles_and_the_model_count_by_the_same_thresholds_where_patients_have_no_diagnosis():
    cohort, unknown = some_unknown()
    profiles = profile_patients(cohort)
    final = classify(cohort, QUICK).final
    assert np.array_equal(profiles.var["threshold"].to_numpy(), final.thresholds)
    assert not np.isnan(np.asarray(profiles.X)[unknown]).any()
    contributions(final, profiles, "p00")


def test_where_no_patient_has_a_diagnosis_all_set_the_thresholds():
    cohort, _ = some_unknown()
    nobody = replace(cohort, patients=cohort.patients.assign(diagnosis=None))
    assert (profile_patients(nobody).var["threshold"] > 0).any()


def test_published_folds_serve_another_target():
    cohort = memory_cohort(0, n_patients=30)
    names = list(cohort.patients["patient"])
    parts = tuple({n: "test" if i % 3 == f else "train" for i, n in enumerate(names)} for f in range(3))
    folds = FixedFolds("folds", parts, dict(zip(names, cohort.patients["diagnosis"], strict=True)))
    other = replace(cohort, patients=cohort.patients.assign(sex=["f", "m"] * 15), target="sex")
    assert classify(other, QUICK, fixed=folds).final.classes == ("f", "m")


@pytest.mark.parametrize("grades", [[1, 2], ["g1", "g2"]])
def test_the_cells_behind_a_hit_are_found_for_a_target_of_numbers_too(grades):
    cohort = memory_cohort(0, n_patients=30)
    codes = cohort.maximum.toarray()
    for i in range(1, 30, 2):
        codes[np.flatnonzero(cohort.owner == i)[:8], 5] = 30 + np.arange(8)
    other = replace(
        cohort, patients=cohort.patients.assign(grade=grades * 15), target="grade", maximum=sp.csr_matrix(codes)
    )
    profiles = profile_patients(other)
    table = differential(profiles)
    found = hit_cells(table[table["latent"] == 5], profiles, other)
    assert set(found["comparison"]) == {str(g) for g in grades}
    assert set(found["grade"]) == {grades[1]}  # the side that carries it


def test_codes_of_centres_are_blocks_and_not_cut():
    centres = [0] * 14 + [1] * 3 + [2] * 2 + [3]
    blocks = blocks_of(pd.DataFrame({"centre": centres}), ["centre"], 3)
    assert np.bincount(blocks).tolist() == [14, 3, 2, 1]
    ages = pd.DataFrame({"age": [20 + i for i in range(24)]})
    assert np.bincount(blocks_of(ages, ["age"], 3)).tolist() == [8, 8, 8]
    with pytest.raises(Exception, match=r"'dose' fall into 1 parts instead of 3.*write them as words"):
        blocks_of(pd.DataFrame({"dose": [0.0] * 18 + [1.5, 2.5, 3.5, 4.5]}), ["dose"], 3)


def test_sides_without_any_spread_are_no_more_certain_than_the_number_of_labellings_allows():
    # 7 against 7 patients of 20 cells, 5 and 17 of which carry the concept: what is left of the variance is rounding
    n, k = 7, 20
    owner, cell, group = np.repeat(np.arange(2 * n), k), np.tile(np.arange(k), 2 * n), np.repeat([0] * n + [1] * n, k)
    values = np.stack([np.where(group == 0, cell < a, cell < b) for a, b in ((5, 17), (3, 8), (1, 19))], 1).astype(
        float
    )
    patients = pd.DataFrame({"patient": [f"p{i:02d}" for i in range(2 * n)], "diagnosis": ["A"] * n + ["B"] * n, "n_cells": k,
                             "simulated": True})  # fmt: skip
    cohort = build(patients, owner, values, np.array(["x"] * len(owner), object), np.zeros((len(owner), 2)))
    table = differential(profile_patients(cohort, ProfileRule(quantile=0.0)), cohort=cohort)
    assert (table["p_within"] >= table["smallest_p"] * (1 - 1e-9)).all()
    assert table["p_within"].to_numpy() == pytest.approx(table["p"].to_numpy())


def test_a_merged_index_knows_its_cells(on_disk, tmp_path):
    cells, sae, store = read_cells(on_disk.cells), load_sae(on_disk.sae), TokenStore(on_disk.tokens)
    labels = ("basophil", "monocyte", "lymphocyte")
    parts = [index_concepts(cells, sae, tmp_path / n, store=store, where=[f"label={n}"]) for n in labels]
    two = merge_indices(parts[:2], cells, tmp_path / "two")
    found = indexed_cells(two, cells)
    assert set(found["label"]) == set(labels[:2])
    assert len(found) == two.n_cells
    three = merge_indices([two, parts[2]], cells, tmp_path / "three")
    assert set(indexed_cells(three, cells)["label"]) == set(labels)
    with pytest.raises(Exception, match="share cells"):
        merge_indices([three, parts[0]], cells, tmp_path / "four")
    alive = np.flatnonzero(two.concepts["n_cells_active"] >= 10)
    said = captions(two, cells, alive, np.zeros(len(alive), int))
    share = found["label"].value_counts(normalize=True)
    for row in said[said["column"] == "label"].itertuples():
        assert row.share_of_all == pytest.approx(share[row.value])
    context = open_context(
        tmp_path / "two", tmp_path / "card", cells=on_disk.cells, tokens=[on_disk.tokens], more=[on_disk.sae]
    )
    assert set(context.frame["label"]) == set(labels[:2])
    assert ConceptIndex(tmp_path / "two").manifest["config"]["wheres"] == [[f"label={n}"] for n in labels[:2]]
