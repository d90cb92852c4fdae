"""The AML table from raw images, on a small tree with the cohort's exact layout made of real cells."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cytosae.cells import ImageParquet, bundled_path
from cytosae.cli._main import run as cytosae_run

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
#: diagnosis -> type of cell that its patients have more of
DIAGNOSES = {"AML-CBFB-MYH11": "eosinophil", "AML-NPM1": "monocyte", "AML-PML-RARA": "ig",
             "AML-RUNX1-RUNX1T1": "erythroblast", "SCD": "neutrophil"}  # fmt: skip
PARTS = ("train", "train", "val", "test")


def script() -> Any:
    import reproduce_aml

    return reproduce_aml


@pytest.fixture(scope="module")
def small_aml(tmp_path_factory) -> Path:
    """Images, folds and a tiny weight file of DinoBloom's own format."""
    import publishers as made

    root, bundle, rng = tmp_path_factory.mktemp("aml"), ImageParquet(bundled_path()), np.random.default_rng(0)
    label = bundle.frame()["label"].to_numpy()
    for number, (diagnosis, more) in enumerate(DIAGNOSES.items()):
        for k in range(len(PARTS)):
            folder = root / "AML_Hehr" / diagnosis / f"{chr(65 + number)}X{chr(65 + k)}"
            folder.mkdir(parents=True)
            rows = [*rng.choice(np.flatnonzero(label == more), 3), *rng.choice(len(label), 2)]
            for i, row in enumerate(rows):
                image = Image.open(io.BytesIO(bundle.read(int(row))[0] or b"")).convert("RGB").resize((144, 144))
                image.save(folder / f"{i:03d}.TIF", "TIFF", compression="tiff_lzw")
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
    assert not (tmp_path / "run").exists()
