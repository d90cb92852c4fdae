"""Images, folders or the boxes of a field explained one after the other: a picture each, and ``explain.json``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cytosae._errors import CytosaeError, UsageError
from cytosae._progress import say, track
from cytosae.backbones import Backbone, Layer
from cytosae.cells import Corners, Window, box_windows, image_paths, read_boxes
from cytosae.concepts import ConceptIndex, Explanation, Reference, explain_pixels, names_path, read_pixels
from cytosae.reports._explained import caption, draw_field, save_explanation
from cytosae.sae import SparseAutoencoder
from cytosae.storage import artifact_hash, commit_folder, hash_file, hash_json, write_json

KIND, VERSION = "explanations", 2
Record = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """One image, or one box of a field; `named` by the person (else found in a folder)."""

    path: Path
    named: bool = True
    box: Corners | None = None
    window: Window | None = None


@dataclass
class Explained:
    """What was explained: records as in ``explain.json``, and what was left out."""

    records: list[Record] = field(default_factory=list)

    def count(self, key: str) -> int:
        """How many records have something under a key."""
        return sum(bool(r.get(key)) for r in self.records)


def subjects_of(images: Sequence[Path], boxes: Path | None, factor: float) -> list[Subject]:
    """The images of files and folders, or the boxes of one field.

    Raises
    ------
    CytosaeError
        A folder without images, or a file that is missing.
    UsageError
        Boxes for more than one image.
    """
    if boxes is not None:
        if len(images) != 1 or images[0].is_dir():
            raise UsageError("--boxes wants one image, the field whose cells they are.")
        corners = read_boxes(boxes)
        height, width = read_pixels(images[0]).shape[:2]
        windows = box_windows(corners, width, height, factor)
        return [Subject(images[0], True, c, w) for c, w in zip(corners, windows, strict=True)]
    found: list[Subject] = []
    for image in images:
        if not image.exists():
            raise CytosaeError(f"{image} does not exist; give an image, or a folder of images.")
        if not image.is_dir():
            found.append(Subject(image))
            continue
        passed: dict[str, int] = {}
        inside = [Subject(image / name, False) for name in image_paths(image, passed)]
        if not inside:
            raise CytosaeError(f"{image} holds no image file; give a folder of JPEG, PNG, TIFF or BMP files.")
        if passed:
            say(
                "explain: "
                + ", ".join(f"{n} {what}" for what, n in sorted(passed.items()))
                + f" in {image} passed over"
            )
        found += inside
    return found


def explain_files(
    subjects: Sequence[Subject],
    out: Path,
    sae: SparseAutoencoder,
    backbone: Backbone,
    layer: Layer,
    *,
    index: ConceptIndex | None = None,
    reference: Reference | None = None,
    n_concepts: int = 7,
    force: bool = False,
) -> Explained:
    """Explain every subject into a folder; goes on where it was interrupted.

    Parameters
    ----------
    subjects
        See `subjects_of`.
    out
        The folder: pictures, ``explain.json``, and for a field ``field.png``.
    sae, backbone, layer
        The dictionary, its backbone, and the block it reads.
    index, reference
        What is known of its concepts; cells to compare with.
    n_concepts
        Concepts an image at most.
    force
        Also explain what does not look like a single blood cell.

    Raises
    ------
    CytosaeError
        An image that was named cannot be read, or nothing could be explained.
    """
    hashes = {path: hash_file(path) if path.is_file() else "" for path in {s.path for s in subjects}}
    inputs = {"sae": sae.hash, "images": hash_json([[hashes[s.path], str(s.path), s.box] for s in subjects])}
    if index is not None:
        inputs["index"] = index.hash
        if names_path(index).exists():
            inputs["names"] = artifact_hash(names_path(index))
    config = {"concepts": n_concepts, "force": force}
    made, pixels = Explained(), dict[Path, npt.NDArray[np.uint8]]()
    with commit_folder(out, kind=KIND, version=VERSION, inputs=inputs, config=config, resume=True) as (folder, extra):
        state = folder / ".done"
        state.mkdir(exist_ok=True)
        with ThreadPoolExecutor(1) as aside:  # one picture is drawn while the next image goes through the network
            drawing: Future[None] | None = None
            for number, subject in enumerate(track(subjects, len(subjects), "explain", "images")):
                kept = state / f"{number:05d}.json"
                if kept.is_file():
                    made.records.append(json.loads(kept.read_text("utf-8")))
                    continue
                record: Record = {"image": str(subject.path), "sha256": hashes[subject.path],
                                  "box": list(subject.box) if subject.box else None}  # fmt: skip
                try:
                    shown = _pixels(subject, pixels)
                except CytosaeError as error:
                    if subject.named:
                        raise
                    record["unreadable"] = str(error)
                else:
                    found = explain_pixels(_title(subject, number), shown, sae, backbone, layer=layer, index=index,
                                           n_concepts=n_concepts, refuse=not force)  # fmt: skip
                    refused = not force and found.unusual is not None and not found.unusual.is_cell
                    record |= _said(found)
                    if refused and found.unusual is not None:
                        record["refused"] = found.unusual.words
                    if not refused:
                        record["picture"] = f"{number:03d}-{subject.path.stem}.png"
                        if drawing is not None:
                            drawing.result()
                        drawing = aside.submit(_draw, found, folder / record["picture"], reference, kept, record)
                if "picture" not in record:
                    _keep(kept, record)
                made.records.append(record)
            if drawing is not None:
                drawing.result()
        if not made.count("picture"):
            shutil.rmtree(folder, ignore_errors=True)
            raise _nothing(made, subjects)
        _finish(folder, subjects, made, backbone, pixels)
        extra |= {f"n_{k}": made.count(k) for k in ("picture", "refused", "unreadable")}
    return made


def _pixels(subject: Subject, opened: dict[Path, npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    """Pixels of a subject; a field is decoded once."""
    if subject.window is None:
        return read_pixels(subject.path)
    if subject.path not in opened:
        opened[subject.path] = read_pixels(subject.path)
    return subject.window.cut(opened[subject.path])


def _title(subject: Subject, number: int) -> str:
    return subject.path.name if subject.box is None else f"box {number + 1}, {subject.path.name}"


def _said(found: Explanation) -> Record:
    """The record of one explanation."""
    table = found.concepts.astype(object).where(found.concepts.notna(), None)
    first = next(found.concepts.itertuples(), None)
    similar = [] if found.similar is None else found.similar.astype(object).to_dict("records")
    return {
        "codes_shown": found.codes_shown,
        "caption": (caption(first) or f"concept {first.latent}") if first is not None else None,
        "unusual": None if found.unusual is None else {**asdict(found.unusual), "is_cell": found.unusual.is_cell},
        "concepts": [
            {**{k: _plain(v) for k, v in row.items()}, "map": found.maps[i].round(5).tolist()}
            for i, row in enumerate(table.to_dict("records"))
        ],
        "similar": [{k: _plain(v) for k, v in row.items() if k != "row"} for row in similar],
    }


def _finish(
    folder: Path,
    subjects: Sequence[Subject],
    made: Explained,
    backbone: Backbone,
    pixels: dict[Path, npt.NDArray[np.uint8]],
) -> None:
    """``explain.json``, and the picture of the field."""
    record = {"notice": "Research use only.", "grid": list(backbone.grid), "images": made.records,
              "suggestions": "Captions under 'suggestion' come from enrichment among exemplars; they are no names."}  # fmt: skip
    if subjects[0].window is not None:
        windows = [s.window for s in subjects if s.window is not None]
        shown = pixels.get(subjects[0].path)
        picture = draw_field(
            read_pixels(subjects[0].path) if shown is None else shown, windows,
            [None if r.get("refused") else str(r.get("caption") or "") for r in made.records], subjects[0].path.name,
        )  # fmt: skip
        picture.save(folder / "field.png", "PNG", compress_level=3)
        record["field"] = "field.png"
    text = json.dumps(record, ensure_ascii=False, allow_nan=False)
    (folder / "explain.json").write_text(text + "\n", "utf-8")


def _nothing(made: Explained, subjects: Sequence[Subject]) -> CytosaeError:
    """What to say when nothing was explained."""
    first = made.records[0]
    why = first.get("refused") or first.get("unreadable")
    if len(subjects) == 1 and first.get("refused"):
        return CytosaeError(
            f"{_title(subjects[0], 0)} is {why}; give a picture of one cell, a field with --boxes, or --force."
        )
    return CytosaeError(
        f"None of the {len(subjects)} images could be explained (the first: {why}); give pictures of single cells, or --force."
    )


def _draw(found: Explanation, path: Path, reference: Reference | None, kept: Path, record: Record) -> None:
    """Draw one picture, then keep its record."""
    save_explanation(found, path, reference)
    _keep(kept, record)


def _keep(path: Path, record: Record) -> None:
    """Keep a finished record; whole or not at all."""
    part = path.with_suffix(".part")
    write_json(part, record)
    part.replace(path)


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
