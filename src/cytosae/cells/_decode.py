"""Bytes of an image file -> 8-bit RGB pixels, whole or not at all."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

#: A single-cell image is a few hundred pixels wide; a whole field a few thousand. More is a bomb or a slide.
MAX_PIXELS = 64_000_000

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF")


class UnreadableImageError(Exception):
    """The reason why an image cannot be read whole; `cells` puts it into the column `reason`."""


@dataclass(frozen=True)
class Decoded:
    """An image as pixels: `pixels` uint8 [height, width, 3], and the mode of the file (``RGB``, ``L``, ``RGBA`` ...)."""

    pixels: npt.NDArray[np.uint8]
    mode: str


def decode_image(data: bytes) -> Decoded:
    """Decode an image file's bytes to RGB.

    The kind of file is read from its content, never from its name. EXIF orientation is applied, transparent parts are
    put on white, 16-bit and float greys are scaled to 8 bit by their range (a plain cast would saturate), of several
    pages the first is taken.

    Raises
    ------
    UnreadableImageError
        No image, cut short, too large, or without pixels.
    """
    if not data:
        raise UnreadableImageError("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise UnreadableImageError(f"too large ({image.width} x {image.height} pixels)")
                image.load()
                return Decoded(_to_rgb(image), image.mode)
    except UnreadableImageError:
        raise
    except UnidentifiedImageError:
        raise UnreadableImageError("not an image of a known format") from None
    except Image.DecompressionBombError:
        raise UnreadableImageError("too large") from None
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        IndexError,
        TypeError,
        OverflowError,
        MemoryError,
    ) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UnreadableImageError(f"cannot be decoded whole ({reason})") from None


def _to_rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    if image.mode in ("I;16", "I;16B", "I;16L", "I", "F"):
        return _scaled_grey(image)
    upright = ImageOps.exif_transpose(image)
    if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
        upright = upright.convert("RGBA")
        white = Image.new("RGBA", upright.size, (255, 255, 255, 255))
        upright = Image.alpha_composite(white, upright)
    return np.array(upright.convert("RGB"), dtype=np.uint8)


def _scaled_grey(image: Image.Image) -> npt.NDArray[np.uint8]:
    values = np.asarray(ImageOps.exif_transpose(image), dtype=np.float64)
    if not np.isfinite(values).all():
        raise UnreadableImageError("has pixels that are not numbers")
    if image.mode == "F" and values.min() >= 0 and values.max() <= 1:
        top = 1.0
    elif values.min() >= 0 and values.max() <= 255:
        top = 255.0
    elif values.min() >= 0 and values.max() <= 65535:
        top = 65535.0
    else:
        raise UnreadableImageError("has grey values of unknown range")
    grey = np.rint(values / top * 255).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)
