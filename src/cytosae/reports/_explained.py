"""One image explained, as a picture: the cell with its concepts marked, each concept's map, and similar cells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from cytosae.cells import Window
from cytosae.concepts import Explanation, Reference, Unusual
from cytosae.reports._canvas import FAINT, INK, Canvas, font, heated, ink_on, square
from cytosae.reports._pictures import COLOURS, OUTLINE
from cytosae.storage import commit_file

#: Sides of the cell, of a map, of a small picture; margins; columns of concepts.
_CELL, _MAP, _SMALL, _GAP, _COLUMNS = 400, 252, 64, 22, 4
_CARD = 434
NOTICE = "Research use only. Yellow: where the concept is active, on its own scale in each picture; the line: above half of its largest value."
SUGGESTED = "A caption with ? is suggested by what a concept's exemplars have in common; nobody has checked it."


def save_explanation(explanation: Explanation, path: Path, reference: Reference | None = None) -> None:
    """Draw an explanation into one PNG.

    Parameters
    ----------
    explanation
        What was found.
    path
        The file.
    reference
        Where the pictures of similar cells and of exemplars come from; without it there are none.
    """
    with commit_file(path) as temporary:
        draw_explanation(explanation, reference).save(temporary, "PNG", compress_level=1)


def draw_explanation(explanation: Explanation, reference: Reference | None = None) -> Image.Image:
    """The picture of an explanation."""
    n = len(explanation.concepts)
    columns = max(1, min(_COLUMNS, n))
    card = _CARD if reference is not None else _CARD - _SMALL - 24
    rows = -(-n // columns)
    left = _CELL + 2 * _GAP
    height = max(16 + rows * card, 64 + _CELL + (290 if explanation.similar is not None else 70)) + 44
    canvas = Canvas(left + _GAP + columns * (_MAP + _GAP), height)
    canvas.text(_GAP, 16, Path(explanation.image).name, 19, bold=True, width=_CELL)
    size = "{1} x {0} px".format(*explanation.pixels.shape[:2])
    canvas.text(
        _GAP, 40, f"{size}; {n} concepts with {explanation.codes_shown:.0%} of all activation", 13, colour=FAINT
    )
    canvas.paste(_GAP, 64, marked_cell(explanation))
    y = 64 + _CELL + 14
    if explanation.unusual is not None:
        _unusual(canvas, y, explanation.unusual)
    if explanation.similar is not None and reference is not None:
        _similar(canvas, y + 60, explanation.similar, reference)
    ground = square(explanation.pixels, _MAP)
    for number, row in enumerate(explanation.concepts.itertuples()):
        x = left + (number % columns) * (_MAP + _GAP)
        _concept(canvas, x, 16 + (number // columns) * card, number, row, ground, explanation, reference)
    suggested = "suggestion" in explanation.concepts
    canvas.text(_GAP, height - 44, NOTICE, 12, colour=FAINT, width=canvas.image.width - 2 * _GAP)
    if suggested:
        canvas.text(_GAP, height - 26, SUGGESTED, 12, colour=FAINT, width=canvas.image.width - 2 * _GAP)
    return canvas.image


def marked_cell(explanation: Explanation, side: int = _CELL) -> Image.Image:
    """The cell, each patch in the colour of the loudest of the first eight concepts, and their numbers where they peak.

    Loudness is the code relative to the concept's largest in this cell; below `OUTLINE` of it a patch keeps its own colour.
    """
    picture = square(explanation.pixels, side)
    maps = explanation.maps[: len(COLOURS)]
    if not len(maps):
        return picture
    relative = maps / np.maximum(maps.max((1, 2), keepdims=True), 1e-9)
    loudest = np.where(relative.max(0) >= OUTLINE, relative.argmax(0), -1)
    colours = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in COLOURS], np.float32)
    layer = Image.fromarray((loudest + 1).astype(np.uint8)).resize((side, side), Image.Resampling.NEAREST)
    at = np.asarray(layer).astype(int) - 1
    under = np.asarray(picture, dtype=np.float32)
    mixed = np.where((at >= 0)[..., None], 0.55 * under + 0.45 * colours[at], under)
    picture = Image.fromarray(np.rint(mixed).astype(np.uint8))
    draw, taken = ImageDraw.Draw(picture), list[tuple[float, float]]()
    rows, columns = maps.shape[1:]
    for number, (values, colour) in enumerate(zip(maps, COLOURS, strict=False), 1):
        y, x = divmod(int(values.argmax()), columns)
        place = ((x + 0.5) / columns * side, (y + 0.5) / rows * side)
        place = (min(max(place[0], 13), side - 14), min(max(place[1], 13), side - 14))
        while any(abs(place[0] - a) < 22 and abs(place[1] - b) < 22 for a, b in taken) and place[0] < side - 26:
            place = (place[0] + 12, place[1])
        taken.append(place)
        draw.ellipse((place[0] - 11, place[1] - 11, place[0] + 11, place[1] + 11), fill=colour, outline="#222222")
        draw.text(place, str(number), fill=ink_on(colour), font=font(13, True), anchor="mm")
    return picture


def caption(row: Any) -> str:
    """What a concept is called: its name, else what its exemplars suggest, with a question mark, else nothing."""
    name, suggestion = getattr(row, "name", None), getattr(row, "suggestion", None)
    if isinstance(name, str):
        return name
    return f"{suggestion}?" if isinstance(suggestion, str) else ""


def _concept(
    canvas: Canvas, x: int, y: int, number: int, row: Any, ground: Image.Image, explanation: Explanation,
    reference: Reference | None,
) -> None:  # fmt: skip
    """One card: title, map over the cell (`ground`), exemplars."""
    colour = COLOURS[number] if number < len(COLOURS) else "#dddddd"
    canvas.chip(x, y, number + 1, colour)
    title, facts = caption(row), []
    if ": " in title and font(15, True).getlength(title) > _MAP - 32:  # the value is what tells
        attribute, title = title.split(": ", 1)
        facts.append(attribute)
    canvas.text(x + 32, y + 3, title or f"concept {row.latent}", 15, bold=True, width=_MAP - 32)
    facts += [f"concept {row.latent}"] if title else []
    facts.append(f"{row.value:.2f}")
    if hasattr(row, "frequency"):
        facts.append(
            f"in {row.frequency:.0%} of cells" if row.frequency >= 0.01 else f"in {row.frequency:.1%} of cells"
        )
    canvas.text(x, y + 29, ", ".join(facts), 12, colour=FAINT, width=_MAP)
    technical = getattr(row, "technical", None)
    canvas.paste(x, y + 48, heated(ground, explanation.maps[number]))
    below = ""
    if isinstance(technical, str) and technical:
        below = f"of the picture rather than the cell? {technical}"
    elif isinstance(getattr(row, "suggestion", None), str) and not isinstance(getattr(row, "name", None), str):
        below = f"{row.suggestion_share:.0%} of exemplars, {row.suggestion_lift:.1f}x as often as in all"
    elif isinstance(getattr(row, "top_label", None), str):
        below = f"exemplars in the index: {row.top_label} ({row.top_label_share:.0%})"
    canvas.text(x, y + 48 + _MAP + 6, below, 11, colour=FAINT, width=_MAP)
    if reference is not None:
        for place, one in enumerate(reference.exemplars_of(int(row.latent)).itertuples()):
            at = (x + place * (_SMALL + 20), y + 48 + _MAP + 24)
            _small(canvas, *at, reference, int(one.row), str(reference.cells["label"].iloc[one.row] or ""))


def _small(canvas: Canvas, x: int, y: int, reference: Reference, row: int, label: str) -> None:
    thumb = Image.fromarray(reference.thumb(row)).resize((_SMALL, _SMALL), Image.Resampling.LANCZOS)
    canvas.paste(x, y, thumb)
    canvas.text(x, y + _SMALL + 2, label, 11, colour=FAINT, width=_SMALL + 16)


def _unusual(canvas: Canvas, y: int, unusual: Unusual) -> None:
    """A scale from the known cells to the limit, with a mark."""
    canvas.text(_GAP, y, "How unusual", 13, bold=True)
    canvas.text(_GAP, y + 18, unusual.words, 11, colour=FAINT, width=_CELL)
    top, width = 1.15 * unusual.limit, _CELL
    at = _GAP + width * min(unusual.distance / top, 1.0)
    limit = _GAP + width * unusual.limit / top
    canvas.draw.rectangle((_GAP, y + 38, _GAP + width, y + 44), fill="#e9eef2")
    canvas.draw.rectangle((limit, y + 38, _GAP + width, y + 44), fill="#f0b8a8")
    canvas.draw.ellipse((at - 6, y + 35, at + 6, y + 47), fill=INK, outline="#ffffff")


def _similar(canvas: Canvas, y: int, similar: Any, reference: Reference) -> None:
    canvas.text(_GAP, y, "Similar reference cells", 13, bold=True)
    step = (_CELL - _SMALL) // 3
    for place, one in enumerate(similar.head(8).itertuples()):
        x, below = _GAP + (place % 4) * step, y + 22 + (place // 4) * (_SMALL + 36)
        _small(canvas, x, below, reference, int(one.row), str(one.label or "no label"))
        canvas.text(x, below + _SMALL + 15, f"{one.dataset}, {one.similarity:.2f}", 10, colour=FAINT, width=step - 8)


def draw_field(
    pixels: npt.NDArray[np.uint8], windows: Sequence[Window], labels: Sequence[str | None], name: str, side: int = 1400
) -> Image.Image:
    """A field with its boxes: numbered, each with a word for its strongest concept.

    Parameters
    ----------
    pixels
        The field.
    windows
        What was cut from it.
    labels
        The word for each window; None where it is not like a cell: that box is grey.
    name
        Of the field.
    side
        Longer side of the picture.
    """
    height, width = pixels.shape[:2]
    scale = side / max(height, width)
    shown = Image.fromarray(pixels).resize((round(width * scale), round(height * scale)), Image.Resampling.LANCZOS)
    canvas = Canvas(shown.width + 2 * _GAP, shown.height + 96)
    canvas.text(_GAP, 14, name, 19, bold=True, width=shown.width)
    n_refused = sum(label is None for label in labels)
    refused = f", {n_refused} of them not like a single blood cell (grey)" if n_refused else ""
    canvas.text(_GAP, 38, f"{len(windows)} boxes{refused}; under each its strongest concept", 13, colour=FAINT)
    canvas.paste(_GAP, 62, shown)
    right, bottom = _GAP + shown.width - 1, 62 + shown.height - 1
    letters = font(13, True)
    for number, (window, label) in enumerate(zip(windows, labels, strict=True), 1):
        x0, y0 = _GAP + window.x * scale, 62 + window.y * scale
        x1, y1 = x0 + window.width * scale, y0 + window.height * scale
        x0, y0, x1, y1 = max(x0, _GAP), max(y0, 62), min(x1, right), min(y1, bottom)
        colour = "#8a8a8a" if label is None else "#0072B2"
        canvas.draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline="#ffffff", width=4)
        canvas.draw.rectangle((x0, y0, x1, y1), outline=colour, width=2)
        text = f"{number}  {label}" if label else str(number)
        wide = letters.getlength(text) + 10
        at = (min(x0, right - wide), min(y1, bottom - 19))
        canvas.draw.rectangle((at[0], at[1], at[0] + wide, at[1] + 19), fill=colour)
        canvas.draw.text((at[0] + 5, at[1] + 2), text, fill="#ffffff", font=letters)
    canvas.text(_GAP, canvas.image.height - 25, f"Research use only. {SUGGESTED}", 12, colour=FAINT, width=shown.width)
    return canvas.image
