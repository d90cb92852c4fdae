"""The next patient: numbers that are exact, a warning where the patient is unlike the cohort, and refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
from small_cohorts import SPEC

from cytosae import CytosaeError
from cytosae.cells import Cells, read_cells, write_cells
from cytosae.concepts import ConceptIndex, index_concepts
from cytosae.patients import (
    ClassifyConfig,
    Likeness,
    parse_spec,
    predict_patients,
    prediction_record,
    read_patients,
    simulate_cohort,
    write_patients,
)
from cytosae.patients._solvers import softmax
from cytosae.reports._patient_page import _file_names
from cytosae.sae import load_sae
from cytosae.tokens import TokenStore


@pytest.fixture(scope="module")
def trained(on_disk, study, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "patients"
    protocol = ClassifyConfig(n_repeats=1, n_folds=4, n_bootstrap=100, models=("majority",), n_concepts=())
    return write_patients(study[1], read_cells(study[0]), out, sae=on_disk.sae, classification=protocol)


def indexed(on_disk, cells, out):
    index_concepts(cells, load_sae(on_disk.sae), out, store=TokenStore(on_disk.tokens), cells_matrix=True)
    return ConceptIndex(out)


@pytest.fixture(scope="module")
def new(on_disk, trained, tmp_path_factory):
    """Patients drawn anew, without diagnosis; and one whose cells are all of the rare type."""
    folder = tmp_path_factory.mktemp("new")
    cohort = simulate_cohort(parse_spec(SPEC), read_cells(on_disk.cells), folder / "drawn.parquet", seed=7)
    frame = cohort.frame.assign(diagnosis=None)
    frame.loc[frame["fine_label"] == "rare", "patient"] = "all rare"
    write_cells(folder / "new.parquet", frame, root=cohort.root, inputs={}, config={})
    cells = read_cells(folder / "new.parquet")
    return cells, indexed(on_disk, cells, folder / "index")


def test_contributions_add_up_to_the_logits_and_probabilities_are_calibrated(trained, new):
    found, _ = predict_patients(trained, new[1], new[0])
    temperature = trained.facts["temperature"]
    assert [p.patient for p in found] == sorted(p.patient for p in found)
    for p in found:
        e = p.explained
        assert np.allclose(e.table[list(e.classes)].sum().to_numpy() + e.intercepts, e.logits, atol=1e-9)
        assert np.allclose(p.probabilities, softmax(e.logits[None] / temperature)[0])
        assert p.labelled is None
        record = prediction_record(p)
        listed = sum(c[p.predicted] for c in record["contributions"])
        assert listed + record["contributions_of_the_others"][p.predicted] + record["intercepts"][p.predicted] == (
            pytest.approx(record["logits"][p.predicted])
        )
        json.dumps(record, allow_nan=False)


def test_a_training_patient_comes_back_as_it_was(trained, study):
    found, _ = predict_patients(trained, ConceptIndex(study[1]), read_cells(study[0]))
    profiles = trained.profiles
    for p, x, name in zip(found, np.asarray(profiles.X), profiles.obs["patient"], strict=True):
        assert p.patient == name
        assert np.array_equal(p.profile, x)
        assert p.similar[0][0] == name
        assert p.similar[0][2] == pytest.approx(0, abs=1e-6)


def test_a_patient_unlike_the_cohort_is_warned_of_and_training_patients_mostly_are_not(trained, new):
    found, likeness = predict_patients(trained, new[1], new[0])
    odd = next(p for p in found if p.patient == "all rare")
    assert odd.distance > likeness.threshold
    assert "unlike the training cohort" in odd.warnings[0]
    assert sum(p.distance > likeness.threshold for p in found) <= 5
    assert (likeness.own > likeness.threshold).mean() <= 0.07
    assert trained.facts["likeness"]["threshold"] == likeness.threshold


def test_the_distance_of_a_training_patient_is_taken_without_itself(trained):
    X = np.asarray(trained.profiles.X, np.float64)
    likeness = Likeness.of(trained.model, X)
    Z = (X[:, trained.model.kept] - trained.model.centre) / trained.model.scale
    own = [np.sort(np.linalg.norm(np.delete(Z, i, 0) - Z[i], axis=1))[:3].mean() for i in range(len(Z))]
    assert np.allclose(likeness.own, np.sort(own), atol=1e-6)


def test_what_is_unusual_is_measured_against_the_reference(trained, new):
    name = "simulated A (even)"
    odd = next(p for p in predict_patients(trained, new[1], new[0], reference=name)[0] if p.patient == "all rare")
    assert odd.unusual.n_patients == 8
    top = odd.unusual.table.iloc[0]
    assert top["latent"] == 4  # the direction of the rare type
    assert top["z"] > 3
    assert top["value"] > top["reference_highest"]
    with pytest.raises(CytosaeError, match=r"No training patient has the diagnosis 'simulated X'.*did you mean"):
        predict_patients(trained, new[1], new[0], reference="simulated X")


def test_an_index_by_another_dictionary_is_refused(on_disk, trained, new, tmp_path):
    from cytosae.sae._io import save_sae
    from cytosae.storage import commit_folder

    sae = load_sae(on_disk.sae)
    with commit_folder(tmp_path / "other", kind="sae", version=1, inputs={}, config={}) as (work, _):
        save_sae(work, sae, dict(sae.info))
    index_concepts(
        new[0], load_sae(tmp_path / "other"), tmp_path / "i", store=TokenStore(on_disk.tokens), cells_matrix=True
    )
    with pytest.raises(CytosaeError, match=r"another dictionary .* than the model"):
        predict_patients(trained, ConceptIndex(tmp_path / "i"), new[0])


def test_cells_without_patients_are_refused(on_disk, trained, new, tmp_path):
    frame = new[0].frame.assign(patient=None)
    write_cells(tmp_path / "c.parquet", frame, root=new[0].root, inputs={}, config={})
    cells: Cells = read_cells(tmp_path / "c.parquet")
    with pytest.raises(CytosaeError, match="The cells have no patients"):
        predict_patients(trained, indexed(on_disk, cells, tmp_path / "i"), cells)


def test_names_of_patients_never_leave_the_folder():
    assert _file_names(["a/../b", "a_.._b", "..", "index", "Ä b", "A_b"]) == [
        "a_.._b.html", "a_.._b-2.html", "patient.html", "index-2.html", "b.html", "A_b.html",
    ]  # fmt: skip


def test_a_folder_read_back_still_predicts(trained, new):
    again = read_patients(trained.manifest.folder)
    a, b = (predict_patients(t, new[1], new[0])[0] for t in (trained, again))
    assert all(np.array_equal(p.probabilities, q.probabilities) for p, q in zip(a, b, strict=True))
