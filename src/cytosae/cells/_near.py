"""Near duplicates: the same cell re-encoded, resized, mirrored, turned by quarters, or shifted by a few pixels.

Two steps. A cheap signature that such changes leave nearly alone (the strengths of the low spatial frequencies, alike
in all eight orientations, and the mean colour) gives candidates. Each candidate pair is then laid over each other in
all eight orientations and in steps of a quarter of a thumb pixel; what correlates by at least `CORRELATION` is one cell.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from cytosae.cells._spool import RecordFile, merge_runs
from cytosae.cells._thumb import SIDE, split_thumbs

#: Correlation from which two thumbs show the same cell. Copies of Acevedo cells reach 0.99, different cells 0.96.
CORRELATION = 0.98

#: Largest distance of the signatures (of norm 1), and of a mean colour in grey levels, for a candidate pair.
SIGNATURE_DISTANCE, COLOUR_DISTANCE = 0.08, 4.0

#: Highest frequencies used: 8 cycles across the image for the signature, 12 for the comparison.
_LOW, _HIGH = 8, 12

#: Shifts that are tried, in thumb pixels: up to 1/14 of the image to each side.
_SHIFTS = np.arange(-2.25, 2.26, 0.25)

_BLOCK, _PARTNERS, _PAIRS, _RUN = 512, 512, 512, 2048

#: What is compared of an image, in a file sorted by brightness.
_MARK = np.dtype([
    ("brightness", "<f4"), ("number", "<i8"), ("colour", "<f4", 3), ("signature", "<f2", _LOW * (_LOW + 3) // 2),
])  # fmt: skip

Array = TypeVar("Array", bound=npt.NDArray[np.generic])
Spectra = npt.NDArray[np.complex64]


def near_duplicate_groups(
    read: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.uint8]], n: int
) -> npt.NDArray[np.int32]:
    """Groups of near duplicates among `n` different images.

    Parameters
    ----------
    read
        Gives the thumbs ``[k, THUMB_BYTES]`` of ``k`` images by their numbers; never asked for many at once.
    n
        Number of images. Four bytes of memory are used for each.

    Returns
    -------
    int32 ``[n]``: the lowest number of the image's group; its own where it has no near duplicate.
    """
    parent = np.arange(n, dtype=np.int32)
    if n < 2:
        return parent
    with tempfile.TemporaryFile(buffering=0) as first_file, tempfile.TemporaryFile(buffering=0) as second_file:
        marks, in_order = RecordFile(first_file, _MARK), RecordFile(second_file, _MARK)
        for start in range(0, n, _RUN):
            run = np.concatenate(
                [_marks(read, i, min(i + _BLOCK, n)) for i in range(start, min(start + _RUN, n), _BLOCK)]
            )
            marks.append(run[np.argsort(run["brightness"], kind="stable")])
        merge_runs(marks, in_order, _RUN, "brightness", "number")
        for first, second in _candidates(in_order):
            _verify(first, second, parent, read)
    return _roots(parent)


def _marks(read: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.uint8]], start: int, stop: int) -> npt.NDArray[Any]:
    """What is compared of the images from one number up to another."""
    marks = np.empty(stop - start, _MARK)
    numbers = np.arange(start, stop)
    grey, colour = split_thumbs(read(numbers))
    marks["number"], marks["colour"], marks["brightness"] = numbers, colour, colour.mean(axis=1)
    marks["signature"] = signature(grey)
    return marks


def signature(grey: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Strength of the low frequencies of pictures ``[n, SIDE, SIDE]``, norm 1 (0 for a picture without content)."""
    strength = np.abs(np.fft.fft2(_windowed(grey)))
    k = np.arange(-_LOW, _LOW + 1)
    strength = strength[:, k[:, None], k[None]]
    strength = strength + strength[:, ::-1]
    strength = (strength + strength.transpose(0, 2, 1))[:, _LOW:, _LOW:]
    rows, columns = np.triu_indices(_LOW + 1)
    found = np.sqrt(strength[:, rows[1:], columns[1:]])
    norm = np.linalg.norm(found, axis=1, keepdims=True)
    return np.where(norm > 1.0, found / np.maximum(norm, 1.0), 0).astype(np.float32)


def spectra(grey: npt.NDArray[np.float32]) -> Spectra:
    """Middle frequencies of pictures ``[n, SIDE, SIDE]`` as ``[n, 25, 25]``, norm 1; the blurred disc is left out."""
    frequency = np.fft.fftfreq(SIDE) * SIDE
    radius = np.hypot(frequency[:, None], frequency[None])
    spectrum = np.fft.fft2(_windowed(grey)) * np.where(radius <= _HIGH, np.minimum(1.0, radius / 4), 0.0)
    norm = np.sqrt((np.abs(spectrum) ** 2).sum(axis=(1, 2), keepdims=True))
    k = np.arange(-_HIGH, _HIGH + 1)
    found: Spectra = (spectrum / np.maximum(norm, 1e-6))[:, k[:, None], k[None]].astype(np.complex64)
    return found


def correlation(first: Spectra, second: Spectra) -> npt.NDArray[np.float32]:
    """Best correlation of pairs of spectra over eight orientations and all `_SHIFTS`: ``[n]``, at most 1."""
    k = np.arange(-_HIGH, _HIGH + 1)
    wave = np.exp(2j * np.pi * _SHIFTS[:, None] * k[None] / SIDE).astype(np.complex64)
    best = np.full(len(first), -1.0, np.float32)
    for turned in (second, second.transpose(0, 2, 1)):
        for down in (1, -1):
            for across in (1, -1):
                product = first * np.conj(turned[:, ::down, ::across])
                best = np.maximum(best, (wave @ product @ wave.T).real.max(axis=(1, 2)))
    return best


def _windowed(grey: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    edge = np.hanning(SIDE + 2)[1:-1]
    window = np.outer(edge, edge).astype(np.float32)
    result: npt.NDArray[np.float32] = (grey - grey.mean(axis=(1, 2), keepdims=True)) * window
    return result


def _candidates(in_order: RecordFile) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Pairs whose signatures and colours are close; sorted by brightness, so that far ones are never compared."""
    closest = 1.0 - SIGNATURE_DISTANCE**2 / 2
    for start in range(0, len(in_order), _BLOCK):
        block = in_order.read(start, start + _BLOCK)
        mine, brightest = block["signature"].astype(np.float32), block["brightness"][-1] + COLOUR_DISTANCE
        for begin in range(start, len(in_order), _PARTNERS):
            others = in_order.read(begin, begin + _PARTNERS)
            others = others[: int(np.searchsorted(others["brightness"], brightest, "right"))]
            i, j = np.nonzero(mine @ others["signature"].astype(np.float32).T > closest)
            later = begin + j > start + i
            i, j = i[later], j[later]
            same = (np.abs(block["colour"][i] - others["colour"][j]) < COLOUR_DISTANCE).all(axis=1)
            if same.any():
                yield block["number"][i[same]], others["number"][j[same]]
            if len(others) < _PARTNERS:
                break


def _verify(
    first: npt.NDArray[np.int64],
    second: npt.NDArray[np.int64],
    parent: npt.NDArray[np.int32],
    read: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.uint8]],
) -> None:
    """Unite the pairs that show the same cell; pairs already in one group are not compared again."""
    while len(first):
        apart = _roots(parent, first) != _roots(parent, second)
        first, second = first[apart], second[apart]
        a, b = first[:_PAIRS], second[:_PAIRS]
        first, second = first[_PAIRS:], second[_PAIRS:]
        if not len(a):
            return
        numbers, place = np.unique(np.concatenate([a, b]), return_inverse=True)
        found = spectra(split_thumbs(read(numbers))[0])
        same = correlation(found[place[: len(a)]], found[place[len(a) :]]) >= CORRELATION
        for x, y in zip(a[same].tolist(), b[same].tolist(), strict=True):
            low, high = sorted((int(_roots(parent, np.array([x]))[0]), int(_roots(parent, np.array([y]))[0])))
            parent[high] = low


def _roots(parent: npt.NDArray[np.int32], numbers: npt.NDArray[np.int64] | None = None) -> npt.NDArray[np.int32]:
    """The lowest number of each group (a parent is always lower than its child)."""
    found = parent if numbers is None else parent[numbers]
    while True:
        above = parent[found]
        if (above == found).all():
            return found
        found = above
