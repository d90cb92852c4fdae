"""Compiled forward passes give the eager tokens but for their last bits, or are not used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import cytosae.backbones._vit as vit
import publishers as made
from cytosae import CytosaeError, load_backbone
from cytosae.backbones import Backbone, probe, why_not_compiled
from small_vit import small_vit

needs_compiler = pytest.mark.skipif(bool(why_not_compiled("cpu")), reason="no C++ compiler")


def packaged(precision: str = "float32") -> Backbone:
    return load_backbone("dinov2-s", precision=precision)


@needs_compiler
def test_rotary_positions_compile_too(tmp_path: Path) -> None:
    torch.save(made.meta_dinov3(made.dinov3()), tmp_path / "dinov3_vits16_pretrain.pth")
    backbone = load_backbone("dinov3", weights=tmp_path / "dinov3_vits16_pretrain.pth")
    images = probe(8, backbone.preprocessing.side)
    eager = backbone.tokens(images)
    backbone.compile(8)
    assert backbone.compiled == 8
    assert float((backbone.tokens(images) - eager).abs().max() / eager.abs().max()) <= 1e-6


@needs_compiler
@pytest.mark.parametrize(
    ("make", "batch", "precision", "tolerance"),
    [
        (small_vit, 16, "float32", 1e-6),
        (small_vit, 16, "bfloat16", 2e-2),
        pytest.param(packaged, 2, "float32", 1e-5, marks=pytest.mark.backbone),
    ],
)
def test_compiled_tokens_are_the_eager_ones_but_for_their_last_bits(
    make: Callable[..., Backbone], batch: int, precision: str, tolerance: float
) -> None:
    backbone = make(precision)
    images = probe(batch, backbone.preprocessing.side)[::-1].copy()
    eager = backbone.tokens(images)
    backbone.compile(batch)
    compiled = backbone.tokens(images)
    assert backbone.compiled == batch
    assert compiled.dtype == torch.float32
    assert float((compiled - eager).abs().max() / eager.abs().max()) <= tolerance
    assert torch.equal(compiled, backbone.tokens(images)), "the same again"


@needs_compiler
def test_other_batches_other_blocks_and_the_rest_of_the_network_stay_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, eager, calls = small_vit(), small_vit(), []

    def noted(blocks: Any) -> Any:
        return [lambda x, b=block: calls.append(1) or b(x) for block in blocks]

    monkeypatch.setattr(vit, "compile_blocks", noted)
    backbone.compile(16, layer=0)
    calls.clear()
    images = probe(16, 32)
    for batch, layer in ((3, 0), (16, 1), (16, -1)):
        assert torch.equal(backbone.tokens(images[:batch], layer), eager.tokens(images[:batch], layer))
    tokens = eager.tokens(images, 0)
    assert torch.equal(backbone.run_from(0, tokens), eager.run_from(0, tokens))
    assert not calls
    backbone.tokens(images, 0)
    assert calls


def test_without_a_compiler_it_says_so_and_stays_eager(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    backbone = small_vit()
    with pytest.raises(CytosaeError, match=r"no C\+\+ compiler is there; mend that"):
        backbone.compile(16)
    assert not backbone.compiled
    assert "nothing is compiled for mps" in why_not_compiled("mps")


@needs_compiler
@pytest.mark.parametrize(
    ("stand_in", "message"),
    [
        (lambda x: x + 1, "differs from the eager one"),
        (lambda x: x * float("nan"), "differs from the eager one"),
        (lambda x: 1 / 0, r"cannot be compiled \(ZeroDivisionError: division by zero\)"),
    ],
)
def test_compiled_code_that_fails_or_gives_other_tokens_is_not_used(
    monkeypatch: pytest.MonkeyPatch, stand_in: Callable[..., Any], message: str
) -> None:
    monkeypatch.setattr(vit, "compile_blocks", lambda blocks: [stand_in] * len(blocks))
    backbone = small_vit()
    with pytest.raises(CytosaeError, match=message):
        backbone.compile(16)
    assert not backbone.compiled
    assert torch.equal(backbone.tokens(probe(16, 32)), small_vit().tokens(probe(16, 32)))
