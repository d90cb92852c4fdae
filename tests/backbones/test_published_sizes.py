"""The published sizes, as timm defines them, without their weights: what is read from the shapes is the same network."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

from cytosae.backbones import _families
from cytosae.backbones._families import FAMILIES, build_family

PUBLISHED = [
    ("dinobloom", "vit_small_patch14_dinov2", {"img_size": 224}),
    ("dinobloom", "vit_base_patch14_dinov2", {"img_size": 224}),
    ("dinobloom", "vit_large_patch14_dinov2", {"img_size": 224}),
    ("dinobloom", "vit_giant_patch14_dinov2", {"img_size": 224}),
    ("dinov2", "vit_base_patch14_dinov2", {}),
    ("dinov2", "vit_small_patch14_reg4_dinov2", {}),
    ("dinov2", "vit_giant_patch14_reg4_dinov2", {}),
    ("dinov3", "vit_small_patch16_dinov3", {}),
    ("dinov3", "vit_small_plus_patch16_dinov3_qkvb", {}),
    ("dinov3", "vit_base_patch16_dinov3", {}),
    ("dinov3", "vit_large_patch16_dinov3_qkvb", {}),
    ("dinov3", "vit_huge_plus_patch16_dinov3", {}),
    ("dinov3", "vit_7b_patch16_dinov3", {}),
    ("clip", "vit_base_patch16_clip_quickgelu_224", {}),
    ("clip", "vit_large_patch14_clip_quickgelu_224", {}),
    ("clip", "vit_huge_patch14_clip_quickgelu_224", {}),
    ("openclip", "vit_base_patch16_clip_224", {}),
    ("openclip", "vit_giant_patch14_clip_224", {}),
    ("openclip", "vit_gigantic_patch14_clip_224", {}),
    ("siglip", "vit_base_patch16_siglip_224", {}),
    ("siglip", "vit_large_patch16_siglip_384", {}),
    ("siglip", "vit_so400m_patch14_siglip_378", {}),
    ("siglip", "vit_so400m_patch14_siglip_384", {"img_size": 384}),  # the same shapes: the user says which
    ("siglip", "vit_giantopt_patch16_siglip_256", {}),
]


def parts(model: Any) -> dict[str, Any]:
    """Every module before the pooling, with its sizes, activation and epsilon; and the heads."""
    return {
        "modules": {
            name: repr(module)
            for name, module in model.named_modules()
            if name and not name.startswith(("attn_pool", "fc_norm", "head"))
        },
        "heads": {block.attn.num_heads for block in model.blocks},
        "shapes": {k: tuple(v.shape) for k, v in model.state_dict().items() if not k.startswith("attn_pool")},
        "prefix": model.num_prefix_tokens,
    }


@pytest.mark.parametrize(("family", "name", "options"), PUBLISHED, ids=lambda value: value if "_" in str(value) else "")
def test_a_published_size_becomes_the_network_that_timm_defines(
    family: str, name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_families, "fit_weights", lambda *_: None)  # there are no values on the meta device
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0, **options)
        state = {k: v for k, v in model.state_dict().items() if not k.startswith("attn_pool")}
        built, preprocessing = build_family(
            FAMILIES[family], state, name, heads=None, image_size=options.get("img_size")
        )
    assert parts(built) == parts(model)
    assert preprocessing.side == model.patch_embed.img_size[0]
    cfg = timm.get_pretrained_cfg(name)
    if family != "dinobloom":
        assert (preprocessing.interpolation, preprocessing.mean, preprocessing.std) == (
            cfg.interpolation,
            cfg.mean,
            cfg.std,
        )
