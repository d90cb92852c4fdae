"""DINOv2's position embedding at another image size, as its publisher's code does it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def resample_positions(embedding: torch.Tensor, grid: int, n_prefix: int, *, registers: bool) -> torch.Tensor:
    """[1, n_prefix + rows * columns, dim] -> [1, n_prefix + grid * grid, dim], bicubic.

    The networks with registers were published with antialiasing (as timm does it), those without with none and with a
    scale of (grid + 0.1) / rows; the two differ enough to be seen in the tokens.
    """
    import torch
    import torch.nn.functional as F

    prefix, patches = embedding[:, :n_prefix], embedding[:, n_prefix:].float()
    rows = math.isqrt(patches.shape[1])
    square = patches.reshape(1, rows, rows, -1).permute(0, 3, 1, 2)
    if registers:
        new = F.interpolate(square, size=(grid, grid), mode="bicubic", antialias=True)
    else:
        new = F.interpolate(square, scale_factor=(grid + 0.1) / rows, mode="bicubic")
    return torch.cat([prefix.float(), new.permute(0, 2, 3, 1).reshape(1, grid * grid, -1)], dim=1)
