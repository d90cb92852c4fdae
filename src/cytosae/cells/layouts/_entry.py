from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

#: File names taken for images in a folder; what a file really is, its content says.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif")

_WEB = re.compile(r"^[a-z][a-z0-9+.-]*://", re.IGNORECASE)


@dataclass(frozen=True)
class Box:
    """Where a cell lies in a field: centre, width and height, in pixels (or in shares of the field: `relative`).

    `field_size` is the width and height of the field as its annotation states them, where it does.
    """

    x: float
    y: float
    width: float
    height: float
    relative: bool = False
    field_size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Entry:
    """One image (or one box of a field) that a source names, before it has been opened.

    `um_per_px` holds only for images `um_for_width` pixels wide, where that is given. `problem` is what is already
    known to be wrong with it; the cell is quarantined for that reason.
    """

    image: str
    label: str | None = None
    patient: str | None = None
    diagnosis: str | None = None
    dataset: str | None = None
    split: str | None = None
    mask: str | None = None
    um_per_px: float | None = None
    um_for_width: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    box: Box | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Source:
    """What a layout found.

    Attributes
    ----------
    root
        Folder to which the image paths refer.
    entries
        The entries in a fixed order; iterated more than once, and never held whole where there are many.
    layout
        Name of the layout.
    passed_over
        What was not taken, and how often; complete only after `entries` has been iterated.
    extra_types
        Arrow type of every extra column.
    notes
        What the person should know of the source, a sentence each.
    """

    root: str
    entries: Iterable[Entry]
    layout: str
    passed_over: dict[str, int] = field(default_factory=dict)
    extra_types: dict[str, pa.DataType] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class LayoutOptions:
    """What a person may say about a source.

    Attributes
    ----------
    columns
        Manifest and image parquet: column of this table -> column of the source.
    folds
        ``aml_hehr``: folder of the published folds.
    fold
        ``aml_hehr``: which fold becomes the column ``split``.
    boxes
        ``fields``: ``voc``, ``coco``, ``yolo`` or ``auto``.
    """

    columns: dict[str, str] = field(default_factory=dict)
    folds: Path | None = None
    fold: int = 0
    boxes: str = "auto"


def is_web_address(name: str) -> bool:
    """Whether a path is an address such as ``https://...`` or ``s3://...``."""
    return _WEB.match(name) is not None


def text(value: Any) -> str | None:
    """A value as text without blanks around it; None for what is missing or blank."""
    if value is None or value != value:
        return None
    return str(value).strip() or None
