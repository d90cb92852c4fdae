"""Masks of nucleus and cytoplasm, and what share of each patch they cover."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from cytosae._errors import CytosaeError
from cytosae.cells import ImageReader, cell_share_of_patches, decode_image, estimate_cell
from cytosae.concepts import region_shares

Array = npt.NDArray[Any]
#: Grey levels of a mask: cytoplasm around 128, nucleus 255, all else 0.
_CYTOPLASM, _NUCLEUS = 64, 192


def read_mask(reader: ImageReader, name: str) -> npt.NDArray[np.uint8]:
    """uint8 [height, width]: 0 background, 1 cytoplasm, 2 nucleus.

    Raises
    ------
    CytosaeError
        The file is gone or is no image.
    """
    data = reader.read(name)
    try:
        with Image.open(io.BytesIO(data)) as image:
            grey = np.asarray(image.convert("L"))
    except (OSError, ValueError) as error:
        raise CytosaeError(f"The mask {name} cannot be read ({error}); make the table again without it.") from None
    return np.where(grey >= _NUCLEUS, 2, np.where(grey >= _CYTOPLASM, 1, 0)).astype(np.uint8)


def shares(region: Array, grid: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Share of each patch that a region (bool [height, width]) covers: float64 [rows * columns]."""
    if not region.any():
        return np.zeros(grid[0] * grid[1])
    return region_shares(region, grid, region.shape[1], region.shape[0]).ravel()


def mask_shares(frame: pd.DataFrame, root: str, grid: tuple[int, int]) -> dict[str, npt.NDArray[np.float64]]:
    """``nucleus`` and ``cytoplasm`` -> float64 [n, n_patches], of cells that have a mask."""
    reader = ImageReader(root)
    masks = [read_mask(reader, name) for name in frame["mask"]]
    return {"nucleus": np.stack([shares(m == 2, grid) for m in masks]),
            "cytoplasm": np.stack([shares(m == 1, grid) for m in masks])}  # fmt: skip


def cell_shares(frame: pd.DataFrame, root: str, grid: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Share of each patch that the cell covers, by its mask or, without one, by a simple estimate: float64 [n, n_patches]."""
    reader = ImageReader(root)
    out = np.empty((len(frame), grid[0] * grid[1]))
    for i, (image, mask) in enumerate(zip(frame["image"], frame["mask"], strict=True)):
        if isinstance(mask, str) and mask:
            out[i] = shares(read_mask(reader, mask) > 0, grid)
        else:
            pixels = decode_image(reader.read(image)).pixels
            out[i] = cell_share_of_patches(estimate_cell(pixels), grid).ravel()
    return out
