"""Where the cell is: a simple estimate for images without a mask."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage
from skimage.filters import threshold_multiotsu, threshold_otsu

#: As shares of the image's side: how far from its nucleus stained cytoplasm is counted, and a rim that always is.
_REACH, _RIM = 0.13, 0.04
#: Parts of a nucleus (lobes) may lie so far apart.
_LOBES = 0.08


def estimate_cell(pixels: npt.NDArray[np.uint8], side: int = 112) -> npt.NDArray[np.bool_]:
    """Estimate which pixels show the cell in the middle of the image.

    The core is the bluest of three classes (Otsu's method for several thresholds; nuclei and platelets take up blue stain,
    red cells do not), in the part nearest the centre and parts close to it. Around it everything stained (darker in green than Otsu's
    threshold) counts up to a fixed distance, and a narrow rim in any case. It is no segmentation: touching nuclei flow
    together, wide cytoplasm is cut at its edge, and a piece of a touching red cell is counted.

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
    red, green, blue = (ndimage.gaussian_filter(small[:, :, c], 1.0) for c in range(3))
    warm = 2 * red - blue  # low where blue stain was taken up, higher on red cells, highest on empty ground
    if len(np.unique(warm)) < 8 or len(np.unique(green)) < 2:
        return np.ones((side, side), bool)
    core = _nearest_part(warm < threshold_multiotsu(warm, classes=3, nbins=96)[0], side)
    if not core.any():
        return np.ones((side, side), bool)
    distance = ndimage.distance_transform_edt(~core)
    stained = (green < threshold_otsu(green)) & (distance <= _REACH * side)
    parts, _ = ndimage.label(stained | (distance <= _RIM * side))
    return np.asarray(ndimage.binary_fill_holes(np.isin(parts, np.unique(parts[core]))))


def _nearest_part(dark: npt.NDArray[np.bool_], side: int) -> npt.NDArray[np.bool_]:
    """The connected part nearest the centre (specks left out), and the parts within the distance of lobes from it."""
    parts, n = ndimage.label(dark)
    if n == 0:
        return np.zeros((side, side), bool)
    y, x = np.mgrid[:side, :side]
    from_centre = np.hypot(y - (side - 1) / 2, x - (side - 1) / 2)
    sizes = np.bincount(parts.ravel(), minlength=n + 1)
    large = sizes >= 0.002 * side * side
    large[0] = False
    if not large.any():
        large = np.arange(n + 1) > 0
    near = np.where(large, ndimage.minimum(from_centre, parts, np.arange(n + 1)), np.inf)
    core = parts == int(np.argmin(near))
    gap = ndimage.minimum(ndimage.distance_transform_edt(~core), parts, np.arange(n + 1))
    lobes = large & (gap <= _LOBES * side)
    return np.asarray(ndimage.binary_fill_holes(lobes[parts]))


def cell_share_of_patches(cell: npt.NDArray[np.bool_], grid: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Share of every patch that the cell covers: float [rows, columns]."""
    size = (grid[1], grid[0])
    return np.asarray(Image.fromarray(cell.astype(np.float32)).resize(size, Image.Resampling.BOX), dtype=np.float64)
