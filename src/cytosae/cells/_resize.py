"""Bytes of an image file -> a square of uint8 RGB, by faster decoders and a faster resize at the same pixels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cytosae.cells._bilinear import resize_exact, resize_fast
from cytosae.cells._decode import REFUSALS, UnreadableImageError, check_size, decode_image
from cytosae.cells._jpeg import BrokenJpegError, JpegHeader, parse_jpeg, provable


def read_resized(data: bytes, side: int = 224, *, exact: bool = False) -> npt.NDArray[np.uint8]:
    """Decode an image file's bytes and resize it to a square.

    Bilinear with antialiasing, as ``torchvision.transforms.Resize((side, side))`` does on a Pillow image: the aspect
    ratio is not kept. No float work is done; scale and normalise whole batches afterwards.

    Parameters
    ----------
    data
        The bytes of an image file of any kind that `decode_image` reads.
    side
        Width and height of the result, in pixels.
    exact
        Use Pillow's resize, bit for bit the same on every processor. Without it the pixels are within one
        grey level of that, always, and the same on one type of processor.

    Returns
    -------
    uint8 ``[side, side, 3]``, RGB, contiguous.

    Raises
    ------
    UnreadableImageError
        The image cannot be read whole.
    """
    pixels = decode_fast(data)
    return resize_exact(pixels, side) if exact else resize_fast(pixels, side)


def decode_fast(data: bytes) -> npt.NDArray[np.uint8]:
    """The pixels of `decode_image`, uint8 ``[height, width, 3]``, equal to the last bit, in less time where it can.

    Plain colour JPEG and plain 8-bit RGB TIFF, which nearly all cells are, go to libjpeg-turbo and libtiff directly;
    everything else, and everything in doubt, goes to `decode_image`. Meant for bytes that `decode_image` has accepted
    once (the table of cells keeps their hash): of a JPEG that someone cut and closed again, the loss of a few blocks at
    its very end can pass here.
    """
    if data.startswith(b"\xff\xd8\xff"):
        pixels = _jpeg(data)
    elif data[:4] in (b"II*\x00", b"MM\x00*"):
        pixels = _tiff(data)
    else:
        pixels = None
    return decode_image(data).pixels if pixels is None else pixels


def _jpeg(data: bytes) -> npt.NDArray[np.uint8] | None:
    """Pixels of a one-scan colour JPEG without EXIF or Adobe segment; None where `decode_image` must judge."""
    try:
        header = parse_jpeg(data)
        if not _plain(header):
            return None
        provable(data, header)
        pixels = _imagecodecs_jpeg(data)
    except (BrokenJpegError, UnreadableImageError):
        return None
    # libjpeg paints what is missing at the end in middle grey: look twice at a picture that ends in it
    if pixels is None or pixels.ndim != 3 or bool((np.abs(pixels[-1, -1].astype(np.int16) - 128) <= 12).all()):
        return None
    return pixels


def _plain(header: JpegHeader) -> bool:
    return header.one_scan and header.components == 3 and not header.has_exif and not header.has_adobe


def _imagecodecs_jpeg(data: bytes) -> npt.NDArray[np.uint8] | None:
    import imagecodecs

    width, height = _jpeg_size(data)
    check_size(width, height)
    try:
        pixels: npt.NDArray[np.uint8] = imagecodecs.jpeg8_decode(data)
    except (imagecodecs.Jpeg8Error, *REFUSALS):
        return None
    return pixels


def _jpeg_size(data: bytes) -> tuple[int, int]:
    position = 2
    while position + 9 <= len(data):
        marker = data[position + 1]
        if marker == 0xFF or 0xD0 <= marker <= 0xD8 or marker == 0x01:
            position += 1 if marker == 0xFF else 2
            continue
        if marker in (0xC0, 0xC1):
            return int.from_bytes(data[position + 7 : position + 9], "big"), int.from_bytes(
                data[position + 5 : position + 7], "big"
            )
        position += 2 + int.from_bytes(data[position + 2 : position + 4], "big")
    raise UnreadableImageError("the picture's size is missing")


#: Tags of a TIFF that the fast path understands, with the only values it takes (others go to `decode_image`).
_TIFF_WANTED = {258: (8,), 262: (2,), 274: (1,), 277: (3,), 284: (1,), 339: (1,), 259: (1, 5, 8, 32946), 338: ()}


def _tiff(data: bytes) -> npt.NDArray[np.uint8] | None:
    """Pixels of the first page of an 8-bit RGB TIFF; None where `decode_image` must judge."""
    import imagecodecs

    order = "little" if data[:2] == b"II" else "big"

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], order)  # type: ignore[arg-type]

    directory = number(4, 4)
    n_tags = number(directory, 2) if 8 <= directory <= len(data) - 2 else 0
    found: dict[int, int] = {}
    for index in range(n_tags):
        at = directory + 2 + 12 * index
        tag, kind, count = number(at, 2), number(at + 2, 2), number(at + 4, 4)
        if tag in _TIFF_WANTED and tag != 258 and (count != 1 or kind != 3):
            return None
        if tag == 258:
            values = at + 8 if count * 2 <= 4 else number(at + 8, 4)
            if kind != 3 or count > 4 or {number(values + 2 * i, 2) for i in range(count)} != {8}:
                return None
        elif tag in (256, 257) or tag in _TIFF_WANTED:
            found[tag] = number(at + 8, 2 if kind == 3 else 4)
            if tag in _TIFF_WANTED and found[tag] not in _TIFF_WANTED[tag]:
                return None
    if found.get(262) != 2 or found.get(277) != 3 or 256 not in found or 257 not in found:
        return None
    check_size(found[256], found[257])
    try:
        pixels: npt.NDArray[np.uint8] = imagecodecs.tiff_decode(data)
    except (imagecodecs.TiffError, *REFUSALS):
        return None
    return pixels if pixels.shape == (found[257], found[256], 3) and pixels.dtype == np.uint8 else None
