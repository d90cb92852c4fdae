"""Pieces of pictures for a page: a cell as JPEG, a concept's map as a translucent layer, and its outline as a path."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

#: Sides of a picture in the page's own units, and of the map's raster.
SIDE, RASTER = 224, 112
#: Yellow: the one light colour that stands out from violet, red and pale cells for every kind of colour vision.
HEAT = (255, 225, 0)
#: How opaque it gets.
OPAQUE = 0.62
#: Okabe and Ito's colours, told apart by every kind of colour vision.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#FFFFFF")
#: The outline runs where the code is this share of the largest in the picture.
OUTLINE = 0.5


@dataclass(frozen=True)
class Overlay:
    """A cell with a concept's map: data URIs of both layers, the outline as an SVG path, and a caption."""

    image: str
    heat: str
    outline: str
    caption: str
    title: str
    value: float


def jpeg_uri(pixels: npt.NDArray[np.uint8], side: int = SIDE, quality: int = 85) -> str:
    """Pixels as a JPEG data URI of `side` x `side`."""
    image = Image.fromarray(pixels)
    if image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, optimize=True)
    return _uri(buffer.getvalue(), "jpeg")


def png_uri(rgba: npt.NDArray[np.uint8]) -> str:
    """RGBA pixels as a PNG data URI."""
    buffer = io.BytesIO()
    Image.fromarray(rgba, "RGBA").save(buffer, "PNG", optimize=True)
    return _uri(buffer.getvalue(), "png")


def raster(values: npt.NDArray[np.floating], side: int = RASTER) -> npt.NDArray[np.float32]:
    """A patch map [rows, columns], smoothly enlarged (bilinear between the patches' centres) to [side, side]."""
    image = Image.fromarray(values.astype(np.float32))
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR), dtype=np.float32)


def heat_uri(values: npt.NDArray[np.floating], top: float) -> str:
    """A map as one colour whose opacity grows with the code; `top` is fully opaque."""
    strength = np.clip(raster(values) / top, 0, 1) if top > 0 else np.zeros((RASTER, RASTER), np.float32)
    rgba = np.empty((RASTER, RASTER, 4), np.uint8)
    rgba[..., :3] = HEAT
    rgba[..., 3] = np.rint(255 * OPAQUE * strength**0.8).astype(np.uint8)
    return png_uri(rgba)


def outline_path(values: npt.NDArray[np.floating], level: float, side: int = SIDE) -> str:
    """SVG path of the line on which a map has the value `level`; closed at the border of the image."""
    import contourpy

    if level <= 0:
        return ""
    grid = np.pad(raster(values), 1)
    scale = side / RASTER
    path = []
    lines: Any = contourpy.contour_generator(z=grid).lines(level)
    for line in lines:
        points = np.clip((line - 0.5) * scale, 0.8, side - 0.8)
        path.append("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) + "Z")
    return "".join(path)


def overlay(
    pixels: npt.NDArray[np.uint8], values: npt.NDArray[np.floating], top: float, caption: str, title: str
) -> Overlay:
    """A cell with the map of one concept; the opacity is common to all pictures that share `top`."""
    peak = float(values.max())
    return Overlay(jpeg_uri(pixels), heat_uri(values, top), outline_path(values, OUTLINE * peak), caption, title, peak)


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def cell_name(cell_id: int, image: Any) -> str:
    """Number and file of a cell: what a person looks for on the disk."""
    return f"cell {cell_id} ({str(image).rsplit('/', 1)[-1]})"
