"""The bundled dictionary: whole, small, free of pickles, and one that belongs to its parts; how unusual, how similar."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from cytosae import CytosaeError, SparseAutoencoder, load_sae
from cytosae.backbones import BACKBONES, Layer, load_backbone
from cytosae.concepts import KnownCells, Reference, load_bundle, read_reference
from cytosae.concepts._explain import _tokens
from cytosae.concepts._reference import shorten, write_reference
from cytosae.sae import KIND, VERSION, bundled_folder, is_bundled, round_sae, save_sae
from cytosae.storage import Manifest, commit_folder, read_parquet_record
from small_vit import small_vit


def test_the_bundle_is_small_and_holds_no_pickle() -> None:
    files = [p for p in bundled_folder().rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 10_000_000
    assert {p.suffix for p in files} <= {".parquet", ".safetensors", ".json", ".md"}


def test_all_parts_of_the_bundle_belong_to_its_dictionary() -> None:
    bundle = load_bundle()
    sae, index, reference = bundle.sae, bundle.index, bundle.reference
    assert sae.hash == load_sae("default").hash
    assert is_bundled(sae.hash)
    assert not is_bundled("0" * 64)
    assert index.manifest["inputs"]["sae"] == reference.manifest["inputs"]["sae"] == sae.hash
    for name in ("captions", "technical"):
        made_of = read_parquet_record(bundle.folder / f"{name}.parquet")["inputs"]["index"]
        assert made_of == index.manifest["inputs"]["index"]
    assert len(index.concepts) == sae.n_latents == reference.vectors.shape[1]
    assert sae.W_dec.dtype == sae.W_enc.dtype == torch.float32
    assert sae.hash in bundle.card
    assert "Research use only" in bundle.card
    of = sae.info["backbone"]
    if (present := BACKBONES[of["name"]].present) and present():
        assert of["sha256"] == load_backbone(of["name"]).weights_sha256


def test_the_bundle_holds_only_free_cells_and_credits_them() -> None:
    reference = load_bundle().reference
    assert reference.cells["credit"].str.contains(r"CC BY 4\.0$|MIT$").all()
    assert reference.cells["dataset"].nunique() >= 2
    assert 0 <= reference.exemplars["row"].min() <= reference.exemplars["row"].max() < len(reference.cells)
    assert reference.thumb(0).shape == (64, 64, 3)
    assert (reference.exemplars.groupby("latent").size() <= 3).all()


def test_a_reference_cell_is_most_similar_to_itself() -> None:
    reference = load_bundle().reference
    for row in (0, 17, len(reference.cells) - 1):
        found = reference.similar(reference.vectors[row].toarray().ravel(), 3)
        assert found["row"].iloc[0] == row
        assert found["similarity"].iloc[0] == pytest.approx(1, abs=1e-3)
        assert found["similarity"].is_monotonic_decreasing


def test_suggestions_are_those_that_most_exemplars_share() -> None:
    bundle = load_bundle()
    said = bundle.said_of([0, 1, 2, 3, 500])
    assert said["latent"].tolist() == [0, 1, 2, 3, 500]
    shared = said["suggestion_share"].dropna()
    assert (shared >= 0.5).all()
    assert bundle.captions["q"].max() < 0.05
    assert bundle.captions["lift"].min() > 1


def test_a_rounded_dictionary_keeps_its_codes_and_its_record(tmp_path: Path) -> None:
    torch.manual_seed(0)
    W = torch.randn(6, 20)
    W /= W.norm(dim=0)
    sae = SparseAutoencoder(W, torch.zeros(20), W.T.contiguous(), torch.zeros(6), "threshold", torch.full((20,), 0.1))
    for name, scale in (("plain", 1.0), ("huge", 1e6)):
        one = SparseAutoencoder(W * scale, sae.b_enc, sae.W_dec, sae.b_dec, "threshold", sae.threshold)
        with commit_folder(
            tmp_path / name, kind=KIND, version=VERSION, inputs={"cells": "c"}, config={"where": ["a=b"]}
        ) as (work, _):
            save_sae(work, one, {"layer": -2, "recipe": "x"})
    source = load_sae(tmp_path / "plain")
    round_sae(tmp_path / "plain", tmp_path / "half")
    half = load_sae(tmp_path / "half")
    assert half.W_enc.dtype == torch.float32
    assert half.info["rounded"]["from"] == source.hash != half.hash
    assert half.info["recipe"] == "x"
    x = torch.randn(200, 6)
    assert (
        half.encode(x) - source.encode(x)
    ).abs().max() < 0.11  # a code near the threshold may fall on its other side
    assert (half.encode(x) - source.encode(x)).abs().mean() < 1e-3
    round_sae(tmp_path / "plain", tmp_path / "again")
    assert load_sae(tmp_path / "again").hash == half.hash
    assert (tmp_path / "half" / "sae.safetensors").stat().st_size < (
        tmp_path / "plain" / "sae.safetensors"
    ).stat().st_size
    with pytest.raises(CytosaeError, match="too large for float16"):
        round_sae(tmp_path / "huge", tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_the_distance_is_mahalanobis_and_the_limit_lets_most_of_the_other_origin_through() -> None:
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(5, 5))
    known, held, other = (rng.normal(size=(n, 5)) @ mix + shift for n, shift in ((4000, 3), (500, 3), (400, 3.5)))
    fitted = KnownCells.fit(known, held, other)
    C = np.cov(known.T)
    wanted = np.sqrt(np.einsum("ij,jk,ik->i", held - known.mean(0), np.linalg.inv(C), held - known.mean(0)))
    assert np.allclose(fitted.distance(held), wanted, rtol=0.02)
    assert np.mean(fitted.distance(other) > fitted.limit) == pytest.approx(0.01, abs=0.005)
    usual, far = fitted.judge(known.mean(0)), fitted.judge(known.mean(0) + 1000)
    assert usual.is_cell
    assert usual.share_below == 0
    assert not far.is_cell
    assert "not like a single blood cell" in far.words
    again = KnownCells.from_arrays(fitted.to_arrays())
    assert np.allclose(again.distance(held), fitted.distance(held), rtol=2e-3)
    with pytest.raises(CytosaeError, match="too few"):
        KnownCells.fit(known[:10], held, other)


def test_a_reference_comes_back_as_it_was_written_and_a_changed_one_is_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    dense = np.where(rng.random((4, 30)) < 0.5, rng.random((4, 30)), 0).astype(np.float32)
    vectors = shorten(sp.csr_matrix(dense), 5)
    assert (np.diff(vectors.indptr) == 5).all()
    assert np.allclose(np.sort(vectors[0].data), np.sort(dense[0])[-5:])
    cells = pd.DataFrame(
        {"cell_id": range(4), "dataset": "d", "label": list("abcd"), "credit": "X, MIT", "thumb": [b"x"] * 4}
    )
    exemplars = pd.DataFrame(
        {"latent": [2, 2, 7], "rank": [0, 1, 0], "row": [1, 3, 0], "value": [2.0, 1.0, 3.0], "patch": [0, 1, 2]}
    )
    known = KnownCells(np.zeros(3, np.float32), np.eye(3, dtype=np.float32), np.arange(3, dtype=np.float32), 9.0)
    made = Reference(cells, exemplars, vectors, dense.mean(0), known, Manifest(tmp_path, {}, ""))
    write_reference(tmp_path / "r", made, {"sae": "s"}, {}, {"limit_from": "nothing"})
    read = read_reference(tmp_path / "r")
    assert np.allclose(read.vectors.toarray(), vectors.toarray(), atol=1e-3)
    assert read.known.limit == 9
    assert read.exemplars_of(2)["row"].tolist() == [1, 3]
    assert len(read.exemplars_of(3)) == 0
    (tmp_path / "r" / "reference.safetensors").write_bytes(b"changed")
    with pytest.raises(CytosaeError, match="make the reference again"):
        read_reference(tmp_path / "r")


@pytest.mark.parametrize("layer", [-2, 2, [[1, 4.0], [2, 1.0]], [[0, 2.0], [2, 1.0]]])
@pytest.mark.parametrize("block", [None, 0, 1, 2])
def test_how_unusual_an_image_is_may_be_asked_of_another_block_in_one_pass(layer: Layer, block: int | None) -> None:
    backbone = small_vit()
    images = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    tokens, seen = _tokens(images, backbone, layer, block)
    assert torch.equal(tokens, backbone.tokens(images, layer)[0])
    asked = backbone.block_number(layer) if block is None else block
    assert torch.equal(seen, backbone.tokens(images, asked)[0])
