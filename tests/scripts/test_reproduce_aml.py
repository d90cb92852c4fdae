"""The AML table from raw images, on a small tree with the cohort's exact layout made of real cells: folders, folds, expert labels."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score

from cytosae import load_sae
from cytosae.cells import ImageParquet, bundled_path, read_cells
from cytosae.cli._main import run as cytosae_run
from cytosae.concepts import read_cells_by_concepts

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
#: diagnosis -> type of cell that its patients have more of
DIAGNOSES = {"AML-CBFB-MYH11": "eosinophil", "AML-NPM1": "monocyte", "AML-PML-RARA": "ig",
             "AML-RUNX1-RUNX1T1": "erythroblast", "SCD": "neutrophil"}  # fmt: skip
PARTS = ("train", "train", "val", "test")
#: the rare kind: one cell in every other patient
RARE = "platelet"


def script() -> Any:
    import reproduce_aml

    return reproduce_aml


@pytest.fixture(scope="module")
def small_aml(tmp_path_factory) -> Path:
    """Images, folds and a tiny weight file of DinoBloom's own format."""
    import publishers as made

    root, bundle, rng = tmp_path_factory.mktemp("aml"), ImageParquet(bundled_path()), np.random.default_rng(0)
    label, labelled = bundle.frame()["label"].to_numpy(), []
    for number, (diagnosis, more) in enumerate(DIAGNOSES.items()):
        for k in range(len(PARTS)):
            patient = f"{chr(65 + number)}X{chr(65 + k)}"
            folder = root / "AML_Hehr" / diagnosis / patient
            folder.mkdir(parents=True)
            other = rng.choice(np.flatnonzero(label == RARE) if (number + k) % 2 else np.flatnonzero(label != RARE))
            rows = [*rng.choice(np.flatnonzero(label == more), 3), rng.choice(np.flatnonzero(label != RARE)), other]
            for i, row in enumerate(rows):
                image = Image.open(io.BytesIO(bundle.read(int(row))[0] or b"")).convert("RGB").resize((144, 144))
                image.save(folder / f"{i:03d}.TIF", "TIFF", compression="tiff_lzw")
                labelled.append((len(labelled), label[row], label[row], patient, f"{i:03d}.TIF"))
    with (root / "AML_Hehr" / "single_cell_annotations.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("", "mll_annotation", "prediction", "ID", "im_tiffname"), *labelled])
    folds = root / "folds"
    for fold in range(5):
        (folds / f"data_fold_{fold}").mkdir(parents=True)
        order = [(fold + i) % 3 for i in range(3)]  # the test patient is the same in every fold
        for part in ("train", "val", "test"):
            rows = [(f"{chr(65 + n)}X{chr(65 + k)}", n) for n in range(5)
                    for k in range(4) if (PARTS[order[k]] if k < 3 else "test") == part]  # fmt: skip
            with (folds / f"data_fold_{fold}" / f"{part}.csv").open("w", newline="") as file:
                csv.writer(file).writerows([("patient_name", "labels"), *rows])
    names = "".join(f"{n},{i}\n" for i, n in enumerate(DIAGNOSES))
    (folds / "label_map.csv").write_text("label_name,label_id\n" + names)
    torch.save(made.dinobloom_pth(made.dino()), root / "DinoBloom-tiny.pth")
    return root


@pytest.fixture(scope="module")
def words(small_aml, tmp_path_factory) -> list[str]:
    """A call of the script that has run once."""
    out = tmp_path_factory.mktemp("out") / "run"
    words = [str(small_aml / "AML_Hehr"), str(small_aml / "DinoBloom-tiny.pth"), "--folds", str(small_aml / "folds"),
             "--out", str(out), "--recipe", "small", "--set", "expansion=2", "--set", "k=4",
             "--set", "presentations=20000", "--set", "batch=128", "--set", "warmup=10", "--heads", "3", "--n-folds", "2",
             "--repeats", "1", "--threads", "1"]  # fmt: skip
    assert script().main(words) == 0
    return words


def test_from_raw_images_to_one_table(words):
    run = Path(words[words.index("--out") + 1])
    record = json.loads((run / "aml_table.json").read_text())
    assert (record["n_cells"], record["n_patients"]) == (100, 20)
    published, repeated = record["protocols"]["published"], record["protocols"]["repeated"]
    assert published["protocol"]["method"] == "fixed folds from files"
    assert published["protocol"]["n_patients"] == 5  # the one fixed test set
    assert published["protocol"]["n_trained_on_only"] == 15
    assert published["dictionary"]["setting"] == "inductive"  # trained on patients of train and val alone
    assert repeated["dictionary"]["setting"] == "transductive"
    assert published["models"]["concept_profile"]["mean_over_folds"]["balanced_accuracy"] >= 0
    assert repeated["protocol"]["n_patients"] == 20
    assert {"concept_profile", "class_token", "mean_tokens", "raw_neurons", "file_header"} <= set(repeated["models"])
    assert "composition" in repeated["absent"]
    text = (run / "aml_table.md").read_text()
    assert "so not in a column above" in text
    assert "| tokens |" in text
    tokens = record["full_run"]["tokens"]["gigabytes"]
    assert tokens == pytest.approx(record["stages"]["tokens"]["bytes"] * 81_214 / 100 / 1e9)


def test_rare_cells_are_ranked_within_their_patients_from_images_to_the_printed_precision(words):
    run = Path(words[words.index("--out") + 1])
    rows = {row["annotation"]: row for row in json.loads((run / "aml_table.json").read_text())["rare_cells"]}
    rare = rows[RARE]
    assert (rare["n_patients"], rare["n_cells"], rare["chance"]) == (10, 10, pytest.approx(0.2))
    assert {p["n_cells"] for p in rare["by_patient"]} == {5}
    # the network is random, so the figure means little: but it is the right one
    matrix = read_cells_by_concepts(run / "index")
    frame = read_cells(run / "cells.parquet").frame.set_index("cell_id").loc[matrix.cell_ids]
    labels = pd.read_csv(Path(words[0]) / "single_cell_annotations.csv").set_index(["ID", "im_tiffname"])[
        "mll_annotation"
    ]
    for row in rare["by_patient"]:
        mine = np.flatnonzero(frame["patient"] == row["patient"])
        truth = [labels[row["patient"], Path(name).name] == RARE for name in frame["image"].iloc[mine]]
        values = matrix.maximum[mine][:, row["latent"]].toarray()[:, 0]
        assert row["average_precision"] == pytest.approx(average_precision_score(truth, values))
    mean = np.mean([row["average_precision"] for row in rare["by_patient"]])
    assert rare["average_precision_by_concept"] == pytest.approx(mean)
    assert 0.2 <= rare["average_precision_by_model"] <= 1
    text = (run / "aml_table.md").read_text()
    assert f"| {RARE} | 10 | 10 | {rare['average_precision_by_concept']:.2f} |" in text


def test_a_dictionary_on_disk_is_taken_in_place_of_training(words, tmp_path):
    run, out = Path(words[words.index("--out") + 1]), tmp_path / "run"
    where = words.index("--out") + 1
    call = [*words[:where], str(out), *words[where + 1 :], "--sae", str(run / "sae")]
    assert script().main(call) == 0
    record = json.loads((out / "aml_table.json").read_text())
    assert set(record["stages"]) == {"cells", "tokens", "index", "patients, published folds", "patients, repeated CV"}
    assert not (out / "sae").exists()
    before = json.loads((run / "aml_table.json").read_text())
    for name in ("published", "repeated"):  # the same dictionary, so the same table
        assert record["protocols"][name]["models"] == before["protocols"][name]["models"]
        assert record["protocols"][name]["dictionary"]["setting"] == before["protocols"][name]["dictionary"]["setting"]
    assert record["rare_cells"] == before["rare_cells"]


def test_the_published_checkpoint_is_taken_as_it_is(words, tmp_path, monkeypatch):
    """A pickle as the published program writes it goes through import, index and patients, under its own name."""
    run, out = Path(words[words.index("--out") + 1]), tmp_path / "run"
    ours = load_sae(run / "sae")
    config = type("ViTSAERunnerConfig", (), {"__module__": "src.sae_training.config"})
    given = config()
    given.__dict__ = {"d_in": ours.d_in, "d_sae": ours.n_latents, "block_layer": -2, "class_token": True}
    state = {"W_enc": ours.W_enc, "b_enc": ours.b_enc - 0.5, "W_dec": ours.W_dec, "b_dec": ours.b_dec}
    with monkeypatch.context() as patch:
        for name in ("src", "src.sae_training", "src.sae_training.config"):
            patch.setitem(sys.modules, name, SimpleNamespace(ViTSAERunnerConfig=config))
        torch.save(
            {"cfg": given, "state_dict": {k: v.detach().clone() for k, v in state.items()}}, tmp_path / "released.pt"
        )
    where = words.index("--out") + 1
    assert script().main([*words[:where], str(out), *words[where + 1 :], "--sae", str(tmp_path / "released.pt")]) == 0
    record = json.loads((out / "aml_table.json").read_text())
    assert set(record["stages"]) == {
        "cells",
        "tokens",
        "import",
        "index",
        "patients, published folds",
        "patients, repeated CV",
    }
    taken = load_sae(out / "sae")
    assert torch.equal(taken.W_dec, ours.W_dec)
    assert taken.activation == "relu"
    for name in ("published", "repeated"):
        assert "concept_profile" in record["protocols"][name]["models"]
        assert record["protocols"][name]["dictionary"]["setting"] == "unknown"


def test_make_hands_the_dictionary_on():
    call = [
        "make",
        "-n",
        "-o",
        ".venv/.set-up",
        "reproduce-aml",
        "AML_HEHR=images",
        "DINOBLOOM=w.pth",
        "FOLDS=f",
        "SAE=my sae",
    ]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=True)
    assert 'reproduce_aml.py "images" "w.pth" --sae "my sae" --folds "f" --out "runs/aml"' in done.stdout


def test_a_second_call_does_nothing_again(words, capsys):
    stages = Path(words[words.index("--out") + 1]) / "stages.json"
    before = stages.stat().st_mtime_ns
    assert script().main(words) == 0
    assert stages.stat().st_mtime_ns == before
    assert capsys.readouterr().err.count("is done") == 6


def test_new_patients_get_a_page_each_with_pictures_and_patches(words, small_aml, tmp_path, capsys):
    run = Path(words[words.index("--out") + 1])
    call = ["patients", "predict", str(run / "patients-repeated"), str(run / "index"), "--cells", str(run / "cells.parquet"),
            "--sae", str(run / "sae"), "--weights", words[1], "--reference", "SCD", "--out", str(tmp_path / "pages"), "--quiet"]  # fmt: skip
    assert cytosae_run(call) == 0
    line = capsys.readouterr().out
    assert "20 patients (AXA: AML-" in line
    assert "Research use only" in line
    record = json.loads((tmp_path / "pages" / "predictions.json").read_text())
    assert len(record["patients"]) == 20
    assert record["temperature"] > 0
    for patient in record["patients"]:
        assert sum(patient["probabilities"].values()) == pytest.approx(1)
        page = (tmp_path / "pages" / patient["page"]).read_text()
        assert "Research use only" in page
        assert f"What speaks for and against {patient['predicted']}" in page
        assert "http" not in page.replace("http://www.w3.org", "")  # self-contained
    assert 'class="outline' in page
    before = (tmp_path / "pages" / "manifest.json").stat().st_mtime_ns
    assert cytosae_run(call) == 0
    assert (tmp_path / "pages" / "manifest.json").stat().st_mtime_ns == before


def test_a_missing_folder_is_one_sentence(tmp_path, capsys):
    assert script().main([str(tmp_path / "nowhere"), str(tmp_path / "w.pth"), "--out", str(tmp_path / "run")]) == 2
    assert "nowhere does not exist; give the images" in capsys.readouterr().err
    assert script().main([str(tmp_path), str(tmp_path), "--folds", str(tmp_path), "--sae", str(tmp_path / "no")]) == 2
    assert "no does not exist; give the published checkpoint or an SAE folder" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
