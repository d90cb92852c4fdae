"""A real vision transformer with random weights, small enough to compile and run in a test."""

from __future__ import annotations

import torch
from timm.models.vision_transformer import VisionTransformer

from cytosae.backbones import Backbone, Preprocessing


def small_vit(precision: str = "float32") -> Backbone:
    """Three blocks of 48 numbers, 4 x 4 patches of 8 pixels."""
    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=3, num_classes=0, init_values=1.0
    )
    return Backbone(
        model, name="small", weights_sha256="1" * 64, preprocessing=Preprocessing(side=32), precision=precision
    )
