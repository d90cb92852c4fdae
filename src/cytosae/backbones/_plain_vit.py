"""The vision transformer of the packaged backbone, as timm's ``vit_small_patch14_dinov2``, without timm.

Importing timm imports torchvision and torch's compiler with it, which takes as long as all the rest of explaining one image.
Names of parameters and the order of operations are timm's, so that weights load and tokens are equal (a test holds it).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

#: DINOv2-S at 224 px.
WIDTH, DEPTH, HEADS, PATCH, SIDE = 384, 12, 6, 14, 224


class PlainViT(nn.Module):
    """ViT-S/14 with a class token and layer scale."""

    num_prefix_tokens = 1

    def __init__(self) -> None:
        super().__init__()
        self.embed_dim = WIDTH
        self.patch_embed = _Patches()
        rows, columns = self.patch_embed.grid_size
        self.cls_token = nn.Parameter(torch.empty(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + rows * columns, WIDTH))
        self.patch_drop, self.norm_pre = nn.Identity(), nn.Identity()
        self.blocks = nn.Sequential(*(_Block() for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)

    def _pos_embed(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Normed final tokens [batch, tokens, width] of images [batch, 3, side, side]."""
        out: torch.Tensor = self.norm(self.blocks(self._pos_embed(self.patch_embed(x))))
        return out


class _Patches(nn.Module):
    grid_size = (SIDE // PATCH, SIDE // PATCH)

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, WIDTH, PATCH, PATCH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.proj(x)
        return out.flatten(2).transpose(1, 2)


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, eps=1e-6), nn.LayerNorm(WIDTH, eps=1e-6)
        self.attn, self.mlp, self.ls1, self.ls2 = _Attention(), _Mlp(), _Scale(), _Scale()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        out: torch.Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return out


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n_images, n_tokens, _ = x.shape
        qkv = self.qkv(x).reshape(n_images, n_tokens, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        out: torch.Tensor = self.proj(x.transpose(1, 2).reshape(n_images, n_tokens, WIDTH))
        return out


class _Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class _Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gamma
