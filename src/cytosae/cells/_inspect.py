"""One entry of a source -> one row of the table: the image is opened, checked, measured, and cut where asked."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cytosae._errors import CytosaeError, UsageError
from cytosae.cells._decode import Decoded, UnreadableImageError, decode_image
from cytosae.cells._images import ImageReader, Window, window_hash
from cytosae.cells._thumb import blank_thumb, make_thumb
from cytosae.cells.layouts import Entry
from cytosae.storage import hash_bytes

#: A cell cut wider than this is a slip of the scale, not a cell.
MAX_CUT_PX = 8192

_FIELDS = ("image", "label", "patient", "diagnosis", "dataset", "split", "mask", "um_per_px")


@dataclass(frozen=True)
class Cut:
    """How cells are cut out.

    Attributes
    ----------
    um
        Side of the square around every cell in micrometres; None: the whole image, or `box_factor` times the box.
    box_factor
        Side of the square around a box, as a multiple of the box's longer side.
    um_per_px
        Micrometres per pixel of images of which the source does not say it.
    """

    um: float | None = None
    box_factor: float = 1.3
    um_per_px: float | None = None

    def __post_init__(self) -> None:
        for name, value, top in (("--cut-um", self.um, 1e4), ("--box-factor", self.box_factor, 20),
                                 ("--um-per-px", self.um_per_px, 1e3)):  # fmt: skip
            if value is not None and not 0 < value <= top:
                raise UsageError(f"{name} {value} is out of range; give a number above 0, at most {top:g}.")

    def window(self, entry: Entry, width: int, height: int, um_per_px: float | None) -> Window | None:
        """The square to cut from an image of this size; None where the whole image is the cell.

        Raises
        ------
        UnreadableImageError
            The box contradicts the image, or the scale is unknown or absurd.
        """
        box = entry.box
        if box is None and self.um is None:
            return None
        x, y, side = width / 2, height / 2, 0.0
        if box is not None:
            if box.field_size is not None and box.field_size != (width, height):
                stated = "{} x {}".format(*box.field_size)
                raise UnreadableImageError(f"the annotation is for {stated} pixels, the field has {width} x {height}")
            across, down = (width, height) if box.relative else (1, 1)
            x, y = box.x * across, box.y * down
            side = max(box.width * across, box.height * down) * self.box_factor
            if not (0 <= x <= width and 0 <= y <= height):
                raise UnreadableImageError("its box lies outside of the field")
        if self.um is not None:
            if um_per_px is None:
                raise UnreadableImageError("its um_per_px is unknown, so micrometres cannot be cut")
            side = self.um / um_per_px
        n = max(1, round(side))
        if n > MAX_CUT_PX:
            raise UnreadableImageError(f"the cut would be {n:,} pixels wide; check um_per_px and the box")
        return Window(round(x - n / 2), round(y - n / 2), n, n)


class Inspector:
    """Makes rows of entries; keeps the last opened image, since the boxes of a field follow each other."""

    def __init__(self, root: str, cut: Cut) -> None:
        self._reader, self._cut = ImageReader(root), cut
        self._last: tuple[str, bytes, str, Decoded] | None = None

    def row(self, entry: Entry) -> tuple[dict[str, Any], npt.NDArray[np.uint8]]:
        """The row of one entry, and its thumb (see `make_thumb`; blank where quarantined)."""
        row: dict[str, Any] = {name: getattr(entry, name) for name in _FIELDS}
        row |= {"sha256": None, "width": None, "height": None, "mode": None, "status": "ok", "reason": None,
                "file_header": None, "file_bytes": None, "padded_share": None}  # fmt: skip
        thumb = blank_thumb()
        try:
            if entry.problem is not None:
                raise UnreadableImageError(entry.problem)
            thumb = self._fill(row, entry)
        except UnreadableImageError as error:
            row |= {"status": "quarantined", "reason": str(error)}
        except CytosaeError as error:
            found = re.search(r"cannot be read[^(]*\(([^)]*)\)", str(error))
            reason = found.group(1) if found else ""
            row |= {"status": "quarantined", "reason": f"the file cannot be opened{f' ({reason})' if reason else ''}"}
        return {**entry.extra, **row}, thumb

    def _fill(self, row: dict[str, Any], entry: Entry) -> npt.NDArray[np.uint8]:
        row["sha256"], decoded = self._open(entry.image, row)
        row["mode"], row["file_header"] = decoded.mode, decoded.header
        if decoded.n_pages > 1:
            row["file_header"] += f" {decoded.n_pages} pages"
        pixels = decoded.pixels
        height, width = pixels.shape[:2]
        if entry.um_for_width is not None and width != entry.um_for_width:
            row["um_per_px"] = None
        row["um_per_px"] = row["um_per_px"] or self._cut.um_per_px
        row["width"], row["height"] = width, height
        window = self._cut.window(entry, width, height, row["um_per_px"])
        if window is not None:
            row["padded_share"] = window.outside(width, height)
            row["image"], row["sha256"] = window.of(entry.image), window_hash(row["sha256"], window)
            row["width"], row["height"] = window.width, window.height
            row["mask"] = window.of(entry.mask, mask=True) if entry.mask else None
            pixels = window.cut(pixels)
        return make_thumb(pixels)

    def _open(self, image: str, row: dict[str, Any]) -> tuple[str, Decoded]:
        """sha256 and pixels of an image; the hash is known even where the pixels are not."""
        if self._last is None or self._last[0] != image:
            self._last = None
            data = self._reader.read(image)
            row["sha256"], row["file_bytes"] = hash_bytes(data), len(data)
            self._last = image, data, row["sha256"], decode_image(data)
        row["file_bytes"] = len(self._last[1])
        return self._last[2], self._last[3]
