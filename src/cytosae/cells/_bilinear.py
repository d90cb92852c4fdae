"""Pillow's bilinear resize with antialiasing: the original, and a faster one that is never more than one level off.

Pillow resizes rows, rounds them to bytes, and then resizes columns, with integer weights of 22 bits; newer versions
begin with the columns where a picture is much taller than wide. The fast path keeps the order, and takes PyTorch's
kernel for the rows and Pillow's own integers, as a sparse product, for the columns.

Why one grey level at most. Where columns come first they are exact, and the rows differ by rounding alone. Where rows
come first: PyTorch's weights have about 15 bits, so a byte of a row near a half may round to the other
side: it is off by one, never by more. A column's weights are not negative and add up to 2**22 + excess, where the
excess is 0 or a few units. Bytes that are off by one at most move the sum by 2**22 + excess at most, and so the result
by one grey level; by two only where the excess is positive and the sum lies within it from a step of the result. Those
few values are computed again from the pixels, as Pillow does it. (With PyTorch's weights for both directions, two
errors can add up to two grey levels.)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

#: Bits behind the point of Pillow's integer weights (``PRECISION_BITS`` of its ``Resample.c``).
_BITS = 22
_HALF, _MASK = 1 << (_BITS - 1), (1 << _BITS) - 1

Pixels = npt.NDArray[np.uint8]


def resize_exact(pixels: Pixels, side: int) -> Pixels:
    """Pillow's resize of ``[height, width, 3]`` to ``[side, side, 3]``: the reference of `resize_fast`."""
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR))


def resize_fast(pixels: Pixels, side: int) -> Pixels:
    """`resize_exact` within one grey level, in about a third of the time; always a new array."""
    pixels = np.require(pixels, requirements=["C", "W"])
    height, width = pixels.shape[:2]
    if width == side:
        return pixels.copy() if height == side else resize_down(pixels, side)
    if height == side:
        return resize_across(pixels, side)
    order = _order(height, width, side)
    if order == "columns":
        return resize_across(resize_down(pixels, side), side)
    return resize_down(resize_across(pixels, side), side, pixels) if order == "rows" else resize_exact(pixels, side)


@lru_cache(maxsize=4096)
def _order(height: int, width: int, side: int) -> str:
    """Which direction the installed Pillow resizes first, ``rows`` or ``columns``, tried out on noise of this size."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8)
    picture, size = Image.fromarray(noise), (side, side)
    both = picture.resize(size, Image.Resampling.BILINEAR)
    for order, first in (("rows", (side, height)), ("columns", (width, side))):
        if picture.resize(first, Image.Resampling.BILINEAR).resize(size, Image.Resampling.BILINEAR) == both:
            return order
    return "unknown"


def resize_across(pixels: Pixels, width: int) -> Pixels:
    """Another width by PyTorch's kernel; every byte within one of Pillow's."""
    import torch

    with torch.no_grad():
        # the batch axis is added before the axes are turned: only then the kernel sees, and gives, bytes in place
        picture = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
        across = torch.ops.aten._upsample_bilinear2d_aa(picture, [pixels.shape[0], width], False)
    result: Pixels = across[0].permute(1, 2, 0).contiguous().numpy()
    return result


def resize_down(pixels: Pixels, height: int, source: Pixels | None = None) -> Pixels:
    """Another height, bit for bit as Pillow gives it.

    Parameters
    ----------
    pixels
        uint8 ``[rows, width, 3]``.
    height
        Rows of the result.
    source
        What `pixels` was made of by `resize_across`: the values that could be two levels off are taken from there.
    """
    weights = _weights(pixels.shape[0], height)
    sums = weights.matrix @ pixels.reshape(pixels.shape[0], -1).astype(np.int32)
    sums += _HALF
    doubtful = weights.doubtful(sums) if source is not None else None
    sums >>= _BITS
    result: Pixels = sums.astype(np.uint8).reshape(height, *pixels.shape[1:])
    if source is not None and doubtful is not None and len(doubtful[0]):
        row, (column, channel) = doubtful[0], np.divmod(doubtful[1], 3)
        across = _weights(source.shape[1], pixels.shape[1])
        result[row, column, channel] = _single_values(source, weights, across, row, column, channel)
    return result


@dataclass(frozen=True)
class _Weights:
    """Pillow's weights from ``n_in`` to ``n_out`` values.

    `low` is the first input of every output, `taps` ``[n_out, k]`` the weights from there on (0 behind the last),
    `matrix` the same as a sparse ``[n_out, n_in]``, `excess` how far their sum is above 2**22 (else 0).
    """

    low: npt.NDArray[np.int64]
    taps: npt.NDArray[np.int32]
    matrix: Any
    excess: npt.NDArray[np.int32]

    def doubtful(self, sums: npt.NDArray[np.int32]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Row and place of the sums ``[n_out, m]`` that lie nearer to a step of the result than their excess."""
        rows = np.flatnonzero(self.excess)
        excess = self.excess[rows, None]
        row, place = np.nonzero(((sums[rows] + excess) & _MASK) < 2 * excess)
        return rows[row], place


def _single_values(
    source: Pixels,
    down: _Weights,
    across: _Weights,
    y: npt.NDArray[Any],
    x: npt.NDArray[Any],
    channel: npt.NDArray[Any],
) -> Pixels:
    """Single values of the resized picture, exactly as Pillow computes them."""
    height, width = source.shape[:2]
    rows = np.minimum(down.low[y][:, None] + np.arange(down.taps.shape[1]), height - 1)
    columns = np.minimum(across.low[x][:, None] + np.arange(across.taps.shape[1]), width - 1)
    values = source[rows[:, :, None], columns[:, None, :], channel[:, None, None]].astype(np.int32)
    bytes_of_rows = ((values * across.taps[x][:, None, :]).sum(axis=2, dtype=np.int32) + _HALF) >> _BITS
    found: Pixels = (((bytes_of_rows * down.taps[y]).sum(axis=1, dtype=np.int32) + _HALF) >> _BITS).astype(np.uint8)
    return found


@lru_cache(maxsize=256)
def _weights(n_in: int, n_out: int) -> _Weights:
    """As ``precompute_coeffs`` and ``normalize_coeffs_8bpc`` of Pillow's ``Resample.c`` with its triangle filter."""
    from scipy.sparse import csr_matrix

    scale = n_in / n_out
    reach = max(scale, 1.0)
    centre = (np.arange(n_out) + 0.5) * scale
    low = np.maximum((centre - reach + 0.5).astype(np.int64), 0)
    high = np.minimum((centre + reach + 0.5).astype(np.int64), n_in)
    places = low[:, None] + np.arange(int((high - low).max()))
    weights = np.maximum(1.0 - np.abs((places - centre[:, None] + 0.5) * (1.0 / reach)), 0.0)
    weights[places >= high[:, None]] = 0.0
    weights /= np.cumsum(weights, axis=1)[:, -1:]  # a running sum, in Pillow's order
    taps = (weights * (1 << _BITS) + 0.5).astype(np.int32)
    row, tap = np.nonzero(taps)
    matrix = csr_matrix((taps[row, tap], (row, places[row, tap])), shape=(n_out, n_in))
    return _Weights(low, taps, matrix, np.maximum(taps.sum(axis=1) - (1 << _BITS), 0).astype(np.int32))
