"""Cohorts in full: sizes, rare shares, another make-up within a label, reuse, noise, and batches rendered into pictures."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from small_cohorts import SPEC

from cytosae import CytosaeError
from cytosae.cells import ImageReader, decode_image, read_cells, select, write_cells
from cytosae.cli._main import run
from cytosae.patients import BatchSpec, draw_cohort, parse_spec, simulate_cohort
from cytosae.patients._noise import shared_out
from cytosae.patients._render import apply_batch
from cytosae.storage import hash_file


def changed(first: dict | None = None, **top) -> dict:
    spec = json.loads(json.dumps(SPEC)) | top
    spec["diagnoses"][0] |= first or {}
    return spec


def draw(on_disk, spec, seed=0) -> pd.DataFrame:
    return draw_cohort(parse_spec(spec), read_cells(on_disk.cells), seed)


def test_patients_may_have_between_so_few_and_so_many_cells(on_disk):
    frames = [draw(on_disk, changed(cells_per_patient=[4, 30], reuse=True), seed) for seed in range(10)]
    sizes = np.concatenate([f.groupby("patient").size() for f in frames])
    assert sizes.min() >= 4
    assert sizes.max() <= 30
    assert np.median(sizes) == pytest.approx(np.sqrt(4 * 30), rel=0.2), "evenly on a logarithmic scale"
    assert len(set(sizes)) > 10


def test_a_rare_type_may_be_a_share_of_each_patient_and_one_cell_at_least(on_disk):
    spec = changed({"fixed": {"fine_label": {"rare": 0.2}}}, cells_per_patient=[3, 12], reuse=True)
    frame = draw(on_disk, spec)
    mine = frame[frame["diagnosis"].str.contains(" A ")].groupby("patient")
    n, rare = mine.size(), (frame["fine_label"] == "rare").groupby(frame["patient"]).sum()
    assert (rare[n.index] == np.maximum(1, np.rint(0.2 * n))).all()


def test_the_make_up_of_a_label_changes_and_the_mixture_does_not(on_disk):
    def shares(within):
        spec = changed(
            {"mixture": {"basophil": 1, "neutrophil": 1}, "within": within}, reuse=True, cells_per_patient=20
        )
        spec["diagnoses"] = spec["diagnoses"][:1]
        frames = [draw(on_disk, spec, seed) for seed in range(30)]
        frame = pd.concat(frames)
        mine = frame[frame["label"] == "neutrophil"]
        return (frame["label"] == "neutrophil").mean(), (mine["half"] == "late").mean()

    cells = read_cells(on_disk.cells)
    frame = cells.frame.assign(half=np.where(cells.frame["cell_id"] % 2 == 0, "early", "late"))
    path = on_disk.folder / "halves.parquet"
    write_cells(path, frame, root=cells.root, inputs={}, config={})
    on_disk = type(on_disk)(path, on_disk.tokens, on_disk.sae, on_disk.folder)
    plain, changed_ = shares({}), shares({"neutrophil": {"half": {"late": 4, "early": 1}}})
    assert plain[0] == pytest.approx(0.5, abs=0.06)
    assert changed_[0] == pytest.approx(plain[0], abs=1e-9), "the same draw of labels"
    assert changed_[1] == pytest.approx(0.8, abs=0.06)


def test_cells_are_shared_between_patients_only_where_the_specification_says_so(on_disk):
    frame = draw(on_disk, changed(cells_per_patient=100, reuse=True))
    assert len(frame) == 1600
    assert frame["reused"].any()
    assert (frame["reused"] == frame["source_cell_id"].duplicated(keep=False)).all()
    assert not frame.duplicated(["patient", "source_cell_id"]).any()
    source = read_cells(on_disk.cells).frame
    assert frame["cell_id"].is_unique
    assert frame["cell_id"].min() > source["cell_id"].max(), "tokens of the source must not serve it by mistake"
    with pytest.raises(CytosaeError, match="free cells"):
        draw(on_disk, changed(cells_per_patient=100))


def test_noise_replaces_as_many_as_it_says_and_keeps_the_truth(on_disk):
    frame = draw(on_disk, changed(label_noise=0.25, diagnosis_noise=0.125))
    assert (frame["label"] != frame["true_label"]).mean() == 0.25
    first = frame.groupby("patient").first()
    assert (first["diagnosis"] != first["true_diagnosis"]).sum() == 2
    assert (frame.groupby("patient")["diagnosis"].nunique() == 1).all()
    clean = draw(on_disk, SPEC)
    assert (clean["label"] == frame["true_label"]).all(), "noise comes on top of the same draw"
    assert (clean["cell_id"] == frame["cell_id"]).all()


BATCHES = [{"name": "one", "share": {"A": 3, "B": 1}},
           {"name": "two", "share": {"A": 1, "B": 3}, "cast": [0.8, 1, 1], "blur": 1.5, "jpeg": 40, "scale": 1.25}]  # fmt: skip


def test_batches_are_confounded_with_diagnoses_as_stated(on_disk):
    first = draw(on_disk, changed(batches=BATCHES)).groupby("patient").first()
    table = pd.crosstab(first["diagnosis"], first["batch"])
    assert table.to_numpy().tolist() == [[6, 2], [2, 6]]
    even = draw(on_disk, changed(batches=[{"name": "x"}, {"name": "y"}])).groupby("patient").first()
    assert (pd.crosstab(even["diagnosis"], even["batch"]) == 4).all(axis=None)
    assert shared_out([1, 1, 1], 4).tolist() == [2, 1, 1]


@pytest.fixture
def pictures(tmp_path) -> Path:
    """160 small pictures with a label each."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "cell_id": np.arange(160),
            "label": rng.choice(["lymphocyte", "monocyte"], 160),
            "status": "ok",
            "dataset": "made",
        }
    )
    hashes = []
    for i in range(160):
        pixels = np.kron(rng.integers(60, 240, (6, 6, 3)), np.ones((8, 8, 1))).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        hashes.append(hash_file(tmp_path / f"{i}.png"))
    frame["image"], frame["sha256"] = [f"{i}.png" for i in range(160)], hashes
    for name in ("width", "height"):
        frame[name] = 48
    for name in ("mode", "patient", "diagnosis", "split", "mask", "reason"):
        frame[name] = None
    frame["um_per_px"] = 0.1
    write_cells(tmp_path / "cells.parquet", frame, root=str(tmp_path), inputs={}, config={})
    return tmp_path


SMALL = {"name": "small", "cells_per_patient": 5, "batches": BATCHES, "diagnoses": [
    {"code": c, "name": "made", "n_patients": 4, "mixture": {"lymphocyte": 1, "monocyte": 1}} for c in "AB"]}  # fmt: skip


def test_pictures_of_a_batch_are_real_files_that_look_as_stated(pictures, tmp_path):
    source = read_cells(pictures / "cells.parquet")
    cohort = simulate_cohort(parse_spec(SMALL), source, tmp_path / "out" / "c.parquet")
    frame, before = cohort.frame, source.frame.set_index("cell_id")
    reader, old = ImageReader(cohort.root), ImageReader(source.root)
    assert Path(cohort.root).name == "c-images"
    for row in frame.itertuples():
        new = decode_image(reader.read(row.image, row.sha256))
        was = decode_image(old.read(before.loc[row.source_cell_id, "image"])).pixels
        assert new.pixels.shape == was.shape
        assert row.rendered_from == before.loc[row.source_cell_id, "sha256"]
        if row.batch == "one":
            assert np.array_equal(new.pixels, was)
            assert row.um_per_px == 0.1
        else:
            assert new.header.startswith("JPEG q40")
            assert row.file_header == new.header
            assert new.pixels[..., 0].mean() < 0.9 * was[..., 0].mean()
            assert np.isnan(row.um_per_px)
    assert frame["mask"].isna().all()
    assert select(cohort, ["batch=two"])["patient"].nunique() == 4
    stamp = (tmp_path / "out" / "c-images" / "manifest.json").stat().st_mtime_ns
    (tmp_path / "out" / "c.parquet").unlink()
    again = simulate_cohort(parse_spec(SMALL), source, tmp_path / "out" / "c.parquet")
    assert (tmp_path / "out" / "c-images" / "manifest.json").stat().st_mtime_ns == stamp, "pictures are not made twice"
    assert again.hash == cohort.hash


def test_each_effect_does_what_it_is_called():
    pixels = np.kron(np.indices((6, 6)).sum(0)[..., None] % 2 * 200 + 20, np.ones((8, 8, 3))).astype(np.uint8)

    def made(**effects):
        return np.asarray(
            Image.open(io.BytesIO(apply_batch(pixels, BatchSpec("x", {}, **effects)))).convert("RGB"), int
        )

    assert np.array_equal(made(), pixels)
    assert np.abs(made(cast=(0.5, 1.0, 1.0))[..., 0] - pixels[..., 0] / 2).max() <= 0.5
    assert np.abs(np.diff(made(blur=2.0), axis=0)).max() < np.abs(np.diff(pixels.astype(int), axis=0)).max()
    assert 0 < np.abs(made(jpeg=20) - pixels).mean() < 60
    edges = [np.abs(np.diff(made(scale=s)[24, :, 0])).sum() for s in (0.5, 1.0, 2.0)]
    assert edges[0] > edges[1] > edges[2], "larger things mean fewer edges"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (changed(batches=[{"name": "x", "blurr": 1}]), "unknown key 'blurr' (did you mean 'blur'?)"),
        (changed(batches=[{"name": "x", "jpeg": 300}]), "a quality lies between 1 and 100"),
        (changed(batches=[{"name": "x", "cast": [1, 2]}]), "must be three factors"),
        (changed(batches=[{"name": "x", "share": {"A": 1}}]), "takes patients of diagnosis B"),
        (changed(batches=[{"name": "x", "share": {"C": 1}}]), "names the diagnosis 'C'"),
        (changed(batches=[{"name": "x"}, {"name": "x"}]), "two batches with one name"),
        (changed(cells_per_patient=[9, 4]), "the least comes first"),
        (changed(cells_per_patient=[2, 9]), "fixes 3 cells a patient, but cells_per_patient is 2"),
        (changed(label_noise=2), "must be a number from 0 to 1"),
        (changed(reuse="yes"), "it must be true or false"),
        (changed({"within": {"monocites": {"half": {"late": 1}}}}), "'monocites', which its mixture lacks"),
        (changed({"within": {"monocyte": {}}}), "one column a label"),
        (changed({"fixed": {"fine_label": {"rare": 1.5}}}), "must be a whole number"),
    ],
)
def test_a_wrong_specification_is_one_sentence(spec, words):
    with pytest.raises(CytosaeError) as error:
        parse_spec(spec)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_bare_yes_or_no_in_yaml_is_the_word():
    text = json.dumps(
        changed({"within": {"monocyte": {"half": {"YES": 4, "NO": 1}}}, "fixed": {"fine_label": {"YES": 1}}})
    )
    spec = parse_spec(yaml.safe_load(text.replace('"YES"', "yes").replace('"NO"', "no")))
    changed_one = next(d for d in spec.diagnoses if d.within)
    assert changed_one.within == {"monocyte": {"half": {"yes": 4, "no": 1}}}
    assert changed_one.fixed == {"fine_label": {"yes": 1}}


def test_the_command_line_says_that_tokens_are_to_be_extracted_anew(pictures, tmp_path, capsys):
    (tmp_path / "spec.json").write_text(json.dumps(SMALL))
    arguments = ["--cells", str(pictures / "cells.parquet"), "--out", str(tmp_path / "c.parquet")]
    assert run(["cohort", "simulate", str(tmp_path / "spec.json"), *arguments]) == 0
    assert "pictures of 2 batches in c-images, extract their tokens anew" in capsys.readouterr().out
