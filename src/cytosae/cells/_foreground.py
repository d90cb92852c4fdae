"""Where the cell is: a simple estimate for images without a mask."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

#: Rim added around the dark core, as a share of the image's side: cytoplasm is paler than the nucleus.
_RIM = 0.07


def estimate_cell(pixels: npt.NDArray[np.uint8], side: int = 112) -> npt.NDArray[np.bool_]:
    """Estimate which pixels show the cell in the middle of the image.

    The stained core is what is darker in green than Otsu's threshold and connected to the part nearest the centre; holes
    are filled and a rim is added for the cytoplasm. It is no segmentation: touching cells flow together, and pale
    cytoplasm is missed at its edge.

    Parameters
    ----------
    pixels
        uint8 [height, width, 3].
    side
        Width and height of the result.

    Returns
    -------
    bool [side, side]
    """
    small = np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR), dtype=np.float64)
    green = ndimage.gaussian_filter(small[:, :, 1], 1.5)
    dark = green < _otsu(green)
    parts, n = ndimage.label(dark)
    if n == 0:
        return np.ones((side, side), bool)
    y, x = np.mgrid[:side, :side]
    distance = np.hypot(y - (side - 1) / 2, x - (side - 1) / 2)
    sizes = np.bincount(parts.ravel(), minlength=n + 1)
    large = sizes >= 0.002 * side * side
    large[0] = False
    if not large.any():
        large = np.arange(n + 1) > 0
    near = ndimage.minimum(distance, parts, np.arange(n + 1))
    near = np.where(large, near, np.inf)
    core = ndimage.binary_fill_holes(parts == int(np.argmin(near)))
    return np.asarray(ndimage.distance_transform_edt(~core) <= _RIM * side)


def cell_share_of_patches(cell: npt.NDArray[np.bool_], grid: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Share of every patch that the cell covers: float [rows, columns]."""
    size = (grid[1], grid[0])
    return np.asarray(Image.fromarray(cell.astype(np.float32)).resize(size, Image.Resampling.BOX), dtype=np.float64)


def _otsu(values: npt.NDArray[np.float64]) -> float:
    """Otsu's threshold: the split of the grey levels with the largest variance between the two parts."""
    if values.max() - values.min() < 1e-9:
        return float(values.min())  # nothing is darker than the rest
    counts, edges = np.histogram(values, bins=128)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * centres)
    with np.errstate(invalid="ignore", divide="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return float(centres[int(np.nanargmax(between))])
