"""Simple measurements of an image that have nothing to do with what the cell is, and the questions made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image
from scipy import ndimage, stats

from cytosae.cells import ImageReader, decode_image
from cytosae.evaluation._origins import common_labels, origins
from cytosae.evaluation._targets import MIN_CELLS

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

#: Side in pixels at which images are measured, whatever their own.
_SIDE = 112
_COLUMNS = 512
#: What is measured -> how it is explained.
MEASURED = {
    "focus": "log variance of the Laplacian",
    "cast": "mean red less mean blue",
    "brightness": "mean brightness",
    "border": "contrast of the outermost pixels",
}


def measure_image(pixels: npt.NDArray[np.uint8]) -> dict[str, float]:
    """The measurements of `MEASURED` of an image [height, width, 3], at one common size."""
    small = np.asarray(Image.fromarray(pixels).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR), np.float64)
    grey = small.mean(2)
    rim = np.concatenate([grey[:2].ravel(), grey[-2:].ravel(), grey[:, :2].ravel(), grey[:, -2:].ravel()])
    return {
        "focus": float(np.log(ndimage.laplace(grey)[1:-1, 1:-1].var() + 1e-3)),
        "cast": float(small[:, :, 0].mean() - small[:, :, 2].mean()),
        "brightness": float(grey.mean()),
        "border": float(rim.std()),
    }


def measure_images(frame: pd.DataFrame, root: str) -> dict[str, Floats]:
    """`measure_image` of the images of some rows: name -> float64 [n].

    Raises
    ------
    CytosaeError
        An image is gone or has changed.
    """
    reader = ImageReader(root)
    found = [measure_image(decode_image(reader.read(image)).pixels) for image in frame["image"]]
    return {name: np.array([f[name] for f in found]) for name in MEASURED}


@dataclass(frozen=True)
class Question:
    """Something technical that a unit may tell apart, within strata of cells that are alike otherwise.

    Attributes
    ----------
    family, value
        What is asked (``data set``, ``slide``, ``focus`` ...), and for the first two which.
    positive
        bool [n].
    stratum
        int [n]: cells are compared within equal numbers; -1 takes no part.
    both_ways
        Whether a unit that says the contrary tells it too.
    """

    family: str
    value: str
    positive: Array
    stratum: Array
    both_ways: bool


def questions_of(frame: pd.DataFrame, measured: dict[str, Floats], half: Array) -> list[Question]:
    """All that can be asked of these cells with `MIN_CELLS` on each side in each half (bool [n]).

    Data sets are told apart within a common label; slides (or patients, where no slide is known) and measurements within a
    label of one data set; cells without a common label take no part. A measurement asks for the upper against the lower half of its stratum.
    """
    label, origin = common_labels(frame), origins(frame)
    within = np.char.add(np.char.add(origin, ": "), label)
    out = [Question("data set", v, origin == v, _strata(label, label != "", origin == v, half), False)
           for v in np.unique(origin[origin != ""])]  # fmt: skip
    column = next((c for c in ("slide", "patient") if c in frame and frame[c].notna().any()), None)
    if column is not None:
        slide = frame[column].astype("string").fillna("").to_numpy(str)
        known = (slide != "") & (label != "")
        # a slide is compared with other slides of its own data set
        out += [Question("slide", str(v), slide == v, _strata(within, known, slide == v, half), False) for v in np.unique(slide[known])]  # fmt: skip
    size = frame["width"].to_numpy(np.float64) * frame["height"].to_numpy(np.float64)
    for name, values in {**measured, "size": size}.items():
        high = np.zeros(len(frame), bool)
        for one in np.unique(within):
            at = within == one
            high[at] = values[at] > np.median(values[at])
        out.append(Question(name, "", high, _strata(within, label != "", high, half), True))
    return [q for q in out if (q.stratum >= 0).any()]


def areas(values: Array, questions: Sequence[Question], half: Array) -> tuple[Floats, Floats]:
    """AUROC of every unit for every question in each of two halves of the cells, the mean over strata.

    Parameters
    ----------
    values
        [n, n_units].
    half
        bool [n]: the second half.

    Returns
    -------
    two float64 [n_questions, n_units]
    """
    out = np.zeros((2, len(questions), values.shape[1]))
    for side in (0, 1):
        # questions that compare the same cells share their ranks
        asked: dict[bytes, list[int]] = {}
        cells: dict[bytes, Array] = {}
        n = np.zeros(len(questions))
        for i, q in enumerate(questions):
            for stratum in np.unique(q.stratum[q.stratum >= 0]):
                at = np.flatnonzero((q.stratum == stratum) & (half == bool(side)))
                asked.setdefault(at.tobytes(), []).append(i)
                cells[at.tobytes()] = at
                n[i] += len(at)
        for key, which in asked.items():
            at = cells[key]
            positive = np.stack([questions[i].positive[at] for i in which]).astype(np.float64)
            for a in range(0, values.shape[1], _COLUMNS):
                block = slice(a, a + _COLUMNS)
                out[side, which, block] += len(at) * _auroc(values[at, block], positive)
        out[side] /= np.maximum(n, 1)[:, None]
    return out[0], out[1]


def _auroc(values: Array, positive: Floats) -> Floats:
    """The share of pairs that are in order, ties counting half: values [n, n_units], positive [n_questions, n] -> [n_questions, n_units]."""
    n_yes = positive.sum(1, keepdims=True)
    ranks = positive @ stats.rankdata(values, axis=0)
    return np.asarray((ranks - n_yes * (n_yes + 1) / 2) / (n_yes * (positive.shape[1] - n_yes)))


def _strata(names: Array, usable: Array, positive: Array, half: Array) -> Array:
    """Numbers of the strata with enough of both in both halves; -1 elsewhere."""
    out = np.full(len(names), -1)
    for number, name in enumerate(np.unique(names[usable])):
        at = usable & (names == name)
        if min(int((at & (positive == p) & (half == h)).sum()) for p in (True, False) for h in (True, False)) >= MIN_CELLS:  # fmt: skip
            out[at] = number
    return out
