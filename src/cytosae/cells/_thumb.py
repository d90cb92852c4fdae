"""Thumbs: the small grey picture and mean colour by which near duplicates are found."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

#: Side of the grey picture in pixels; a cell's texture is coarser than 1/32 of its image.
SIDE = 32

#: Bytes of a thumb: the picture, then the mean red, green and blue in 16 bits each (256ths of a grey level).
THUMB_BYTES = SIDE * SIDE + 6


def make_thumb(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Thumb of pixels ``[height, width, 3]``: uint8 ``[THUMB_BYTES]``."""
    small = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.HAMMING, reducing_gap=2.0)
    grey = np.asarray(small.convert("L")).ravel()
    mean = np.asarray(small).reshape(-1, 3).mean(axis=0)
    return np.concatenate([grey, np.rint(mean * 256).astype("<u2").view(np.uint8)])


def blank_thumb() -> npt.NDArray[np.uint8]:
    """The thumb of a cell without an image; it resembles nothing."""
    return np.zeros(THUMB_BYTES, np.uint8)


def split_thumbs(thumbs: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Grey pictures ``[n, SIDE, SIDE]`` and mean colours ``[n, 3]`` (0 to 255) of thumbs ``[n, THUMB_BYTES]``."""
    grey = thumbs[:, : SIDE * SIDE].reshape(-1, SIDE, SIDE).astype(np.float32)
    mean = np.ascontiguousarray(thumbs[:, SIDE * SIDE :]).view("<u2").astype(np.float32) / np.float32(256)
    return grey, mean
