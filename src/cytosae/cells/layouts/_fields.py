from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

import pyarrow as pa

from cytosae._errors import CytosaeError, UsageError, nearest
from cytosae.cells.layouts._boxes import CocoBoxes, LabelledBox, VocBoxes, YoloBoxes
from cytosae.cells.layouts._entry import Entry, LayoutOptions, Source
from cytosae.cells.layouts._folder import image_paths

BOXES = ("auto", "voc", "coco", "yolo")

_SPLITS = {"train": "train", "test": "test", "val": "val", "valid": "val", "validation": "val"}

#: Columns that a cut-out cell brings: its field, its box in the field (pixels; shares of the field for YOLO).
EXTRA = {
    "source_field": pa.string(),
    "box_index": pa.int32(),
    "box_x": pa.float64(),
    "box_y": pa.float64(),
    "box_width": pa.float64(),
    "box_height": pa.float64(),
}


class Boxes(Protocol):
    """The boxes of all fields, whichever way they are written."""

    def of(self, field: str) -> Iterable[LabelledBox] | None:
        """The boxes of one field; None where nothing is said of it."""

    def missing(self, seen: set[str]) -> Iterator[str]:
        """Names of annotated fields of which no image was found."""


def read_fields(source: Path, options: LayoutOptions) -> Source:
    """Whole microscope fields with boxes in Pascal VOC, COCO or YOLO form; one entry a box.

    Fields without a box, or of which no annotation speaks, are passed over and counted; annotated fields whose image
    is missing are kept as quarantined cells. A folder named train, val, valid or test on the way gives the split.

    Raises
    ------
    CytosaeError
        No such folder, no image or no boxes in it, or annotations that cannot be read.
    UsageError
        An unknown kind of boxes.
    """
    if options.boxes not in BOXES:
        raise UsageError(f"There is no kind of boxes {options.boxes!r}{nearest(options.boxes, BOXES)}.")
    if not source.is_dir():
        raise CytosaeError(f"{source} is no folder; give the folder that holds the fields and their boxes.")
    kind = _guess(source) if options.boxes == "auto" else options.boxes
    readers: dict[str, Callable[[Path], Boxes]] = {"voc": VocBoxes, "coco": CocoBoxes, "yolo": YoloBoxes}
    boxes = readers[kind](source)
    passed: dict[str, int] = {}
    entries = _Entries(source, boxes, passed)
    if next(iter(entries), None) is None:
        raise CytosaeError(
            f"No field below {source} has a box in {kind} form; docs/cells-fields.md shows the expected folders."
        )
    return Source(str(source.resolve()), entries, "fields", passed, EXTRA, [f"boxes read as {kind}"])


@dataclass(frozen=True)
class _Entries:
    source: Path
    boxes: Boxes
    passed: dict[str, int]

    def __iter__(self) -> Iterator[Entry]:
        self.passed.clear()
        dataset, seen = self.source.resolve().name, set()
        for name in image_paths(self.source, self.passed):
            found = self.boxes.of(name)
            if found is None:
                self._pass("fields without an annotation")
                continue
            seen.add(name)
            parts = PurePosixPath(name).parts[:-1]
            split = next((_SPLITS[p.lower()] for p in reversed(parts) if p.lower() in _SPLITS), None)
            n_boxes = 0
            for index, item in enumerate(found):
                n_boxes += 1
                box = item.box
                extra = {
                    "source_field": name,
                    "box_index": index,
                    "box_x": box.x if box else None,
                    "box_y": box.y if box else None,
                    "box_width": box.width if box else None,
                    "box_height": box.height if box else None,
                }
                yield Entry(
                    name, label=item.label, dataset=dataset, split=split, extra=extra, box=box, problem=item.problem
                )
            if n_boxes == 0:
                self._pass("fields without a box")
        for name in self.boxes.missing(seen):
            yield Entry(name, dataset=dataset, extra=dict.fromkeys(EXTRA), problem="annotated, but no image was found")

    def _pass(self, reason: str) -> None:
        self.passed[reason] = self.passed.get(reason, 0) + 1


def _guess(source: Path) -> str:
    found = {
        "voc": next(source.rglob("*.xml"), None),
        "coco": next((p for p in source.rglob("*.json") if b'"annotations"' in _start(p)), None),
        "yolo": next((p for p in source.rglob("*.txt") if p.name not in ("classes.txt", "README.txt")), None),
    }
    kinds = [kind for kind, path in found.items() if path is not None]
    if len(kinds) > 1 and "yolo" in kinds:  # a stray text file says little beside XML or JSON
        kinds.remove("yolo")
    if len(kinds) != 1:
        what = f"boxes of several kinds ({', '.join(kinds)})" if kinds else "no boxes (.xml, .json or .txt)"
        raise CytosaeError(f"{source} holds {what}; say which with --boxes voc, coco or yolo.")
    return kinds[0]


def _start(path: Path) -> bytes:
    try:
        return path.read_bytes() if path.stat().st_size < 2**26 else b'"annotations"'
    except OSError:
        return b""
