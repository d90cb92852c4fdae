"""From a row of the table to the bytes of its image: a file, a row of an image parquet, or a window of either."""

from __future__ import annotations

import io
import os
import re
import stat
import struct
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from cytosae._errors import CytosaeError
from cytosae.cells._decode import UnreadableImageError, decode_image
from cytosae.cells._image_store import ROW_MARK, ImageParquet, ImageStore, bundled_path, open_store
from cytosae.cells._table import BUNDLED_ROOT
from cytosae.storage import hash_bytes

__all__ = ["ROW_MARK", "ImageParquet", "ImageReader", "Window", "bundled_path", "looks_like_image"]

#: No image of a cell or a field is larger; a file that is would only fill the memory.
MAX_BYTES = 2**30

_WINDOW = re.compile(r"^(?P<file>.+)#(?P<kind>box|maskbox)=(?P<numbers>-?\d+,-?\d+,\d+,\d+)$", re.DOTALL)
_ROW = re.compile(rf"^(?P<file>.+){ROW_MARK}(?P<row>\d+)$", re.DOTALL)


@dataclass(frozen=True)
class Window:
    """A rectangle of an image, in pixels; it may reach over the edge. Written ``FILE#box=x,y,width,height``."""

    x: int
    y: int
    width: int
    height: int

    def of(self, image: str, *, mask: bool = False) -> str:
        """The name of this window of an image (of a mask: outside of it is background, not white)."""
        return f"{image}#{'maskbox' if mask else 'box'}={self.x},{self.y},{self.width},{self.height}"

    def cut(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """The window of pixels ``[height, width, 3]``; white where it reaches over the edge."""
        out = np.full((self.height, self.width, 3), 255, np.uint8)
        height, width = pixels.shape[:2]
        top, left = max(self.y, 0), max(self.x, 0)
        bottom, right = min(self.y + self.height, height), min(self.x + self.width, width)
        if bottom > top and right > left:
            out[top - self.y : bottom - self.y, left - self.x : right - self.x] = pixels[top:bottom, left:right]
        return out

    def outside(self, width: int, height: int) -> float:
        """Share of the window that lies over the edge of an image of this size."""
        inside = max(0, min(self.x + self.width, width) - max(self.x, 0)) * max(
            0, min(self.y + self.height, height) - max(self.y, 0)
        )
        return 1.0 - inside / (self.width * self.height)


def split_window(image: str) -> tuple[str, Window | None, bool]:
    """File (or row), window, and whether it is a mask's, of an image's name."""
    match = _WINDOW.match(image)
    if match is None:
        return image, None, False
    return match["file"], Window(*map(int, match["numbers"].split(","))), match["kind"] == "maskbox"


def window_hash(sha256: str, window: Window) -> str:
    """Identity of a window: that of its image file together with the rectangle."""
    return hash_bytes(window.of(sha256).encode())


class ImageReader:
    """Reads the images of one table, whichever way they are stored."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._stores: dict[Path, ImageStore] = {}
        self._fields: OrderedDict[str, tuple[str, npt.NDArray[np.uint8]]] = OrderedDict()

    def path(self, image: str) -> Path:
        """Where an image (or the image parquet that holds it) lies on disk."""
        name = split_window(image)[0]
        match = _ROW.match(name)
        if self.root == BUNDLED_ROOT:
            return bundled_path()
        return Path(self.root) / (match["file"] if match else name)

    def read(self, image: str, sha256: str | None = None) -> bytes:
        """The bytes of an image file; checked against `sha256` where given.

        A window is cut out and given as the bytes of a BMP file (a mask in the mode of its file).

        Raises
        ------
        CytosaeError
            The file is gone, is no ordinary file, or has changed since the table was made.
        """
        name, window, is_mask = split_window(image)
        if window is None:
            data = self._file(name)
            found = hash_bytes(data) if sha256 else ""
        elif is_mask:
            data = _bmp(_mask(self._file(name), window, image))
            found = hash_bytes(data) if sha256 else ""
        else:
            file_hash, pixels = self._field(name)
            found = window_hash(file_hash, window)
            data = _bmp(Image.fromarray(window.cut(pixels)))
        if sha256 and found != sha256:
            raise CytosaeError(f"{image} has changed since the cells table was made; run 'cytosae cells' again.")
        return data

    def _field(self, name: str) -> tuple[str, npt.NDArray[np.uint8]]:
        """Hash and pixels of a whole image; the last two are kept, since the cells of a field follow each other."""
        if name not in self._fields:
            data = self._file(name)
            try:
                self._fields[name] = hash_bytes(data), decode_image(data).pixels
            except UnreadableImageError as error:
                raise CytosaeError(f"{name} cannot be read any more ({error}); run 'cytosae cells' again.") from None
            if len(self._fields) > 2:
                self._fields.popitem(last=False)
        return self._fields[name]

    def _file(self, name: str) -> bytes:
        path, row = self.path(name), _ROW.match(name)
        if row:
            if path not in self._stores:
                self._stores[path] = open_store(path)
            return self._stores[path].read(int(row["row"]))[0] or b""
        return read_file(path)


def read_file(path: Path) -> bytes:
    """The bytes of an ordinary file of at most `MAX_BYTES` (no device, no pipe: they never end).

    Raises
    ------
    CytosaeError
        Gone, no ordinary file, or too large.
    """
    try:
        with open(path, "rb", opener=_never_wait) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise CytosaeError(f"{path} cannot be read (it is no ordinary file); remove it from the source.")
            if status.st_size > MAX_BYTES:
                raise CytosaeError(f"{path} cannot be read (it has {status.st_size:,} bytes); give single images.")
            return file.read()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise CytosaeError(f"{path} cannot be read any more ({reason}); run 'cytosae cells' again.") from error


def looks_like_image(head: bytes) -> bool:
    """Whether the first bytes of a file are those of a known image format."""
    if head[:2] == b"BM" and len(head) >= 6:
        return bool(struct.unpack("<I", head[2:6])[0] > 0)
    starts = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\x00", b"MM\x00*", b"GIF8")
    return head.startswith(starts) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def _never_wait(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _mask(data: bytes, window: Window, name: str) -> Image.Image:
    decode_image(data)  # whole or not at all
    try:
        with Image.open(io.BytesIO(data)) as image:
            mask = image.convert("L") if image.mode not in ("L", "P") else image.copy()
    except (OSError, ValueError) as error:
        raise CytosaeError(f"{name} cannot be read any more ({error}); run 'cytosae cells' again.") from None
    return mask.crop((window.x, window.y, window.x + window.width, window.y + window.height))


def _bmp(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "BMP")
    return buffer.getvalue()
