"""The screens lose nothing: codes equal a float32 encode of the same tokens, whatever is proposed or left out."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cytosae import CytosaeError, SparseAutoencoder, extract_tokens, index_concepts, load_backbone
from cytosae.cells import Cells, build_cells, bundled_path
from cytosae.concepts import _encoders
from cytosae.concepts._codes import DenseEncoder, from_dense
from cytosae.concepts._encoders import choose_encoder, encoder_named
from cytosae.concepts._native import NativeEncoder
from cytosae.concepts._screen import ScreenedEncoder
from cytosae.sae.ops.native import native_library
from cytosae.tokens import TokenStore

#: Both screens; the compiled one where it can be built.
SCREENS = [
    pytest.param(ScreenedEncoder, id="bfloat16"),
    pytest.param(
        NativeEncoder,
        id="native",
        marks=pytest.mark.skipif(native_library() is None, reason="no compiler, or neither VNNI nor AVX2, here"),
    ),
]
both_screens = pytest.mark.parametrize("screen", SCREENS)
native_only = pytest.mark.parametrize("screen", SCREENS[1:])


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


def assert_float32(found: torch.Tensor, sae: SparseAutoencoder, x: torch.Tensor) -> None:
    """Codes [n, n_latents] against double precision: only what lies on a threshold to within float32 may fall either way."""
    centred = (x - sae.b_dec).double()
    pre = centred @ sae.W_enc.double() + sae.b_enc.double()
    near = (
        (sae.d_in + 8) * 2.0**-23 * centred.norm(dim=1)[:, None] * sae.W_enc.double().norm(dim=0)
        + 1e-6 * pre.abs()
        + 1e-30
    )
    floor = torch.zeros(sae.n_latents) if sae.threshold is None else sae.threshold.clamp(min=0)
    above = pre - floor.double()
    assert not bool(((found == 0) & (above > near)).any()), "a code is lost"
    assert not bool(((found > 0) & (above < -near)).any()), "a code is added"
    assert bool(((found.double() - pre).abs()[found > 0] <= near[found > 0]).all())


@both_screens
@pytest.mark.parametrize("exponent", [-12, -6, -3, 0, 3, 6, 12])
@pytest.mark.parametrize(("d", "n_latents"), [(3, 257), (31, 300), (64, 513), (384, 260)])
def test_no_code_is_lost_at_any_size(screen: type, exponent: int, d: int, n_latents: int) -> None:
    """Tokens, biases, rows and thresholds of very unequal sizes, rows and tokens of zeros, one number far above the others."""
    g = torch.Generator().manual_seed(d + exponent)
    sae = dictionary(d, n_latents, seed=d, spread=20)
    sae.W_enc[:, ::7] *= 1e-4
    sae.W_enc[:, 5] = 0
    sae.W_enc[0, ::5] *= 300  # an outlier in the row: the others are rounded away in integers
    sae.b_enc[::3] *= 1000
    assert sae.threshold is not None
    sae.threshold[::4] = sae.b_enc[::4].clamp(min=0)  # exactly on the threshold where the token is zero
    sae.threshold[1::4] = -1
    x = torch.randn(37, d, generator=g) * 10.0**exponent * torch.logspace(-2, 2, 37)[:, None]
    x[:, 1] *= 200
    x[4] = sae.b_dec
    found = screen(sae)(x).dense()
    assert_float32(found, sae, x)
    assert bool((found[4] == torch.where(sae.b_enc > sae.threshold.clamp(min=0), sae.b_enc, 0)).all())


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
    assert_float32(codes.dense(), sae, x)
    if native_library() is not None:
        assert_float32(NativeEncoder(sae)(x).dense(), sae, x)
    plain = sae.encode(x)
    scale = float((x - sae.b_dec).norm(dim=1).max()) + 1
    assert float((codes.dense() - plain).abs().max()) <= 1e-5 * scale or bool(
        (codes.dense() > 0).ne(plain > 0).any()
    ), "and the plain product differs by rounding only"


@both_screens
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("d", [48, 31])
def test_neither_chunks_nor_order_nor_other_tokens_change_a_code(screen: type, relu: bool, d: int) -> None:
    sae = dictionary(d, 400, relu=relu)
    x = torch.randn(1500, d, generator=torch.Generator().manual_seed(1))
    encoder = screen(sae)
    whole = encoder(x).dense()
    assert 0.001 < float((whole > 0).float().mean()) < 0.4
    for size in (1, 7, 512):
        parts = torch.cat([encoder(p).dense() for p in torch.split(x, size)])
        assert torch.equal(whole, parts), size
    order = torch.randperm(1500, generator=torch.Generator().manual_seed(2))
    assert torch.equal(encoder(x[order]).dense(), whole[order])
    assert torch.equal(encoder(x[:0]).dense(), whole[:0])


@native_only
@pytest.mark.parametrize("kind", ["relu", "threshold", "topk"])
def test_the_threads_and_what_came_before_change_no_code_and_no_count(screen: type, kind: str) -> None:
    sae = dataclasses.replace(dictionary(40, 500, relu=kind == "relu"), activation=kind, k=9)
    x = torch.randn(700, 40, generator=torch.Generator().manual_seed(1))
    wanted, counts, before = None, None, torch.get_num_threads()
    encoder = screen(sae)
    for n_threads in (1, 2):
        torch.set_num_threads(n_threads)
        encoder(100 * x[:50])  # another shard before
        encoder.take_counts()
        with torch.inference_mode():
            found = torch.cat([encoder(p).dense() for p in torch.split(x, 128)])
        now = encoder.take_counts()
        assert wanted is None or torch.equal(found, wanted)
        assert counts is None or counts == now
        wanted, counts = found, now
    torch.set_num_threads(before)


@native_only
@pytest.mark.parametrize("k", [1, 12, 900])
def test_the_k_largest_equal_the_plain_product(screen: type, k: int) -> None:
    sae = dataclasses.replace(dictionary(32, 600, relu=True), activation="topk", k=k)
    x = torch.randn(200, 32, generator=torch.Generator().manual_seed(6))
    encoder = screen(sae)
    found = torch.cat([encoder(p).dense() for p in torch.split(x, 64)])
    plain = sae.encode(x)
    assert torch.allclose(found, plain, atol=1e-5) or int(((found > 0) != (plain > 0)).sum()) <= 2
    assert int((found > 0).sum(1).max()) <= k


def test_the_encoder_is_chosen_by_device_sizes_and_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    sae = dictionary(64, 300)
    sparse, dense = torch.zeros(20, 64) + sae.b_dec, 100 * torch.ones(20, 64)
    for has_native in (True, False):
        monkeypatch.setattr(_encoders, "native_library", native_library if has_native else lambda: None)
        for has_bfloat16 in (True, False):
            monkeypatch.setattr(_encoders, "has_bfloat16", lambda _, there=has_bfloat16: there)
            native = has_native and native_library() is not None
            wanted: type = NativeEncoder if native else ScreenedEncoder if has_bfloat16 else DenseEncoder
            assert type(choose_encoder(sae, "cpu", sparse)) is wanted
            assert type(choose_encoder(sae, "cpu", dense)) is DenseEncoder, "half of all fire"
            assert type(choose_encoder(sae, "cuda", sparse)) is DenseEncoder
            assert type(choose_encoder(dictionary(64, 255), "cpu", sparse)) is DenseEncoder
            topk = dataclasses.replace(dictionary(64, 6000), activation="topk", k=3)
            assert type(choose_encoder(topk, "cpu", sparse + 1)) is (NativeEncoder if native else DenseEncoder)


def test_an_index_goes_on_with_the_encoder_it_was_begun_with_or_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    sae = dictionary(8, 20)
    assert isinstance(encoder_named(ScreenedEncoder.path, sae), ScreenedEncoder)
    assert isinstance(encoder_named(DenseEncoder.path, sae), DenseEncoder)
    monkeypatch.setattr(_encoders, "native_library", lambda: None)
    with pytest.raises(CytosaeError, match=r"install a C\+\+ compiler"):
        encoder_named(NativeEncoder.path, sae)
    with pytest.raises(CytosaeError, match="does not know"):
        encoder_named("by hand", sae)


@both_screens
def test_latents_that_cannot_fire_are_left_out_of_the_product_and_come_back_when_they_can(screen: type) -> None:
    sae = dictionary(16, 1000)
    sae.b_enc[:700] = -99
    x = torch.randn(200, 16, generator=torch.Generator().manual_seed(3))
    encoder = screen(sae)
    assert_float32(encoder(x).dense(), sae, x)
    counts = encoder.take_counts()
    assert counts["n_skipped"] == 200 * 700
    assert encoder.take_counts()["n_tokens"] == 0
    encoder(x)
    large = x * 100
    assert_float32(encoder(large).dense(), sae, large)
    assert int((encoder(large).dense()[:, :700] > 0).sum()) > 0


@both_screens
def test_the_manifest_would_say_how_often_the_screen_alone_errs(screen: type) -> None:
    sae = dictionary(64, 500, relu=True)
    x = 2 * torch.randn(800, 64, generator=torch.Generator().manual_seed(4))
    encoder = screen(sae)
    encoder(x)
    counts = encoder.take_counts()
    assert counts["n_misjudged_by_screen"] > 0
    assert counts["n_codes"] < counts["n_candidates"]
    if screen is NativeEncoder:
        return
    rounded = (x - sae.b_dec).bfloat16().float() @ sae.W_enc.bfloat16().float() + sae.b_enc
    wrong = int(((rounded > 0) != (sae.encode(x) > 0)).sum())
    assert wrong > 0
    assert 0.3 * wrong < counts["n_misjudged_by_screen"] < 3 * wrong


def test_from_dense_and_back() -> None:
    x = torch.randn(9, 5, generator=torch.Generator().manual_seed(5)).clamp(min=0)
    x[3] = 0
    assert torch.equal(from_dense(x).dense(), x)
    assert torch.equal(from_dense(x[:0]).dense(), x[:0])


@pytest.mark.backbone
@both_screens
def test_counts_and_exemplars_equal_a_float32_encode_on_300_real_cells(screen: type, tmp_path: Path) -> None:
    whole = build_cells(bundled_path(), tmp_path / "cells.parquet")
    frame = whole.frame.iloc[:: max(1, len(whole) // 300)].head(300)
    cells = Cells(frame, whole.root, whole.hash)
    backbone = load_backbone("dinov2-s")
    backbone.model.blocks = backbone.model.blocks[:2]  # real tokens of an early block: the test is about codes
    backbone.depth = 2
    store = extract_tokens(cells, backbone, tmp_path / "t", layer=1, store="float32")
    sae = calibrated(store, 768)
    encoders = {"screen": screen(sae), "plain": DenseEncoder(sae)}
    found = {}
    for name, encoder in encoders.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("cytosae.concepts._pass.choose_encoder", lambda *_, e=encoder: e)
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
