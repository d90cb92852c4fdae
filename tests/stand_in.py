"""A backbone whose tokens are known without a network: colour and texture of each patch, and a class token."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch

from cytosae.backbones import Preprocessing


class PatchColours:
    """Tokens of 8 numbers: mean and standard deviation of each channel of the patch, then two constants."""

    name, weights_sha256, precision, device = "stand-in", "0" * 64, "float32", "cpu"
    options: ClassVar[dict[str, int]] = {}
    record: ClassVar[dict[str, str]] = {"name": "stand-in", "sha256": "0" * 64}
    d_in, depth, n_prefix = 8, 3, 1

    def __init__(self, grid: tuple[int, int] = (4, 4), side: int = 32, scale: float = 1.0) -> None:
        self.grid, self.scale = grid, scale
        self.preprocessing = Preprocessing(side=side)
        self.n_calls = 0

    @property
    def n_tokens(self) -> int:
        return self.n_prefix + self.grid[0] * self.grid[1]

    @property
    def token_kinds(self) -> list[str]:
        return ["class"] * self.n_prefix + ["patch"] * (self.grid[0] * self.grid[1])

    def block_number(self, layer: int) -> int:
        return layer % self.depth

    def width(self, layer: int) -> int:
        return self.d_in

    def tokens(self, images: Any, layer: int = -2) -> torch.Tensor:
        self.n_calls += 1
        x = torch.as_tensor(np.asarray(images)).float() / 255
        b, h, w, c = x.shape
        rows, columns = self.grid
        x = (
            x.view(b, rows, h // rows, columns, w // columns, c)
            .permute(0, 1, 3, 2, 4, 5)
            .reshape(b, rows * columns, -1, c)
        )
        ones = torch.ones(b, rows * columns, 1)
        patches = torch.cat([x.mean(2), x.std(2), ones, 0.5 * ones], dim=2)
        return self.scale * torch.cat([patches.mean(1, keepdim=True)] * self.n_prefix + [patches], dim=1)
