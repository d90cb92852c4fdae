"""A picture drawn with Pillow alone: text, maps over a cell, outlines. Drawing one takes a tenth of what matplotlib takes."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from cytosae.reports._pictures import HEAT, OPAQUE, OUTLINE, raster

#: Ink, faint ink, rules, paper.
INK, FAINT, RULE, PAPER = "#1b1b1b", "#5f5f5f", "#d4d4d4", "#ffffff"


@functools.cache
def font(size: int, bold: bool = False) -> Any:
    """DejaVu Sans, which has the letters of most languages; it comes with matplotlib, which is not imported for it."""
    found = importlib.util.find_spec("matplotlib")
    if found is not None and found.origin is not None:
        path = Path(found.origin).parent / f"mpl-data/fonts/ttf/DejaVuSans{'-Bold' if bold else ''}.ttf"
        if path.is_file():
            return ImageFont.truetype(str(path), size)
    return ImageFont.load_default(size)


class Canvas:
    """White paper with text and pictures on it."""

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width, height), PAPER)
        self.draw = ImageDraw.Draw(self.image)

    def text(
        self, x: float, y: float, text: str, size: int = 15, *, colour: str = INK, bold: bool = False, width: float = 0
    ) -> None:
        """One line from its upper left corner; cut with an ellipsis where it is wider than `width` pixels."""
        letters = font(size, bold)
        if width and letters.getlength(text) > width:
            while text and letters.getlength(text + "…") > width:
                text = text[:-1]
            text = text.rstrip() + "…"
        self.draw.text((x, y), text, fill=colour, font=letters)

    def paste(self, x: int, y: int, picture: Image.Image) -> None:
        """A picture with a hair line around it."""
        self.image.paste(picture, (x, y))
        self.draw.rectangle((x - 1, y - 1, x + picture.width, y + picture.height), outline=RULE)

    def chip(self, x: float, y: float, number: int, colour: str) -> None:
        """A number on a disc of 24 pixels."""
        self.draw.ellipse((x, y, x + 24, y + 24), fill=colour, outline="#333333")
        self.draw.text((x + 12, y + 12), str(number), fill=ink_on(colour), font=font(13, True), anchor="mm")


def ink_on(colour: str) -> str:
    """Black or white, whichever is easier to read on a colour ``#rrggbb``."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "#ffffff"


def square(pixels: npt.NDArray[np.uint8], side: int) -> Image.Image:
    """An image as a square, as the backbone sees it."""
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS)


def heated(picture: Image.Image, values: npt.NDArray[Any]) -> Image.Image:
    """A picture under a concept's map: yellow where it is active, a line around what is above half of the largest."""
    side, peak = picture.width, float(values.max())
    if peak <= 0:
        return picture.copy()
    smooth = raster(values, side)
    strength = OPAQUE * np.clip(smooth / np.float32(peak), 0, 1) ** np.float32(0.8)
    under = np.asarray(picture, dtype=np.float32)
    mixed = under + strength[..., None] * (np.array(HEAT, np.float32) - under)
    out = Image.fromarray(np.rint(mixed).astype(np.uint8))
    outline(out, values, "#ffffff", smooth=smooth)
    return out


def outline(
    picture: Image.Image, values: npt.NDArray[Any], colour: str, width: int = 2,
    smooth: npt.NDArray[np.float32] | None = None,
) -> None:  # fmt: skip
    """Draw the line on which a map has half of its largest value, dark beneath so that it shows on every ground.

    `smooth` is the map as large as the picture, where it is there already.
    """
    import contourpy

    peak, side = float(values.max()), picture.width
    if peak <= 0:
        return
    grid = np.pad(raster(values, side) if smooth is None else smooth, 1)
    draw = ImageDraw.Draw(picture)
    lines: Any = contourpy.contour_generator(z=grid).lines(OUTLINE * peak)
    for ink, wide in (("#111111", width + 2), (colour, width)):
        for line in lines:
            points = np.clip(line - 1, 1, side - 2)
            draw.line([(float(x), float(y)) for x, y in points], fill=ink, width=wide, joint="curve")
