"""How much of a concept lies on the cell."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def on_cell_share(maps: npt.NDArray[Any], cells: npt.NDArray[Any]) -> float:
    """Share of a concept's activation that lies on the cell, over several images.

    Parameters
    ----------
    maps, cells
        [images, rows, columns]: codes, and the share of each patch that the cell covers.

    Returns
    -------
    sum(maps * cells) / sum(maps); NaN where the concept is nowhere active.
    """
    total = float(maps.sum(dtype=np.float64))
    return float((maps * cells).sum(dtype=np.float64)) / total if total > 0 else float("nan")
