"""Pixels of more than 8 bits (16-bit and float, grey or colour), which Pillow would cut to their upper byte."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt


def decode_deep_tiff(
    data: bytes, check_size: Callable[[int, int], None]
) -> tuple[npt.NDArray[np.uint8], str, str, int]:
    """First page of a TIFF by tifffile: pixels uint8 ``[height, width, 3]``, mode, header, number of pages.

    Parameters
    ----------
    data
        The file's bytes.
    check_size
        Called with width and height before any memory is asked for.

    Raises
    ------
    ValueError
        A colour space, shape or range of values that has no single reading as RGB.
    """
    import logging

    import tifffile

    logging.getLogger("tifffile").addHandler(logging.NullHandler())  # what is wrong goes into the table, not to stderr
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page: Any = file.pages.first
            check_size(page.imagewidth, page.imagelength)
            if page.imagedepth != 1 or page.samplesperpixel > 5:
                raise ValueError(f"a stack of {page.imagedepth} planes and {page.samplesperpixel} channels")
            header = f"TIFF {str(page.compression.name).lower()} {page.bitspersample} bit"
            n_pages = len(file.pages)
            photometric, orientation = int(page.photometric), _tag(page, "Orientation", 1)
            top = _tag(page, "MaxSampleValue", None)
            values = page.asarray()
            if page.planarconfig == 2 and values.ndim == 3:
                values = values.transpose(1, 2, 0)
    except tifffile.TiffFileError as error:
        raise ValueError(str(error)) from None
    if photometric not in (0, 1, 2):
        raise ValueError(f"colour space {photometric} with {values.dtype} values")
    pixels, mode = to_rgb(values, top)
    if photometric == 0:
        pixels = 255 - pixels
    from cytosae.cells._decode import upright

    return upright(pixels, int(orientation)), mode, header, n_pages


def decode_deep_png(data: bytes) -> tuple[npt.NDArray[np.uint8], str]:
    """A 16-bit PNG: pixels uint8 ``[height, width, 3]`` and mode."""
    import imagecodecs

    return to_rgb(imagecodecs.png_decode(data))


def to_rgb(values: npt.NDArray[Any], top: float | None = None) -> tuple[npt.NDArray[np.uint8], str]:
    """Scale values ``[height, width]`` or ``[height, width, 1 to 4]`` of any range to 8-bit RGB on white.

    The upper end of the range is, in this order: what the file states (`top`), 1 for floats within [0, 1], 255 where
    no value is larger (8-bit values in a wider container), 65535. Ten- and twelve-bit values in a 16-bit container
    cannot be told from a dark 16-bit picture and are read as 16 bit unless the file states its range.

    Raises
    ------
    ValueError
        Not-a-number, negative or larger values, or a number of channels that is not 1 to 4.
    """
    values = values[:, :, None] if values.ndim == 2 else values
    if values.ndim != 3 or not 1 <= values.shape[2] <= 4:
        raise ValueError(f"pixels of shape {values.shape} are neither grey nor RGB")
    floating = values.dtype.kind == "f"
    mode = {1: "F" if floating else "I;16", 2: "LA", 3: "RGB", 4: "RGBA"}[values.shape[2]]
    mode += "" if values.shape[2] == 1 else (";F" if floating else ";16")
    low, high = values.min(), values.max()
    if floating and not (np.isfinite(low) and np.isfinite(high) and np.isfinite(values).all()):
        raise ValueError("has pixels that are not numbers")
    if low < 0 or high > 65535:
        raise ValueError("has values of unknown range")
    if top is None or top < high or top < 255:
        top = 1.0 if floating and high <= 1 else 255.0 if high <= 255 else 65535.0
    scaled = np.rint(values.astype(np.float64) * (255.0 / top))
    colour, n = scaled, scaled.shape[2]
    if n in (2, 4):
        alpha = scaled[:, :, -1:] / 255.0
        colour = np.rint(scaled[:, :, :-1] * alpha + 255.0 * (1.0 - alpha))
    return np.repeat(colour, 3, axis=2).astype(np.uint8) if colour.shape[2] == 1 else colour.astype(np.uint8), mode


def _tag(page: Any, name: str, default: Any) -> Any:
    tag = page.tags.get(name)
    value = default if tag is None else tag.value
    return max(value) if isinstance(value, tuple) and value else value
