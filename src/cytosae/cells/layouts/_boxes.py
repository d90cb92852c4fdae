"""Boxes of cells in fields: Pascal VOC, COCO and YOLO, read as hostile text."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from cytosae._errors import CytosaeError
from cytosae.cells.layouts._entry import Box, is_web_address, text

#: No annotation of one field is larger; COCO files of whole data sets may be.
_MAX_FIELD_BYTES, _MAX_COCO_BYTES = 2**24, 2**30


@dataclass(frozen=True)
class LabelledBox:
    """A box with its class; or, where `problem` says why, none."""

    label: str | None
    box: Box | None
    problem: str | None = None


class VocBoxes:
    """One XML file a field, of the same name, beside the image or in a neighbouring folder such as ``Annotations``."""

    def __init__(self, source: Path) -> None:
        self._source = source
        self._files = _ByStem(source, ".xml")

    def of(self, field: str) -> list[LabelledBox] | None:
        """The boxes of one field; None where it has no file."""
        path = self._files.of(field)
        if path is None:
            return None
        from defusedxml import DefusedXmlException  # type: ignore[import-untyped, unused-ignore]
        from defusedxml.ElementTree import ParseError, fromstring  # type: ignore[import-untyped, unused-ignore]

        try:
            root = fromstring(_read(path, _MAX_FIELD_BYTES), forbid_dtd=True)
        except DefusedXmlException:
            raise CytosaeError(f"{path} declares a DOCTYPE or entities, which are not read; remove them.") from None
        except (ParseError, ValueError, LookupError) as error:
            raise CytosaeError(f"{path} is not valid XML ({error}); mend or remove it.") from None
        size = tuple(_number(root.findtext(f"size/{side}")) for side in ("width", "height"))
        stated = (int(size[0]), int(size[1])) if all(math.isfinite(v) and v > 0 for v in size) else None
        boxes = []
        for item in root.iter("object"):
            corners = [_number(item.findtext(f"bndbox/{k}")) for k in ("xmin", "ymin", "xmax", "ymax")]
            boxes.append(_checked(text(item.findtext("name")), corners, stated))
        return boxes

    def missing(self, seen: set[str]) -> Iterator[str]:
        """Names of annotated fields of which no image was found."""
        return self._files.missing(seen)


class YoloBoxes:
    """One text file a field (``class x y width height`` in shares of the field), beside it or in ``labels``.

    Class names come from ``classes.txt``, ``obj.names`` or the ``names`` of a ``data.yaml``; without them the number
    is the label. Polygons are taken as their bounding box.
    """

    def __init__(self, source: Path) -> None:
        self._files = _ByStem(source, ".txt")
        self._names = _yolo_names(source)

    def of(self, field: str) -> list[LabelledBox] | None:
        """The boxes of one field; None where it has no file."""
        path = self._files.of(field)
        if path is None:
            return None
        boxes = []
        for line in _decode(_read(path, _MAX_FIELD_BYTES), path).splitlines():
            words = line.split()
            if not words:
                continue
            values = [_number(w) for w in words]
            label = self._names.get(int(values[0])) if math.isfinite(values[0]) else None
            label = label or words[0][:60]
            if len(values) > 6 and len(values) % 2 == 1:
                xs, ys = values[1::2], values[2::2]
                corners = [min(xs), min(ys), max(xs), max(ys)]
            elif len(values) in (5, 6):
                x, y, width, height = values[1:5]
                corners = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
            else:
                corners = [math.nan] * 4
            boxes.append(_checked(label, corners, None, relative=True))
        return boxes

    def missing(self, seen: set[str]) -> Iterator[str]:
        """Names of annotated fields of which no image was found."""
        return self._files.missing(seen)


class CocoBoxes:
    """COCO files with ``images``, ``annotations`` and ``categories``, anywhere below the source."""

    def __init__(self, source: Path) -> None:
        self._boxes: dict[str, list[LabelledBox]] = defaultdict(list)
        self._source = source
        for path in sorted(source.rglob("*.json")):
            self._add(path)

    def of(self, field: str) -> list[LabelledBox] | None:
        """The boxes of one field; None where no file names it."""
        return self._boxes.get(field)

    def missing(self, seen: set[str]) -> Iterator[str]:
        """Names of annotated fields of which no image was found."""
        return iter(sorted(set(self._boxes) - seen))

    def _add(self, path: Path) -> None:
        try:
            data = json.loads(_decode(_read(path, _MAX_COCO_BYTES), path))
        except (ValueError, RecursionError) as error:
            raise CytosaeError(f"{path} is not valid JSON ({str(error)[:80]}); mend or remove it.") from None
        if not isinstance(data, dict) or "annotations" not in data:
            return
        try:
            names = {c["id"]: text(c["name"]) for c in data.get("categories", [])}
            fields = {}
            for image in data["images"]:
                name = str(image["file_name"])
                if is_web_address(name) or name.startswith("/") or ".." in PurePosixPath(name).parts:
                    raise CytosaeError(f"{path} names a field outside its folder ({name[:200]}); give relative paths.")
                size = (image.get("width"), image.get("height"))
                stated = size if all(isinstance(v, int) and v > 0 for v in size) else None
                fields[image["id"]] = self._place(path, name), stated
            for field_name, _ in fields.values():
                self._boxes[field_name] = self._boxes[field_name]
            for item in data["annotations"]:
                field_name, stated = fields[item["image_id"]]
                box = item.get("bbox")
                corners = [_number(v) for v in box] if isinstance(box, list) and len(box) == 4 else [math.nan] * 4
                corners = [corners[0], corners[1], corners[0] + corners[2], corners[1] + corners[3]]
                labelled = _checked(names.get(item.get("category_id")), corners, stated)
                if item.get("iscrowd"):
                    labelled = LabelledBox(labelled.label, None, "the box is of a crowd, not of one cell")
                self._boxes[field_name].append(labelled)
        except (KeyError, TypeError, AttributeError) as error:
            raise CytosaeError(
                f"{path} is no COCO file ({type(error).__name__}: {error}); mend or remove it."
            ) from None

    def _place(self, path: Path, name: str) -> str:
        """The field's path below the source: beside the file, in ``images``, or a folder of the same name."""
        below = path.parent.relative_to(self._source)
        options = [below / name, below / "images" / name, below / path.stem / name, Path("images") / name, Path(name)]
        options += [below.parent / "images" / name, below.parent / path.stem.removeprefix("instances_") / name]
        found = next((o for o in options if (self._source / o).is_file()), options[0])
        return found.as_posix()


class _ByStem:
    """Annotation files by the name of their field."""

    def __init__(self, source: Path, extension: str) -> None:
        self._source = source
        self._paths: dict[str, list[PurePosixPath]] = defaultdict(list)
        for path in sorted(source.rglob(f"*{extension}")):
            place = PurePosixPath(path.relative_to(source).as_posix())
            if not any(part.startswith(".") or part == "__MACOSX" for part in place.parts):
                self._paths[path.stem].append(place)

    def of(self, field: str) -> Path | None:
        """The file of one field: beside it, else with the fewest differing folders on the way."""
        place = PurePosixPath(field)
        found = self._paths.get(place.stem)
        if not found:
            return None
        folders = set(place.parts[:-1])
        return self._source / min(found, key=lambda p: (len(folders ^ set(p.parts[:-1])), str(p)))

    def missing(self, seen: set[str]) -> Iterator[str]:
        """Annotation files of which no field was seen, as the field's name without its extension."""
        stems = {PurePosixPath(name).stem for name in seen}
        for stem in sorted(set(self._paths) - stems):
            if stem not in ("classes", "README", "readme", "train", "val", "valid", "test", "requirements"):
                yield str(self._paths[stem][0])


def _checked(
    label: str | None, corners: list[float], size: tuple[int, int] | None, *, relative: bool = False
) -> LabelledBox:
    """A box from its corners (left, top, right, bottom), or the reason why it is none."""
    if not all(math.isfinite(v) for v in corners):
        return LabelledBox(label, None, "its box is not four numbers")
    left, top, right, bottom = corners
    if right <= left or bottom <= top:
        return LabelledBox(label, None, "its box is empty")
    if max(map(abs, corners)) > (2 if relative else 1e6):
        return LabelledBox(label, None, "its box lies outside of the field")
    box = Box((left + right) / 2, (top + bottom) / 2, right - left, bottom - top, relative, size)
    return LabelledBox(label, box)


def _yolo_names(source: Path) -> dict[int, str]:
    for name in ("classes.txt", "obj.names"):
        path = next(iter(sorted(source.rglob(name))), None)
        if path is not None:
            return dict(enumerate(_decode(_read(path, _MAX_FIELD_BYTES), path).split("\n")))
    path = next(iter(sorted([*source.rglob("*.yaml"), *source.rglob("*.yml")])), None)
    if path is None:
        return {}
    import yaml

    try:
        names = (yaml.safe_load(_decode(_read(path, 2**16), path)) or {}).get("names", {})
        pairs = names.items() if isinstance(names, dict) else enumerate(names)
        return {int(k): str(v) for k, v in pairs if isinstance(v, str | int)}
    except (yaml.YAMLError, AttributeError, TypeError, ValueError, RecursionError):
        raise CytosaeError(f"{path} has no readable list 'names'; mend it or give classes.txt.") from None


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _read(path: Path, limit: int) -> bytes:
    try:
        if path.stat().st_size > limit:
            raise CytosaeError(
                f"{path} is too large for an annotation ({path.stat().st_size:,} bytes); check the file."
            )
        return path.read_bytes()
    except OSError as error:
        raise CytosaeError(f"{path} cannot be read ({error.strerror}); check the file.") from None


def _decode(data: bytes, path: Path) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise CytosaeError(f"{path} is not UTF-8 text; save it as UTF-8.") from None
