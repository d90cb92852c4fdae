"""Maps as pictures: the value of a concept over the pixels of an image, on a scale that is stated and common to all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from cytosae._errors import UsageError

#: How a value between the centres of patches is found: that of the patch, or linear between the centres.
WAYS = ("nearest", "smooth")


def spread_map(values: npt.NDArray[Any], width: int, height: int, way: str = "nearest") -> npt.NDArray[np.float32]:
    """A map [rows, columns] over an image: float32 [height, width], in the units of the codes.

    ``nearest`` shows what was measured, patch by patch; ``smooth`` is easier on the eye. Both keep a map's place: the value at
    the centre of a patch is that patch's (smooth, where patches are an odd number of pixels: exactly).

    Raises
    ------
    UsageError
        No such way.
    """
    if way not in WAYS:
        raise UsageError(f"A map cannot be drawn {way!r}; use {' or '.join(WAYS)}.")
    how = Image.Resampling.NEAREST if way == "nearest" else Image.Resampling.BILINEAR
    small = Image.fromarray(np.ascontiguousarray(values, dtype=np.float32))
    return np.asarray(small.resize((width, height), how), dtype=np.float32)


def draw_maps(
    images: Sequence[npt.NDArray[np.uint8]],
    maps: Sequence[npt.NDArray[Any]],
    titles: Sequence[str] = (),
    *,
    top: float | None = None,
    way: str = "nearest",
) -> Any:
    """A matplotlib figure of one concept on several images: each beside its map, all maps on one scale from 0 to `top`.

    Parameters
    ----------
    images
        uint8 [height, width, 3], of any sizes.
    maps
        [rows, columns] for each image.
    titles
        For each image.
    top
        End of the scale; the largest value of all maps where None. Values above it look like it.
    way
        One of `WAYS`.
    """
    from matplotlib.figure import Figure

    if len(images) != len(maps) or not images:
        raise UsageError(f"{len(images)} images and {len(maps)} maps do not belong together.")
    top = max(float(np.max(m)) for m in maps) if top is None else top
    top = top if top > 0 else 1.0
    figure = Figure(figsize=(2.1 * len(images) + 0.9, 4.5), layout="constrained")
    axes = figure.subplots(2, len(images), squeeze=False)
    shown: Any = None
    for i, (image, values) in enumerate(zip(images, maps, strict=True)):
        height, width = image.shape[:2]
        axes[0, i].imshow(image)
        axes[1, i].imshow(np.asarray(Image.fromarray(image).convert("L")), cmap="gray", vmin=0, vmax=255)
        spread = spread_map(values, width, height, way)
        shown = axes[1, i].imshow(
            spread, cmap="magma", vmin=0, vmax=top, alpha=0.75, interpolation="nearest", extent=(0, width, height, 0)
        )
        axes[0, i].set_title(titles[i] if i < len(titles) else "", fontsize=9)
        for axis in axes[:, i]:
            axis.set_axis_off()
    # beside both rows, so that they stay aligned; as wide as it is beside few images
    bar = figure.colorbar(shown, ax=list(axes.ravel()), shrink=0.6, pad=0.01, fraction=min(0.1, 0.3 / len(images)))
    bar.set_label(f"activation, one scale: 0 to {top:.3g}", fontsize=9)
    return figure
