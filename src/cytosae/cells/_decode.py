"""Bytes of an image file -> 8-bit RGB pixels, whole or not at all."""

from __future__ import annotations

import io
import warnings
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from cytosae.cells._deep import decode_deep_png, decode_deep_tiff
from cytosae.cells._jpeg import BrokenJpegError, parse_jpeg, provable

#: A single-cell image is a few hundred pixels wide; a whole field a few thousand. More is a bomb or a slide.
MAX_PIXELS = 64_000_000

FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF")

#: What a decoder may raise on hostile bytes. Anything else is a fault of ours and must be seen.
REFUSALS = (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError, KeyError, OverflowError, MemoryError,
             RuntimeError, ZeroDivisionError, AttributeError, zlib.error)  # fmt: skip


class UnreadableImageError(Exception):
    """The reason why an image cannot be read whole; `cells` puts it into the column `reason`."""


@dataclass(frozen=True)
class Decoded:
    """An image as pixels.

    Attributes
    ----------
    pixels
        uint8 ``[height, width, 3]``, RGB, upright.
    mode
        The mode of the file (``RGB``, ``L``, ``RGBA``, ``I;16``, ``RGB;16``, ``F`` ...).
    header
        The kind of file and how it was written (``JPEG q95 4:2:0``, ``TIFF lzw``, ``PNG``).
    n_pages
        Number of pictures in the file; the first one is decoded.
    """

    pixels: npt.NDArray[np.uint8]
    mode: str
    header: str = ""
    n_pages: int = 1


def decode_image(data: bytes) -> Decoded:
    """Decode an image file's bytes to RGB.

    The kind of file is read from its content, never from its name. EXIF orientation is applied, transparent parts are
    put on white, 16-bit and float values are scaled to 8 bit by their range (a plain cast would saturate), of several
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
            return _decode(data)
    except UnreadableImageError:
        raise
    except BrokenJpegError as error:
        raise UnreadableImageError(f"cannot be decoded whole ({error})") from None
    except UnidentifiedImageError:
        raise UnreadableImageError("not an image of a known format") from None
    except Image.DecompressionBombError:
        raise UnreadableImageError("too large") from None
    except REFUSALS as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UnreadableImageError(f"cannot be decoded whole ({reason})") from None


def check_size(width: int, height: int) -> None:
    """Refuse a picture of no or too many pixels before any memory is asked for."""
    if width * height > MAX_PIXELS:
        raise UnreadableImageError(f"too large ({width} x {height} pixels)")
    if width < 1 or height < 1:
        raise UnreadableImageError("has no pixels")


def _decode(data: bytes) -> Decoded:
    header = ""
    if data.startswith(b"\xff\xd8\xff"):
        markers = parse_jpeg(data)
        header, data = str(markers), provable(data, markers)
    elif data.startswith(b"\x89PNG\r\n\x1a\n"):
        check_png(data)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        if data[:4] not in (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"):
            raise
        return Decoded(*decode_deep_tiff(data, check_size))
    with image:
        check_size(image.width, image.height)
        n_pages = int(getattr(image, "n_frames", 1)) if image.format in ("TIFF", "GIF", "WEBP") else 1
        if image.format == "TIFF":
            tags = image.tag_v2  # type: ignore[attr-defined]
            bits, kinds = tags.get(258, (1,)), tags.get(339, (1,))
            if max(_numbers(bits)) > 8 or set(_numbers(kinds)) - {1}:
                return Decoded(*decode_deep_tiff(data, check_size))
            header = f"TIFF {str(image.info.get('compression', 'raw')).removeprefix('tiff_')}"
        elif image.format == "PNG" and len(data) > 24 and data[24] == 16:
            orientation = image.getexif().get(274, 1)
            pixels, mode = decode_deep_png(data)
            return Decoded(upright(pixels, orientation), mode, "PNG 16 bit")
        image.load()
        return Decoded(_to_rgb(image), image.mode, header or str(image.format), n_pages)


def check_png(data: bytes) -> None:
    """Walk the chunks of a PNG: each whole and with its checksum right, the last one IEND (Pillow checks neither).

    Raises
    ------
    UnreadableImageError
        The file is cut or damaged.
    """
    view, position = memoryview(data), 8
    while position + 12 <= len(data):
        length = int.from_bytes(view[position : position + 4], "big")
        end = position + 8 + length
        if end + 4 > len(data):
            break
        kind = bytes(view[position + 4 : position + 8])
        if zlib.crc32(view[position + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise UnreadableImageError(
                f"cannot be decoded whole (the checksum of chunk {kind.decode('latin-1')!r} is wrong)"
            )
        if kind == b"IEND":
            return
        position = end + 4
    raise UnreadableImageError("cannot be decoded whole (the file is cut short: its end is missing)")


def upright(pixels: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """Turn pixels ``[height, width, 3]`` as the EXIF orientation (1 to 8) says."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _to_rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    if image.mode in ("I;16", "I;16B", "I;16L", "I", "F"):
        raise UnreadableImageError(f"has pixels of an unknown kind ({image.mode})")
    turned = ImageOps.exif_transpose(image)
    if turned.mode in ("RGBA", "LA", "PA") or "transparency" in turned.info:
        turned = turned.convert("RGBA")
        white = Image.new("RGBA", turned.size, (255, 255, 255, 255))
        turned = Image.alpha_composite(white, turned)
    return np.array(turned.convert("RGB"), dtype=np.uint8)


def _numbers(value: object) -> tuple[int, ...]:
    return tuple(int(v) for v in value) if isinstance(value, tuple) else (int(str(value)),)
