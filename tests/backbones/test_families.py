from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import publishers as made
from cytosae import CytosaeError
from cytosae.backbones import Preprocessing, load_backbone


def save(state: dict[str, Any], path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file({k: v.contiguous().clone() for k, v in state.items()}, path)
    else:
        torch.save(state, path)
    return path


def timm_names(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.state_dict())


CASES: dict[str, tuple[str, Callable[[], Any], Callable[[Any], Any], str]] = {
    "dinobloom .pth": ("dinobloom", made.dino, made.dinobloom_pth, "DinoBloom-S.pth"),
    "dinobloom .bin": ("dinobloom", made.dino, made.meta_dinov2, "pytorch_model_s.bin"),
    "dinobloom timm port": ("dinobloom", made.dino, timm_names, "model.safetensors"),
    "dinobloom giant .pth": ("dinobloom", made.dino_giant, made.dinobloom_pth, "DinoBloom-G.pth"),
    "dinobloom giant .bin": ("dinobloom", made.dino_giant, made.meta_dinov2, "pytorch_model_g.bin"),
    "reddino": ("reddino", made.dino, timm_names, "model.safetensors"),
    "dinov2": ("dinov2", made.dino, made.meta_dinov2, "dinov2_vits14_pretrain.pth"),
    "dinov2 registers": ("dinov2", made.dino_registers, made.meta_dinov2, "dinov2_vits14_reg4_pretrain.pth"),
    "dinov2 registers timm port": ("dinov2", made.dino_registers, timm_names, "model.safetensors"),
    "dinov2 transformers": ("dinov2", made.dino, made.hugging_face_dinov2, "model.safetensors"),
    "dinov2 registers transformers": ("dinov2", made.dino_registers, made.hugging_face_dinov2, "model.safetensors"),
    "dinov2 giant transformers": ("dinov2", made.dino_giant, made.hugging_face_dinov2, "model.safetensors"),
    "dinov3": ("dinov3", made.dinov3, made.meta_dinov3, "dinov3_vits16_pretrain.pth"),
    "dinov3 no registers": ("dinov3", lambda: made.dinov3(num_reg_tokens=0), made.meta_dinov3, "x.pth"),
    "dinov3 biases": ("dinov3", lambda: made.dinov3(qkv_bias=True), made.meta_dinov3, "x.pth"),
    "dinov3 gated": ("dinov3", lambda: made.dinov3(swiglu_mlp=True, swiglu_align_to=8), made.meta_dinov3, "x.pth"),
    "dinov3 timm port": ("dinov3", made.dinov3, timm_names, "model.safetensors"),
    "dinov3 biases timm port": ("dinov3", lambda: made.dinov3(qkv_bias=True), timm_names, "model.safetensors"),
    "clip": ("clip", made.clip, made.openai_clip, "ViT-B-16.pt"),
    "clip transformers": ("clip", made.clip, made.hugging_face_clip, "model.safetensors"),
    "clip timm port": ("clip", made.clip, timm_names, "model.safetensors"),
    "openclip": ("openclip", lambda: made.clip("gelu"), made.openai_clip, "open_clip_pytorch_model.bin"),
    "siglip timm port": ("siglip", made.siglip, timm_names, "model.safetensors"),
    "siglip openclip": ("siglip", made.siglip,
                        lambda m: {f"visual.trunk.{k}": v for k, v in m.state_dict().items()}, "open_clip.bin"),
    "siglip transformers": ("siglip", made.siglip, made.hugging_face_clip, "model.safetensors"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_file_as_published_gives_what_timm_gives_at_every_block(case: str, tmp_path: Path) -> None:
    family, build, publish, name = CASES[case]
    model = build()
    backbone = load_backbone(
        family, weights=save(publish(model), tmp_path / name), image_size=64 if family == "dinov3" else None
    )
    made.assert_same_as_timm(backbone, model)
    assert backbone.file == name
    assert len(backbone.weights_sha256) == 64


@pytest.mark.parametrize("case", CASES)
def test_half_of_any_publishers_file_is_refused_in_a_sentence(case: str, tmp_path: Path) -> None:
    family, build, publish, name = CASES[case]
    whole = publish(build())
    for seed in range(3):
        state = dict(whole.get("teacher", whole))
        for key in np.random.default_rng(seed).permutation(sorted(state))[::2]:
            del state[key]
        with pytest.raises(CytosaeError, match=r"whole file|belongs to"):
            load_backbone(family, weights=save(state, tmp_path / name))


def test_prefix_tokens_are_the_networks_own(tmp_path: Path) -> None:
    def kinds(family: str, state: dict[str, Any]) -> list[str]:
        kinds = load_backbone(family, weights=save(state, tmp_path / "x.pth")).token_kinds
        return [kind for kind in kinds if kind != "patch"]

    assert kinds("dinobloom", made.dinobloom_pth(made.dino())) == ["class"]
    assert kinds("dinov2", made.meta_dinov2(made.dino_registers())) == ["class"] + 4 * ["register"]
    assert kinds("dinov3", made.meta_dinov3(made.dinov3(num_reg_tokens=2))) == ["class"] + 2 * ["register"]
    assert kinds("siglip", timm_names(made.siglip())) == []


def test_preprocessing_is_the_publishers(tmp_path: Path) -> None:
    bloom = load_backbone("dinobloom", weights=save(made.dinobloom_pth(made.dino()), tmp_path / "a.pth"))
    assert bloom.preprocessing == Preprocessing(side=56, interpolation="bilinear")
    clip = load_backbone("clip", weights=save(made.openai_clip(made.clip()), tmp_path / "b.pth"))
    assert (clip.preprocessing.side, clip.preprocessing.interpolation) == (64, "bicubic")
    assert clip.preprocessing.mean[0] == pytest.approx(0.48145466)
    siglip = load_backbone("siglip", weights=save(timm_names(made.siglip()), tmp_path / "c.pth"))
    assert siglip.preprocessing.mean == siglip.preprocessing.std == (0.5, 0.5, 0.5)
    assert load_backbone("dinov3", weights=save(made.meta_dinov3(made.dinov3()), tmp_path / "d.pth")).grid == (16, 16)


def test_resizing_honours_the_interpolation() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    for name in ("bilinear", "bicubic"):
        wanted = Image.fromarray(pixels).resize((56, 56), Image.Resampling[name.upper()])
        assert np.array_equal(Preprocessing(side=56, interpolation=name).resize(pixels), np.asarray(wanted))
    with pytest.raises(CytosaeError, match="no interpolation 'cubic'"):
        Preprocessing(interpolation="cubic")


@pytest.mark.parametrize("registers", [False, True])
def test_dinov2_at_another_size_is_resampled_as_its_publisher_does(tmp_path: Path, registers: bool) -> None:
    model = made.dino_registers() if registers else made.dino()
    path = save(made.meta_dinov2(model), tmp_path / "x.pth")
    backbone = load_backbone("dinov2", weights=path, image_size=42)
    assert (backbone.grid, backbone.preprocessing.side) == ((3, 3), 42)
    if registers:  # timm resamples with antialiasing, as Meta did for these
        model.set_input_size(img_size=(42, 42))
        made.assert_same_as_timm(backbone, model)
    else:
        square = model.pos_embed[:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
        wanted = torch.nn.functional.interpolate(square, scale_factor=(3.1 / 4, 3.1 / 4), mode="bicubic")
        assert torch.allclose(backbone.model.pos_embed[:, 1:], wanted.flatten(2).transpose(1, 2), atol=1e-6)


def test_an_image_size_the_position_embedding_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = save(made.dinobloom_pth(made.dino()), tmp_path / "x.pth")
    with pytest.raises(
        CytosaeError, match=r"--image-size 224 does not fit x\.pth: its position embedding is for 56 px"
    ):
        load_backbone("dinobloom", weights=path, image_size=224)
    with pytest.raises(CytosaeError, match="position embedding of dinobloom fits"):
        load_backbone("dinobloom", weights=path).tokens(np.zeros((1, 224, 224, 3), np.uint8))


def test_bfloat16_keeps_rotary_networks_close(tmp_path: Path) -> None:
    path = save(made.meta_dinov3(made.dinov3()), tmp_path / "x.pth")
    exact = load_backbone("dinov3", weights=path, image_size=64)
    rough = load_backbone("dinov3", weights=path, image_size=64, precision="bfloat16")
    a, b = exact.tokens(made.some_pixels(exact)), rough.tokens(made.some_pixels(exact))
    assert float(torch.nn.functional.cosine_similarity(a, b, dim=-1).min()) > 0.99


def test_heads_come_from_the_published_table_not_from_a_division() -> None:
    from cytosae.backbones._families import FAMILIES, _heads

    assert [_heads(FAMILIES["dinobloom"], w, None, "x") for w in (384, 768, 1024, 1536)] == [6, 12, 16, 24]
    assert _heads(FAMILIES["siglip"], 1152, None, "x") == 16
    assert _heads(FAMILIES["clip"], 1280, None, "x") == 16
    assert _heads(FAMILIES["dinov3"], 4096, None, "x") == 32
    with pytest.raises(CytosaeError, match="does not divide"):
        _heads(FAMILIES["dinov2"], 48, 5, "x")


def test_assumed_heads_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("cytosae.backbones._families.say", said.append)
    load_backbone("dinobloom", weights=save(made.dinobloom_pth(made.dino()), tmp_path / "x.pth"))
    assert "3 are assumed" in said[0]
