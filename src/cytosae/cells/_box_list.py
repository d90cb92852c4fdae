"""Boxes of one field as a plain list: CSV or JSON with ``x0,y0,x1,y1`` a row."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cytosae._errors import CytosaeError, UsageError
from cytosae.cells._decode import UnreadableImageError
from cytosae.cells._images import Window
from cytosae.cells._inspect import Cut
from cytosae.cells.layouts._entry import Box, Entry

#: left, top, right, bottom in pixels
Corners = tuple[float, float, float, float]

_NAMES = ("x0", "y0", "x1", "y1")
_MAX_BYTES, _MAX_BOXES = 2**24, 20_000


def read_boxes(path: Path | str) -> list[Corners]:
    """Boxes from a file, in its order.

    CSV: four numbers a row, or a header with the columns x0, y0, x1 and y1 among others. JSON: a list of
    ``[x0, y0, x1, y1]`` or of objects with these keys, or an object with such a list under ``boxes``.

    Raises
    ------
    CytosaeError
        The file cannot be read, holds no box, or a row is not four numbers with x0 < x1 and y0 < y1.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise CytosaeError(f"{path} is too large for a list of boxes; give the boxes of one field.")
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise CytosaeError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    except UnicodeDecodeError as error:
        raise CytosaeError(f"{path} is not text in UTF-8; give boxes as CSV or JSON.") from error
    rows = _json_rows(path, text) if text.lstrip()[:1] in ("[", "{") else _csv_rows(path, text)
    if not 0 < len(rows) <= _MAX_BOXES:
        raise CytosaeError(f"{path} holds {len(rows):,} boxes; give 1 to {_MAX_BOXES:,}, x0,y0,x1,y1 a row.")
    return [_corners(path, where, values) for where, values in rows]


def box_windows(boxes: Sequence[Corners], width: int, height: int, factor: float = Cut.box_factor) -> list[Window]:
    """The square to cut out for each box, `factor` times as wide as the box's longer side, as `cytosae cells` cuts fields.

    Raises
    ------
    UsageError
        A box whose middle lies outside of the field.
    """
    cut, windows = Cut(box_factor=factor), []
    for number, (x0, y0, x1, y1) in enumerate(boxes, 1):
        box = Box((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0)
        try:
            window = cut.window(Entry("", box=box), width, height, None)
        except UnreadableImageError as error:
            raise UsageError(f"Box {number} ({x0:g},{y0:g},{x1:g},{y1:g}) cannot be cut: {error}; the field has {width} x {height} pixels.") from None  # fmt: skip
        assert window is not None
        windows.append(window)
    return windows


def _csv_rows(path: Path, text: str) -> Sequence[tuple[str, Sequence[Any]]]:
    try:
        lines = [
            (f"line {n}", row) for n, row in enumerate(csv.reader(io.StringIO(text)), 1) if any(v.strip() for v in row)
        ]
    except csv.Error as error:
        raise CytosaeError(f"{path} is not a CSV file ({error}); give x0,y0,x1,y1 a row.") from error
    head = [v.strip().lower() for v in lines[0][1]] if lines else []
    if not set(_NAMES) <= set(head):
        return lines
    places = [head.index(name) for name in _NAMES]
    return [(where, [row[i] if i < len(row) else "" for i in places]) for where, row in lines[1:]]


def _json_rows(path: Path, text: str) -> list[tuple[str, Sequence[Any]]]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CytosaeError(f"{path} is not valid JSON; give a list of [x0, y0, x1, y1].") from error
    found = found.get("boxes") if isinstance(found, dict) else found
    if not isinstance(found, list):
        raise CytosaeError(f"{path} holds no list of boxes; give a list of [x0, y0, x1, y1].")
    rows: list[tuple[str, Sequence[Any]]] = []
    for number, row in enumerate(found, 1):
        values = [row.get(name) for name in _NAMES] if isinstance(row, dict) else row
        rows.append((f"box {number}", values if isinstance(values, list) else [values]))
    return rows


def _corners(path: Path, where: str, values: Sequence[Any]) -> Corners:
    try:
        x0, y0, x1, y1 = (float(v) for v in values if not isinstance(v, bool))
    except (TypeError, ValueError):
        said = ",".join(str(v) for v in values)[:60]
        raise CytosaeError(f"{path}, {where}: {said!r} is not a box; give four numbers x0,y0,x1,y1 a row.") from None
    if not (all(map(math.isfinite, (x0, y0, x1, y1))) and x0 < x1 and y0 < y1):
        raise CytosaeError(
            f"{path}, {where}: {x0:g},{y0:g},{x1:g},{y1:g} is not a box; x0 has to be left of x1, and y0 above y1."
        )
    return x0, y0, x1, y1
