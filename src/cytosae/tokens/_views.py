"""Turned and mirrored views of a cell: what a microscope could as well have shown, for training on few cells."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

#: Of a square there are so many: four quarter turns, each as it is and mirrored.
VIEWS = 8


def turned(pictures: npt.NDArray[Any], view: int) -> npt.NDArray[Any]:
    """One view of square pictures.

    Parameters
    ----------
    pictures
        [n, side, side, ...]: images, or masks over the grid of patches.
    view
        0: as they are. ``view // 2`` quarter turns counterclockwise, then, of the odd ones, left and right exchanged.
    """
    whole = np.rot90(pictures, view // 2, axes=(1, 2))
    return whole[:, :, ::-1] if view % 2 else whole
