"""A concept that knows the structure wins over its usual place; one that knows only the place does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from places import only, place_context, with_sae
from planted import N_LATENTS, D
from sklearn.metrics import average_precision_score

from cytosae.evaluation import Context
from cytosae.evaluation._bootstrap import draw_weights
from cytosae.evaluation._lesions import cut_out, paste
from cytosae.evaluation._localisation import Localisation
from cytosae.evaluation._masks import shares
from cytosae.evaluation._regions import COVERED, Images, best_overlap
from cytosae.sae import SparseAutoencoder


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    return place_context(tmp_path_factory.mktemp("places"))


@pytest.fixture(scope="module")
def measured(context: Context) -> dict[str, Any]:
    assert Localisation().missing(context) is None
    return Localisation().measure(context)


def comparison(measured: dict[str, Any], what: str) -> dict[str, Any]:
    return next(c for c in measured["comparisons"] if c["what"] == what)


def test_planted_concepts_find_nucleus_and_cytoplasm(measured: dict[str, Any]) -> None:
    for region, latent in (("nucleus", 0), ("cytoplasm", 1)):
        single = comparison(measured, f"{region}: best single concept, AP")
        assert single["dictionary"]["value"] > 0.99
        assert {c["name"]: c["verdict"] for c in single["controls"]}["prior"] == "better"
        row = next(r for r in measured["tables"][0]["rows"] if r[:2] == [region, "dictionary"])
        assert row[3].split(",")[0] == str(latent)
    assert comparison(measured, "nucleus: best single concept, IoU")["dictionary"]["value"] > 0.95


def test_a_concept_that_knows_only_the_place_gains_nothing(context: Context) -> None:
    measured = Localisation().measure(with_sae(context, only([3])))
    for what in ("best single concept, AP", "union of up to 5, AP"):
        found = comparison(measured, f"nucleus: {what}")
        prior = next(c for c in found["controls"] if c["name"] == "prior")
        assert prior["verdict"] != "better"
        assert prior["difference"]["value"] <= 1e-9


def test_a_random_dictionary_is_not_praised(context: Context) -> None:
    R = torch.nn.functional.normalize(torch.randn(N_LATENTS, D, generator=torch.Generator().manual_seed(7)), dim=1)
    sae = SparseAutoencoder(R.T.contiguous(), torch.full((N_LATENTS,), -1.0), R, torch.full((D,), 0.5))
    measured = Localisation().measure(with_sae(context, sae))
    assert not [c["what"] for c in measured["comparisons"] if c["verdict"] == "better"]


def test_the_order_of_the_table_changes_nothing(measured: dict[str, Any], tmp_path: Path) -> None:
    assert Localisation().measure(place_context(tmp_path, order=True)) == measured


def test_the_same_picture_twice_stands_on_one_side(context: Context) -> None:
    from cytosae.evaluation._localisation import _groups, _with_masks

    frame = context.frame.copy()
    frame["patient"] = None
    first, second = (int(np.flatnonzero(replace(context, frame=frame).part == p)[0]) for p in ("choose", "score"))
    frame.loc[second, "sha256"] = frame.loc[first, "sha256"]
    third = int(np.flatnonzero(replace(context, frame=frame).part == "score")[3])
    fourth = int(np.flatnonzero(replace(context, frame=frame).part == "score")[4])
    frame.loc[third, "sha256"] = frame.loc[fourth, "sha256"]
    changed = replace(context, frame=frame)
    rows = _with_masks(changed)
    assert second not in rows
    groups = dict(zip(rows.tolist(), _groups(changed, rows).tolist(), strict=True))
    assert groups[third] == groups[fourth]


def test_average_precision_is_the_usual_one() -> None:
    rng = np.random.default_rng(0)
    share, values = rng.random((12, 9)), np.round(rng.random((12, 9)), 1)
    choosing = np.arange(12) < 5
    images = Images(share, choosing, draw_weights(np.arange(7), 3, 0))
    wanted = average_precision_score((share[5:] >= COVERED).ravel(), values[5:].ravel())
    assert images.precision(values[5:]).value == pytest.approx(wanted)
    drawn = np.repeat(np.arange(7), images.weights[2])
    again = average_precision_score((share[5:][drawn] >= COVERED).ravel(), values[5:][drawn].ravel())
    assert images.precision(values[5:]).draws[1] == pytest.approx(again)


def test_overlap_counts_the_share_of_a_patch() -> None:
    share = np.array([[1.0, 0.5, 0.0, 0.0]] * 2)
    images = Images(share, np.array([True, False]), np.ones((2, 1), np.int16))
    assert images.overlap(np.array([[3.0, 2, 1, 0]]), 2.0).value == pytest.approx(1.5 / 2)
    assert best_overlap(np.array([3.0, 2, 1, 0]), share[0]) == 2.0
    assert shares(np.zeros((6, 6), bool), (2, 2)).tolist() == [0, 0, 0, 0]


def test_a_pasted_square_fills_whole_patches_and_nothing_else() -> None:
    host, piece = np.full((32, 32, 3), 10, np.uint8), np.full((16, 16, 3), 200, np.uint8)
    image, covered = paste(host, piece, (1, 2), (4, 4))
    assert covered.reshape(4, 4)[1:3, 2:4].sum() == covered.sum() == 4
    assert (image[8:24, 16:32] != 10).all()
    changed = image.copy()
    changed[8:24, 16:32] = 10
    assert (changed == host).all()
    looks = np.zeros((32, 32))
    looks[14, 18] = 1
    assert cut_out(np.random.default_rng(0).integers(0, 255, (32, 32, 3)).astype(np.uint8), 8, looks).shape == (8, 8, 3)


def test_what_is_missing_is_said(context: Context) -> None:
    frame = context.frame.assign(mask=None)
    assert "masks of at least 10" in str(Localisation().missing(replace(context, frame=frame)))
    notes = Localisation().measure(context)["notes"]
    assert any("lesions were left out" in note for note in notes)
