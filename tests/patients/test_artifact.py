"""The `patients` folder, from a cohort's table, index and tokens on disk."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open
from small_cohorts import SPEC

import cytosae
from cytosae import CytosaeError
from cytosae.cells import read_cells, write_cells
from cytosae.cli._main import run
from cytosae.concepts import ConceptIndex, index_concepts, read_cells_by_concepts
from cytosae.patients import (
    VERSION,
    contributions,
    parse_spec,
    pool_tokens,
    read_cohort,
    read_patients,
    simulate_cohort,
)
from cytosae.patients._lineage import cells_seen
from cytosae.sae import load_sae
from cytosae.storage import hash_file, read_parquet_record, read_table, write_table
from cytosae.tokens import TokenStore


def arguments(on_disk, study, out, *more):
    cohort, index = study
    return ["patients", str(index), "--cells", str(cohort), "--tokens", str(on_disk.tokens), "--sae", str(on_disk.sae),
            "--out", str(out), "--repeats", "2", "--models", "none", "--quiet", *more]  # fmt: skip


@pytest.fixture(scope="module")
def made(on_disk, study, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "patients"
    assert run(arguments(on_disk, study, out)) == 0
    return out


def test_every_file_says_that_the_patients_are_simulated(made):
    patients = read_patients(made)
    assert patients.simulated
    assert patients.profiles.obs["simulated"].all()
    assert json.loads(patients.profiles.uns["cytosae"])["simulated"] is True
    assert patients.differential["simulated"].all()
    assert read_parquet_record(made / "differential.parquet")["config"]["simulated"] is True
    for name in ("classification.json", "model.json", "manifest.json"):
        assert json.loads((made / name).read_text())["simulated"] is True
    with safe_open(made / "model.safetensors", "numpy") as file:
        assert file.metadata()["simulated"] == "true"


def test_the_same_work_is_not_done_twice_and_a_second_run_gives_the_same_bytes(on_disk, study, made, tmp_path):
    before = (made / "manifest.json").stat().st_mtime_ns
    assert run(arguments(on_disk, study, made)) == 0
    assert (made / "manifest.json").stat().st_mtime_ns == before
    assert run(arguments(on_disk, study, tmp_path / "again")) == 0
    for name in ("differential.parquet", "classification.json", "model.json", "model.safetensors"):
        assert (made / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
    a, b = read_patients(made).profiles, read_patients(tmp_path / "again").profiles
    assert np.array_equal(a.X, b.X)


def test_the_tokens_of_a_cohort_are_read_once(on_disk, study, tmp_path, monkeypatch):
    asked = []
    chunks = TokenStore.chunks
    monkeypatch.setattr(
        TokenStore, "chunks", lambda self, rows, *a, **k: asked.append(len(rows)) or chunks(self, rows, *a, **k)
    )
    assert run(arguments(on_disk, study, tmp_path / "p", "--models", "mean_tokens,pca")) == 0
    assert asked == [read_patients(tmp_path / "p").manifest["n_cells"]]


@pytest.mark.parametrize("models", ["none", "composition,n_cells"])
def test_the_tokens_are_not_read_where_no_model_wants_them(on_disk, study, tmp_path, monkeypatch, models):
    def read(*_, **__):
        raise AssertionError("tokens were read")

    monkeypatch.setattr(TokenStore, "chunks", read)
    assert run(arguments(on_disk, study, tmp_path / "p", "--models", models)) == 0
    expected = {"none": set(), "composition,n_cells": {"composition", "n_cells"}}[models]
    assert set(read_patients(tmp_path / "p").classification["models"]) == {"concept_profile", "majority"} | expected


def test_a_folder_whose_comparisons_do_not_say_against_what_is_refused_in_a_sentence(made, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(made, old)
    table, record = read_table(old / "differential.parquet", "differential", VERSION)
    write_table(
        old / "differential.parquet", table.drop_columns(["against"]), kind="differential", version=VERSION,
        inputs=record["inputs"], config=record["config"],
    )  # fmt: skip
    manifest = json.loads((old / "manifest.json").read_text("utf-8"))
    file = old / "differential.parquet"
    manifest["files"]["differential.parquet"] |= {"bytes": file.stat().st_size, "sha256": hash_file(file)}
    (old / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(CytosaeError, match="run 'patients' again"):
        read_patients(old)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_tokens_pooled_into_files_are_those_pooled_in_memory_and_the_class_token_is_kept_as_stored(dtype, tmp_path):
    tokens = np.random.default_rng(0).normal(size=(150, 5, 6)).astype(dtype)

    class Store:
        d_in, token_kinds = 6, ["class", *["patch"] * 4]

        def part(self, kind):
            return slice(1, 5)

        def rows_of(self, cell_ids):
            return cell_ids

        def chunks(self, rows, size):
            for start in range(0, len(rows), size):
                yield torch.from_numpy(tokens[rows[start : start + size]]).float()

    Store.dtype = dtype
    order = np.random.default_rng(1).permutation(150)
    for cells in (order, order[:0]):
        at_once, in_files = pool_tokens(Store(), cells), pool_tokens(Store(), cells, tmp_path)
        for part in ("class_token", "mean", "highest", "lowest"):
            a, b = getattr(at_once, part), getattr(in_files, part)
            assert a.dtype == b.dtype
            assert np.array_equal(a, b), part
        assert at_once.class_token.dtype == dtype
        assert np.array_equal(at_once.class_token, tokens[cells, 0])
        assert np.array_equal(at_once.highest, tokens[cells, 1:].max(1).astype(np.float16))
        assert np.array_equal(at_once.mean, tokens[cells, 1:].mean(1, dtype=np.float64).astype(np.float32))


def test_pooled_tokens_lie_beside_the_result_and_go_with_the_run(on_disk, study, tmp_path, monkeypatch):
    seen = []

    def looked_at(store, cell_ids, folder):
        found = pool_tokens(store, cell_ids, folder)
        seen.append((folder.parent.parent, sorted(p.name for p in folder.iterdir())))
        return found

    monkeypatch.setattr("cytosae.patients._designs.pool_tokens", looked_at)
    assert run(arguments(on_disk, study, tmp_path / "p", "--models", "mean_tokens,raw_neurons,pca")) == 0
    assert seen == [(tmp_path, ["highest", "lowest", "mean"])]
    assert [p.name for p in tmp_path.iterdir()] == ["p"]
    assert not [p for p in (tmp_path / "p").rglob("*") if p.is_dir()]
    assert {"mean_tokens", "raw_neurons", "pca"} <= set(read_patients(tmp_path / "p").classification["models"])


def test_the_last_line_says_what_was_found_and_whether_the_dictionary_saw_the_cells(on_disk, study, tmp_path, capsys):
    assert run(arguments(on_disk, study, tmp_path / "p")) == 0
    line = capsys.readouterr().out
    assert "16 simulated patients" in line
    assert "dictionary: inductive" in line


def test_cells_seen_in_training_make_the_result_transductive(on_disk, tmp_path):
    spec = parse_spec(SPEC | {"from": []})
    cohort = simulate_cohort(spec, read_cells(on_disk.cells), tmp_path / "c.parquet")
    index_concepts(cohort, load_sae(on_disk.sae), tmp_path / "i", store=TokenStore(on_disk.tokens), cells_matrix=True)
    assert run(arguments(on_disk, (tmp_path / "c.parquet", tmp_path / "i"), tmp_path / "p")) == 0
    seen = read_patients(tmp_path / "p").classification["sae_saw_these_cells"]
    assert seen["setting"] == "transductive"
    assert seen["n_seen"] == int((cohort.frame["split"] == "train").sum()) > 0


def test_without_the_dictionary_it_is_unknown_whether_it_saw_the_cells(on_disk, study, tmp_path):
    line = [a for a in arguments(on_disk, study, tmp_path / "p") if a not in ("--sae", str(on_disk.sae))]
    assert run(line) == 0
    assert read_patients(tmp_path / "p").classification["sae_saw_these_cells"]["setting"] == "unknown"


def test_the_planted_type_is_found_from_pixels_to_patient(made):
    table = read_patients(made).differential
    best = table.sort_values(["p", "latent"]).iloc[0]
    assert best["q"] < 0.05
    assert best["latent"] == 4  # the direction of the rare type


def test_the_model_read_back_explains_a_patient_exactly(made):
    patients = read_patients(made)
    parts = contributions(patients.model, patients.profiles, "sim-B-01")
    x = np.asarray(patients.profiles.X)[[list(patients.profiles.obs["patient"]).index("sim-B-01")]]
    assert np.allclose(parts.logits, patients.model.logits(x)[0], atol=1e-9)


def test_a_patient_whose_cells_are_all_unreadable_is_listed_not_dropped(on_disk, tmp_path, capsys):
    cohort = simulate_cohort(parse_spec(SPEC), read_cells(on_disk.cells), tmp_path / "c.parquet")
    frame = cohort.frame.copy()
    frame.loc[frame["patient"] == "sim-A-02", ["status", "reason"]] = ["quarantined", "cut short"]
    write_cells(tmp_path / "d.parquet", frame, root=cohort.root, inputs={}, config={})
    cells = read_cells(tmp_path / "d.parquet")
    index_concepts(cells, load_sae(on_disk.sae), tmp_path / "i", store=TokenStore(on_disk.tokens), cells_matrix=True)
    assert run(arguments(on_disk, (tmp_path / "d.parquet", tmp_path / "i"), tmp_path / "p")) == 0
    assert "1 without usable cells: sim-A-02" in capsys.readouterr().out
    patients = read_patients(tmp_path / "p")
    row = patients.profiles.obs.loc["sim-A-02"]
    assert (row["n_cells"], row["n_quarantined"]) == (0, 10)
    assert np.isnan(patients.profiles["sim-A-02"].X).all()
    assert patients.classification["protocol"]["patients_left_out"] == ["sim-A-02"]
    assert patients.classification["patients_without_cells"] == ["sim-A-02"]


def test_an_index_over_another_table_or_other_tokens_is_refused(on_disk, study, tmp_path):
    cohort, index = study
    with pytest.raises(CytosaeError, match="not made over the table"):
        read_cohort(index, read_cells(on_disk.cells))
    two = read_cells(cohort).frame.assign(diagnosis=lambda f: f["label"])
    write_cells(tmp_path / "d.parquet", two, root=".", inputs={}, config={})
    cells = read_cells(tmp_path / "d.parquet")
    index_concepts(cells, load_sae(on_disk.sae), tmp_path / "i", store=TokenStore(on_disk.tokens), cells_matrix=True)
    with pytest.raises(CytosaeError, match="different values of 'diagnosis'; a patient has one"):
        read_cohort(tmp_path / "i", cells)
    with pytest.raises(CytosaeError, match=r"no column 'diagnose'.*did you mean 'diagnosis'"):
        read_cohort(tmp_path / "i", cells, target="diagnose")


def test_the_order_of_rows_in_the_table_changes_no_result(on_disk, study, made, tmp_path):
    cohort = read_cells(study[0])
    shuffled = cohort.frame.sample(frac=1, random_state=3)
    write_cells(tmp_path / "d.parquet", shuffled, root=cohort.root, inputs={}, config={})
    cells = read_cells(tmp_path / "d.parquet")
    index_concepts(cells, load_sae(on_disk.sae), tmp_path / "i", store=TokenStore(on_disk.tokens), cells_matrix=True)
    assert run(arguments(on_disk, (tmp_path / "d.parquet", tmp_path / "i"), tmp_path / "p")) == 0
    a, b = read_patients(made), read_patients(tmp_path / "p")
    assert a.differential.equals(b.differential)
    assert (made / "classification.json").read_bytes() == (tmp_path / "p" / "classification.json").read_bytes()
    assert (made / "model.safetensors").read_bytes() == (tmp_path / "p" / "model.safetensors").read_bytes()
    assert np.array_equal(a.profiles.X, b.profiles.X)


def test_a_dictionary_from_another_table_is_compared_image_by_image(on_disk, study):
    cells, index, table = read_cells(study[0]), ConceptIndex(study[1]), read_cells(on_disk.cells)
    seen = cells_seen(cells, index, on_disk.sae, table)
    assert (seen["setting"], seen["n_seen"], seen["how"]) == ("inductive", 0, "images compared by sha256")
    with pytest.raises(CytosaeError, match="not the one the dictionary was trained on"):
        cells_seen(cells, index, on_disk.sae, cells)


def test_flagged_concepts_are_left_out_and_comparisons_are_blocked_and_pairwise(on_disk, study, made, tmp_path, capsys):
    from test_few import technical

    before = read_patients(made)
    tested = np.flatnonzero(before.profiles.var["tested"])
    flags = technical(
        tmp_path, ConceptIndex(study[1]).manifest["inputs"]["sae"], len(before.profiles.var), tested[:2].tolist()
    )
    more = ("--exclude", str(flags), "--pairwise", "--layer", "max")
    assert run(arguments(on_disk, study, tmp_path / "p", *more)) == 0
    found = read_patients(tmp_path / "p")
    assert set(before.differential["latent"]) - set(found.differential["latent"]) == set(tested[:2])
    assert not set(tested[:2]) & set(np.arange(len(before.profiles.var))[found.model.kept])
    assert found.manifest["config"]["excluded_by"]
    assert set(found.differential["against"]) <= set(before.differential["diagnosis"])
    capsys.readouterr()
    assert run(arguments(on_disk, study, tmp_path / "q", "--block", "centre")) == 2
    assert "centre" in capsys.readouterr().err
    assert not (tmp_path / "q").exists()


def test_too_many_folds_end_in_one_sentence_and_leave_nothing_behind(on_disk, study, tmp_path, capsys):
    assert run(arguments(on_disk, study, tmp_path / "p", "--folds", "9")) == 1
    assert "has 8 patients with usable cells, but 9 folds" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_index_keeps_the_share_of_active_patches(on_disk, study):
    matrix = read_cells_by_concepts(study[1])
    store, sae = TokenStore(on_disk.tokens), load_sae(on_disk.sae)
    codes = sae.encode(store.read(store.rows_of(matrix.cell_ids[:3]), kind="patch").flatten(0, 1)).view(3, 9, -1)
    assert np.allclose(matrix.patch_share[:3].toarray(), (codes > 0).float().mean(1).numpy())
    assert np.shares_memory(matrix.patch_share.indices, matrix.maximum.indices), "one pattern is kept twice"


def test_the_public_names_are_there():
    for name in ("profile_patients", "differential", "classify"):
        assert callable(getattr(cytosae, name))
