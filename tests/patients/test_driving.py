"""Down to cells and patches: what drives a diagnosis, and whether rare cells come out on top."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.metrics import average_precision_score
from small_cohorts import memory_cohort

from cytosae import CytosaeError
from cytosae.cells import read_cells
from cytosae.patients import (
    ClassifyConfig,
    DifferentialConfig,
    average_precision,
    classify,
    concept_cells,
    concepts_chosen_elsewhere,
    contributions,
    differential,
    driving_cells,
    driving_patches,
    hit_cells,
    planted_concepts,
    precision_within_patients,
    profile_patients,
    read_annotations,
    read_cohort,
    score_annotations,
    strongest_patches,
)
from cytosae.sae import load_sae
from cytosae.tokens import TokenStore

QUICK = ClassifyConfig(n_repeats=1, n_bootstrap=100, n_folds=4, Cs=(1.0,))


def test_the_cells_and_the_intercept_add_up_to_the_logit():
    cohort = memory_cohort()
    model, profiles = classify(cohort, QUICK).final, profile_patients(cohort)
    for patient in ("p02", "p10"):
        whole = contributions(model, profiles, patient)
        for k, name in enumerate(model.classes):
            cells = driving_cells(model, cohort, patient, name)
            assert len(cells) == 20
            assert cells["contribution"].is_monotonic_decreasing
            assert cells["contribution"].sum() + model.intercepts[k] == pytest.approx(whole.logits[k], abs=1e-9)


def test_planted_cells_come_out_on_top_within_their_patients():
    cohort = memory_cohort()
    cohort_cells = np.flatnonzero(np.isin(cohort.owner, np.flatnonzero(cohort.classes == "simulated C")))
    planted = cohort.maximum[:, [0]].toarray()[:, 0] > 15
    model = classify(cohort, QUICK).final
    score = np.full(len(planted), np.nan)
    for patient in cohort.patients["patient"][cohort.classes == "simulated C"]:
        cells = driving_cells(model, cohort, patient, "simulated C")
        score[cells["row"]] = cells["contribution"]
        assert 0 in cells["latent"].iloc[:3].tolist()
    found = precision_within_patients(planted[cohort_cells], score[cohort_cells], cohort.owner[cohort_cells])
    assert len(found) == 8
    assert found["chance"].mean() == pytest.approx(3 / 20)
    assert found["average_precision"].mean() > 0.6


def test_patches_and_the_constant_add_up_to_their_cells(on_disk, study):
    cells, sae, store = read_cells(study[0]), load_sae(on_disk.sae), TokenStore(on_disk.tokens)
    cohort = read_cohort(study[1], cells)
    model = classify(cohort, QUICK).final
    name, patient = model.classes[1], "sim-B-03"
    best = driving_cells(model, cohort, patient, name).head(4)
    patches = driving_patches(model, cohort, patient, name, sae, store, n_cells=4)
    w = model.coefficients[1] / model.scale
    by_cell = patches.groupby("cell_id")["contribution"].sum()
    for row in best.itertuples():
        assert by_cell[row.cell_id] - w @ model.centre / 10 == pytest.approx(row.contribution)
    assert patches["patch"].between(0, 8).all()
    top = patches.iloc[0]
    token = next(iter(store.chunks(store.rows_of([int(top["cell_id"])]), 1, kind="patch")))[0]
    assert int(sae.encode(token.float())[:, int(top["latent"])].argmax()) == top["patch"]
    one = pd.DataFrame({"cell_id": [int(top["cell_id"])]})
    assert strongest_patches(one, int(top["latent"]), sae, store).tolist() == [top["patch"]]


def test_every_hit_leads_to_cells_of_the_patients_that_carry_it():
    cohort = memory_cohort()
    profiles = profile_patients(cohort)
    table = differential(profiles, DifferentialConfig(n_permutations=5_000, n_bootstrap=100))
    cells = hit_cells(table, profiles, cohort, n_cells=3)
    mine = cells[(cells["latent"] == 0) & (cells["comparison"] == "simulated C")]
    assert set(mine["diagnosis"]) == {"simulated C"}
    assert mine["patient"].nunique() == 8
    assert (mine["value"] > 15).all()
    assert mine.groupby("patient")["rank"].max().max() <= 3
    everyone = concept_cells(profiles, cohort, 0)
    assert everyone["profile"].is_monotonic_decreasing
    assert set(everyone["patient"].iloc[:8]) <= set(cohort.patients["patient"][cohort.classes == "simulated C"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("p99", "simulated C"), "no patient 'p99'"), (("p01", "simulated D"), "no class 'simulated D'")],
)
def test_a_wrong_name_is_one_sentence(arguments, words):
    cohort = memory_cohort()
    with pytest.raises(CytosaeError, match=words):
        driving_cells(classify(cohort, QUICK).final, cohort, *arguments)


def test_average_precision_is_that_of_scikit_learn_ties_included():
    rng = np.random.default_rng(0)
    for _ in range(20):
        positive, score = rng.random(60) < 0.2, rng.integers(0, 6, 60).astype(float)
        assert average_precision(positive, score) == pytest.approx(average_precision_score(positive, score))
    assert np.isnan(average_precision(np.zeros(3, bool), np.arange(3)))


def test_planted_concepts_are_fixed_on_cells_outside_of_the_cohort():
    rng = np.random.default_rng(0)
    is_type, mine = rng.random(400) < 0.1, np.arange(400) < 200
    values = rng.gamma(2, 1, (400, 30)) * (rng.random((400, 30)) < 0.4)
    values[is_type, 3] = 20.0
    values[is_type & mine, 4] = 20.0  # only in the cohort: must not count
    values[is_type & ~mine, 5] = 20.0
    table = planted_concepts(sp.csr_matrix(values), is_type, cohort_cells=mine)
    assert table["latent"].tolist() == [3, 5]
    every = [average_precision(is_type[~mine], values[~mine, j]) for j in range(30)]
    low = planted_concepts(sp.csr_matrix(values), is_type, least=0.15, cohort_cells=mine)
    assert sorted(low["latent"]) == [j for j in range(30) if every[j] >= 0.15]


def annotated(folder: Path, frame: pd.DataFrame) -> Path:
    table = pd.DataFrame({
        "mll_annotation": np.where(frame["fine_label"] == "rare", "faggot cell", "other"), "prediction": "x",
        "ID": frame["patient"], "im_tiffname": frame["image"].str.upper(),
    })  # fmt: skip
    table.to_csv(folder / "single_cell_annotations.csv")
    return folder / "single_cell_annotations.csv"


def test_expert_annotations_are_ranked_within_their_patients(study, tmp_path):
    cells = read_cells(study[0])
    cohort = read_cohort(study[1], cells)
    path = annotated(tmp_path, cells.frame)
    frame = cells.frame.set_index("cell_id").loc[cohort.cell_ids]
    scores = {"truth": (frame["fine_label"] == "rare").to_numpy(float), "rare": cohort.maximum[:, [4]].toarray()[:, 0]}
    table = (
        score_annotations(read_annotations(path), cells, cohort, scores).set_index(["score", "annotation"]).sort_index()
    )
    mine = table.loc[("truth", "faggot cell")]
    assert len(mine) == 8  # the patients who have both
    assert (mine["average_precision"] == 1).all()
    assert (mine["chance"] == 0.3).all()
    assert table.loc[("rare", "faggot cell"), "average_precision"].mean() > 0.9
    rare = concepts_chosen_elsewhere(read_annotations(path), cells, cohort, most=0.3)
    assert set(rare["annotation"]) == {"faggot cell"}
    assert (rare["latent"] == 4).all()  # the planted direction, for every patient from the others
    assert rare["average_precision"].tolist() == table.loc[("rare", "faggot cell"), "average_precision"].tolist()
    assert concepts_chosen_elsewhere(read_annotations(path), cells, cohort, most=0.01).empty
    (tmp_path / "no.csv").write_text("a,b\n1,2\n")
    with pytest.raises(CytosaeError, match="lacks the column 'ID'"):
        read_annotations(tmp_path / "no.csv")
    with pytest.raises(CytosaeError, match="No annotated cell"):
        score_annotations(read_annotations(path).assign(patient="?"), cells, cohort, scores)


@pytest.mark.shared
def test_the_annotations_of_the_cohort_can_be_read():
    path = Path(__file__).parents[3] / "shared" / "data" / "aml_hehr" / "single_cell_annotations.csv"
    if not path.is_file():
        pytest.skip("the shared data are not here")
    table = read_annotations(path)
    assert len(table) == 2471
    assert table["patient"].nunique() == 5
