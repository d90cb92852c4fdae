"""The screen loses nothing: codes equal a float32 encode of the same tokens, whatever is proposed or left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cytosae import SparseAutoencoder, extract_tokens, index_concepts, load_backbone
from cytosae.cells import Cells, build_cells, bundled_path
from cytosae.concepts._codes import DenseEncoder, from_dense
from cytosae.concepts._screen import ScreenedEncoder
from cytosae.tokens import TokenStore


def dictionary(d: int, n: int, seed: int = 0, *, relu: bool = False, spread: float = 1.0) -> SparseAutoencoder:
    g = torch.Generator().manual_seed(seed)
    W = torch.nn.functional.normalize(torch.randn(n, d, generator=g), dim=1) * (
        1 + spread * torch.rand(n, 1, generator=g)
    )
    b = 0.1 * torch.randn(n, generator=g) - (1.5 if relu else 0.0)
    threshold = None if relu else 1 + 0.5 * torch.rand(n, generator=g)
    return SparseAutoencoder(W.T.contiguous(), b, W, 0.1 * torch.randn(d, generator=g),
                             "relu" if relu else "threshold", threshold)  # fmt: skip


def full_pattern(sae: SparseAutoencoder, x: torch.Tensor) -> torch.Tensor:
    """Every pre-activation by the very dot product that decides: what must come out bit for bit."""
    encoder = ScreenedEncoder(sae)
    n, latents = len(x), sae.n_latents
    counts, latent = torch.full((n,), latents), torch.arange(latents).repeat(n)
    pre = encoder._recompute(x - sae.b_dec, counts, latent).view(n, latents)
    return torch.where(pre > encoder.threshold, pre, 0)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    d=st.sampled_from([3, 24, 65]),
    n=st.integers(1, 40),
    relu=st.booleans(),
    size=st.floats(-6, 6),
)
def test_no_code_is_lost_and_none_is_added(seed: int, d: int, n: int, relu: bool, size: float) -> None:
    sae = dictionary(d, 300, seed, relu=relu)
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * 10**size
    x[0] *= 100  # one token far larger than the others
    codes = ScreenedEncoder(sae)(x)
    assert torch.equal(codes.dense(), full_pattern(sae, x))
    plain = sae.encode(x)
    scale = float((x - sae.b_dec).norm(dim=1).max()) + 1
    assert float((codes.dense() - plain).abs().max()) <= 1e-5 * scale or bool(
        (codes.dense() > 0).ne(plain > 0).any()
    ), "and the plain product differs by rounding only"


@pytest.mark.parametrize("relu", [False, True])
def test_neither_chunks_nor_order_nor_other_tokens_change_a_code(relu: bool) -> None:
    sae = dictionary(48, 400, relu=relu)
    x = torch.randn(1500, 48, generator=torch.Generator().manual_seed(1))
    encoder = ScreenedEncoder(sae)
    whole = encoder(x).dense()
    assert 0.001 < float((whole > 0).float().mean()) < 0.3
    parts = torch.cat([ScreenedEncoder(sae)(p).dense() for p in torch.split(x, 7)])
    assert torch.equal(whole, parts)
    order = torch.randperm(1500, generator=torch.Generator().manual_seed(2))
    assert torch.equal(encoder(x[order]).dense(), whole[order])
    assert torch.equal(encoder(x[:0]).dense(), whole[:0])


def test_latents_that_cannot_fire_are_left_out_of_the_product_and_come_back_when_they_can() -> None:
    sae = dictionary(16, 1000)
    sae.b_enc[:700] = -99
    x = torch.randn(200, 16, generator=torch.Generator().manual_seed(3))
    encoder = ScreenedEncoder(sae)
    assert torch.equal(encoder(x).dense(), full_pattern(sae, x))
    counts = encoder.take_counts()
    assert counts["n_skipped"] == 200 * 700
    assert encoder.take_counts()["n_tokens"] == 0
    encoder(x)
    large = x * 100
    assert torch.equal(encoder(large).dense(), full_pattern(sae, large))
    assert int((encoder(large).dense()[:, :700] > 0).sum()) > 0


def test_the_manifest_would_say_how_often_bfloat16_alone_errs() -> None:
    sae = dictionary(64, 500, relu=True)
    x = 2 * torch.randn(800, 64, generator=torch.Generator().manual_seed(4))
    encoder = ScreenedEncoder(sae)
    encoder(x)
    counts = encoder.take_counts()
    rounded = (x - sae.b_dec).bfloat16().float() @ sae.W_enc.bfloat16().float() + sae.b_enc
    wrong = int(((rounded > 0) != (sae.encode(x) > 0)).sum())
    assert wrong > 0
    assert 0.3 * wrong < counts["n_misjudged_by_screen"] < 3 * wrong
    assert counts["n_codes"] < counts["n_candidates"]


def test_from_dense_and_back() -> None:
    x = torch.randn(9, 5, generator=torch.Generator().manual_seed(5)).clamp(min=0)
    x[3] = 0
    assert torch.equal(from_dense(x).dense(), x)
    assert torch.equal(from_dense(x[:0]).dense(), x[:0])


@pytest.mark.backbone
def test_counts_and_exemplars_equal_a_float32_encode_on_300_real_cells(tmp_path: Path) -> None:
    whole = build_cells(bundled_path(), tmp_path / "cells.parquet")
    frame = whole.frame.iloc[:: max(1, len(whole) // 300)].head(300)
    cells = Cells(frame, whole.root, whole.hash)
    backbone = load_backbone("dinov2-s")
    backbone.model.blocks = backbone.model.blocks[:2]  # real tokens of an early block: the test is about codes
    backbone.depth = 2
    store = extract_tokens(cells, backbone, tmp_path / "t", layer=1, store="float32")
    sae = calibrated(store, 768)
    encoders = {"screen": ScreenedEncoder(sae), "plain": DenseEncoder(sae)}
    found = {}
    for name, encoder in encoders.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "cytosae.concepts._pass.screen_pays", lambda *_, e=encoder, n=name: e if n == "screen" else None
            )
            found[name] = index_concepts(cells, sae, tmp_path / name, store=store, thresholds=[1.0])
    a, b = found["screen"], found["plain"]
    # brute force, with room only for pre-activations that lie on the threshold to within rounding
    near = np.zeros(sae.n_latents, np.int64)
    for x in store.chunks(np.arange(300), 16, kind="patch"):
        pre = (x.flatten(0, 1) - sae.b_dec) @ sae.W_enc + sae.b_enc
        for level in (sae.threshold, torch.tensor(1.0)):
            near += ((pre - level).abs() < 2e-6).sum(0).numpy()
    for name in ("n_tokens_active", "n_tokens_above_1"):
        assert (np.abs(a.concepts[name] - b.concepts[name]) <= near).all(), name
    assert near.sum() < 1e-3 * b.concepts["n_tokens_active"].sum()
    x, y = (i.exemplars.set_index(["latent", "rank"]) for i in (a, b))
    assert len(x) == len(y)
    same = (x["cell_id"] == y["cell_id"]) & (x["patch"] == y["patch"])
    assert np.allclose(x["value"], y["value"], atol=2e-5)
    assert same.mean() > 0.999
    assert a.manifest["encode"]["n_misjudged_by_screen"] > 0
    assert a.manifest["encode"]["n_candidates"] < 3 * a.manifest["encode"]["n_codes"]


def calibrated(store: TokenStore, n: int, active: float = 32) -> SparseAutoencoder:
    """Random directions with thresholds at which a patch of these cells has about `active` codes, and the same for all."""
    g = torch.Generator().manual_seed(0)
    x = torch.cat(list(store.chunks(np.arange(0, store.n_rows, 10), 16, kind="patch"))).flatten(0, 1)
    mean = x.mean(0)
    W = torch.nn.functional.normalize(torch.randn(n, x.shape[1], generator=g), dim=1)
    threshold = torch.quantile(((x[::3] - mean) @ W.T), 1 - active / n, dim=0)
    return SparseAutoencoder(W.T.contiguous(), torch.zeros(n), W, mean, "threshold", threshold)
