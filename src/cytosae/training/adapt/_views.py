"""Views of cells: how one cell could look on another slide, and what the blocks that stay as they are say of it."""

from __future__ import annotations

import io
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image

from cytosae._errors import CytosaeError
from cytosae._progress import Meter
from cytosae.backbones import Backbone
from cytosae.storage import commit_file
from cytosae.tokens import load_images

#: Cells a forward pass, and cells a file.
_BATCH, _SHARD = 16, 256


def view(image: npt.NDArray[np.uint8], cell: int, number: int) -> npt.NDArray[np.uint8]:
    """View `number` of a cell, the same each time.

    Parameters
    ----------
    image
        uint8 [side, side, 3].
    cell
        Which cell, for the random numbers.
    number
        Views 0 and 1, 2 and 3, ... show one geometry in two stains.

    Returns
    -------
    uint8 [side, side, 3]
    """
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    first = np.random.default_rng((number - number % 2, cell))
    moved = _geometry(x, first)
    return _stain(moved, np.random.default_rng((number, cell)) if number % 2 else first)


def _geometry(x: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """[1, 3, side, side], zoomed, turned, mirrored and moved."""
    zoom = math.exp(rng.uniform(math.log(0.75), math.log(1.6)))
    quarter, mirrored = int(rng.integers(4)), int(rng.integers(2))
    angle = quarter * math.pi / 2 + rng.uniform(-0.2, 0.2)
    shift = rng.uniform(-0.12, 0.12, 2)
    c, s, m = math.cos(angle) / zoom, math.sin(angle) / zoom, 1 - 2 * mirrored
    matrix = torch.tensor([[[c * m, -s, shift[0]], [s * m, c, shift[1]]]], dtype=torch.float32)
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


def _stain(x: torch.Tensor, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """uint8 [side, side, 3]: another strength and balance of stain, cast, now and then grey, blurred, or a poor JPEG."""
    density = -torch.log(x.clamp(1 / 255, 1))
    strength = math.exp(rng.normal(0, 0.3)) * torch.tensor(np.exp(rng.normal(0, 0.15, 3)), dtype=torch.float32)
    cast = torch.tensor(rng.uniform(-0.03, 0.12, 3), dtype=torch.float32)
    x = torch.exp(-(density * strength.view(1, 3, 1, 1) + cast.view(1, 3, 1, 1))).clamp(0, 1)
    if rng.random() < 0.2:
        x = x.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    if rng.random() < 0.5:
        sigma = rng.uniform(0.3, 2.0)
        reach = int(3 * sigma) + 1
        weights = torch.exp(-(torch.arange(-reach, reach + 1).float() ** 2) / 2 / sigma**2)
        weights = (weights / weights.sum()).view(1, 1, 1, -1)
        x = F.conv2d(F.pad(x.transpose(0, 1), (reach, reach, 0, 0), mode="reflect"), weights)
        x = F.conv2d(F.pad(x, (0, 0, reach, reach), mode="reflect"), weights.transpose(2, 3)).transpose(0, 1)
    out: npt.NDArray[np.uint8] = (x[0].permute(1, 2, 0) * 255).round().clamp(0, 255).to(torch.uint8).numpy()
    if rng.random() < 0.5:
        file = io.BytesIO()
        Image.fromarray(out).save(file, "JPEG", quality=int(rng.integers(30, 95)))
        out = np.asarray(Image.open(file))
    return out


class Views:
    """What the frozen blocks say of every view of every cell, on disk: bfloat16 [n_views, n_cells, n_tokens, d_in].

    Files of 256 cells, each written whole, so that a stop loses one at most.
    """

    def __init__(self, folder: Path, n_views: int, n_cells: int, n_tokens: int, d_in: int) -> None:
        self.folder, self.n_views, self.n_cells = folder, n_views, n_cells
        self._shape = (n_tokens, d_in)
        self._open: dict[int, Any] = {}

    def read(self, number: int, cells: npt.NDArray[np.int64]) -> torch.Tensor:
        """float32 [cells, n_tokens, d_in] of one view."""
        rows = [self._shard(int(cell) // _SHARD)[number, int(cell) % _SHARD] for cell in cells]
        return torch.from_numpy(np.stack(rows)).view(torch.bfloat16).float()

    def write(self, frame: pd.DataFrame, root: str, backbone: Backbone, stop: int, bfloat16: bool) -> None:
        """Write the files that are missing.

        Parameters
        ----------
        frame, root
            The cells, in the order of `read`, and where their images are.
        backbone, stop
            The network, and the first block that is not run.
        bfloat16
            Whether to multiply in bfloat16.

        Raises
        ------
        CytosaeError
            The disk would become full, or an image changed.
        """
        self.folder.mkdir(exist_ok=True)
        missing = [s for s in range(-(-self.n_cells // _SHARD)) if not self._path(s).exists()]
        needed = sum(self._cells(s) for s in missing) * self.n_views * math.prod(self._shape) * 2
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise CytosaeError(
                f"The views still to be written take {needed / 1e9:.1f} GB, but {self.folder.parent.parent} has "
                f"{free / 1e9:.1f} GB free; free some space, or take fewer cells (--where)."
            )
        with Meter(self.n_cells, "views", "cells") as meter:
            for shard in range(-(-self.n_cells // _SHARD)):
                if shard in missing:
                    with commit_file(self._path(shard)) as temporary:
                        self._write_shard(shard, temporary, frame, root, backbone, stop, bfloat16)
                meter.add(self._cells(shard))

    def _write_shard(
        self, shard: int, path: Path, frame: pd.DataFrame, root: str, backbone: Backbone, stop: int, bfloat16: bool
    ) -> None:
        first, n = shard * _SHARD, self._cells(shard)
        tokens = np.empty((self.n_views, n, *self._shape), np.int16)
        for a in range(0, n, _BATCH):
            images = load_images(frame.iloc[first + a : first + min(a + _BATCH, n)], root, backbone)
            for number in range(self.n_views):
                pixels = np.stack([view(image, first + a + i, number) for i, image in enumerate(images)])
                with torch.no_grad(), torch.autocast(device_type(backbone.device), torch.bfloat16, enabled=bfloat16):
                    x = backbone.run_blocks(backbone.embed(torch.from_numpy(pixels)), 0, stop)
                tokens[number, a : a + len(pixels)] = x.cpu().bfloat16().view(torch.int16).numpy()
        tokens.tofile(path)

    def _shard(self, shard: int) -> Any:
        if shard not in self._open:
            shape = (self.n_views, self._cells(shard), *self._shape)
            self._open[shard] = np.memmap(self._path(shard), np.int16, "r", shape=shape)
        return self._open[shard]

    def _path(self, shard: int) -> Path:
        return self.folder / f"views-{shard:05d}.bin"

    def _cells(self, shard: int) -> int:
        return min(_SHARD, self.n_cells - shard * _SHARD)


def device_type(device: str) -> str:
    """``cuda`` of ``cuda:1``, as autocast wants it."""
    return torch.device(device).type
