"""Which patches train the dictionary: those on the cell, and a share of the background."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from cytosae._progress import track
from cytosae.cells import ImageReader, cell_share_of_patches, decode_image, estimate_cell

#: A patch is on the cell when the cell covers at least this share of it.
ON_CELL = 0.25


def training_patches(
    frame: pd.DataFrame, root: str, grid: tuple[int, int], background: float, seed: int
) -> npt.NDArray[np.bool_]:
    """Choose patches by the foreground estimate of `cytosae.cells.estimate_cell`.

    Parameters
    ----------
    frame, root
        The cells, in the order of their tokens.
    grid
        Rows and columns of patches.
    background
        Share of the patches off the cell that are kept; 1 keeps all without looking at the images.
    seed
        Of the choice among them.

    Returns
    -------
    bool [n_cells * rows * columns]
    """
    n_patches = grid[0] * grid[1]
    if background >= 1:
        return np.ones(len(frame) * n_patches, bool)
    reader = ImageReader(root)
    keep = np.random.Generator(np.random.Philox(key=[seed, 2**33])).random((len(frame), n_patches)) < background
    images = zip(frame["image"], frame["sha256"], strict=True)
    for i, (image, sha256) in enumerate(track(images, len(frame), "foreground", "cells")):
        cell = estimate_cell(decode_image(reader.read(image, sha256)).pixels)
        keep[i] |= cell_share_of_patches(cell, grid).ravel() >= ON_CELL
    return keep.ravel()
