"""Planted lesions: a real vacuole or granulated patch cut from one cell and put into another at a known place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from scipy import ndimage

from cytosae.backbones import Backbone, Layer
from cytosae.cells import estimate_cell
from cytosae.evaluation._context import Context
from cytosae.tokens import load_images

Array = npt.NDArray[Any]
Pixels = npt.NDArray[np.uint8]

#: Host cells on each side.
_HOSTS, _HOSTS_FAST = 40, 8
#: Least hosts and donors on each side for a score.
MIN_HOSTS = 8
#: A pasted square is so many patches wide; it has to lie on the cell by so much; its rim fades over so many pixels.
_PATCHES, _ON_CELL, _RIM = 2, 0.9, 3
_BATCH = 16


@dataclass(frozen=True)
class Lesion:
    """One kind of planted lesion.

    Attributes
    ----------
    name
        As the table calls it.
    donors, hosts
        Columns and values that make a cell a donor or a host.
    find
        Pixels and cell (bool) -> how much every pixel looks like the middle of the lesion.
    """

    name: str
    donors: tuple[tuple[str, frozenset[str]], ...]
    hosts: tuple[tuple[str, frozenset[str]], ...]
    find: Callable[[Pixels], Array]


def _pale_spot(pixels: Pixels) -> Array:
    """Small and paler than what lies around: a vacuole."""
    green = pixels[:, :, 1].astype(np.float64)
    unit = pixels.shape[0] / 224
    return np.asarray(ndimage.gaussian_filter(green, 4 * unit) - ndimage.gaussian_filter(green, 12 * unit))


def _pink(pixels: Pixels) -> Array:
    """Redder than blue over the whole square: eosinophil granules."""
    unit = pixels.shape[0] / 224
    return np.asarray(
        ndimage.gaussian_filter(pixels[:, :, 0].astype(np.float64) - pixels[:, :, 2].astype(np.float64), 7 * unit)
    )


LESIONS = (
    Lesion("vacuole", (("cytoplasm_vacuole", frozenset({"yes"})),), (("cytoplasm_vacuole", frozenset({"no"})),), _pale_spot),
    Lesion("eosinophil granules", (("label", frozenset({"eosinophil", "EOS"})),), (("label", frozenset({"lymphocyte", "LYT"})),), _pink),
)  # fmt: skip


@dataclass(frozen=True)
class Planted:
    """Images with a lesion at a known place, and as many with a harmless patch of another host: tokens, shares, sides, groups."""

    tokens: torch.Tensor
    share: npt.NDArray[np.float64]
    choosing: Array
    unit: npt.NDArray[np.int64]
    n_hosts: int


def plant(context: Context, lesion: Lesion, backbone: Backbone, layer: Layer) -> Planted | str:
    """Paste a lesion into hosts of both sides; donors and hosts of a side come from that side.

    Returns
    -------
    The images' patch tokens [n, n_patches, d_in] and what is known of them; or one sentence why there are none.
    """
    frame = context.frame
    donors, hosts = (_fulfilling(context, wanted) for wanted in (lesion.donors, lesion.hosts))
    limit = _HOSTS_FAST if context.fast else _HOSTS
    images: list[Pixels] = []
    share, choosing, unit = [], [], []
    rng = np.random.Generator(np.random.Philox(key=[context.seed, 41]))
    n_hosts = 0
    for part in ("choose", "score"):
        from_, into = (_some(rng, np.flatnonzero(of & (context.part == part)), limit) for of in (donors, hosts))
        if min(len(from_), len(into)) < MIN_HOSTS:
            return f"{lesion.name}: fewer than {MIN_HOSTS} cells that have it, or that lack it, on a side"
        cut_from = [load_images(frame.iloc[[i]], context.cells.root, backbone)[0] for i in from_]
        whole = [load_images(frame.iloc[[i]], context.cells.root, backbone)[0] for i in into]
        width = _PATCHES * backbone.preprocessing.side // backbone.grid[0]
        pieces = [cut_out(p, width, lesion.find(p)) for p in cut_from]
        harmless = [cut_out(p, width, rng.random(p.shape[:2])) for p in whole]
        for i, host in enumerate(whole):
            place = _place(host, backbone.grid, rng)
            for piece, ill in ((pieces[i % len(pieces)], True), (harmless[(i + 1) % len(harmless)], False)):
                image, box = paste(host, piece, place, backbone.grid)
                images.append(image)
                share.append(box * ill)
                choosing.append(part == "choose")
                unit.append(context.unit[into[i]])
            n_hosts += 1
    tokens = [backbone.tokens(np.stack(images[a : a + _BATCH]), layer)[:, backbone.n_prefix :].cpu()
              for a in range(0, len(images), _BATCH)]  # fmt: skip
    return Planted(torch.cat(tokens).clone(), np.stack(share), np.array(choosing), np.array(unit, np.int64), n_hosts)


def cut_out(pixels: Pixels, width: int, looks: Array) -> Pixels:
    """The square of a cell at the place on it where `looks` is largest."""
    side = pixels.shape[0]
    cell = _cell(pixels).astype(np.float64)
    half = width // 2
    inside = ndimage.uniform_filter(cell, width, mode="constant") >= _ON_CELL
    inside[:half], inside[side - half :], inside[:, :half], inside[:, side - half :] = False, False, False, False
    if not inside.any():
        inside[side // 2, side // 2] = True
    row, column = np.unravel_index(int(np.argmax(np.where(inside, looks, -np.inf))), looks.shape)
    return np.asarray(pixels[row - half : row - half + width, column - half : column - half + width])


def paste(
    host: Pixels, piece: Pixels, place: tuple[int, int], grid: tuple[int, int]
) -> tuple[Pixels, npt.NDArray[np.float64]]:
    """Put a piece into a host so that it fills whole patches from `place` (row, column of the grid) on; its rim fades.

    Returns
    -------
    The image, and the share of each patch that was covered, float64 [rows * columns].
    """
    size = host.shape[0] // grid[0]
    width = piece.shape[0]
    top, left = place[0] * size, place[1] * size
    inner = np.minimum(np.arange(width) + 1, np.arange(width)[::-1] + 1) / (_RIM + 1)
    alpha = np.minimum(np.minimum(inner[:, None], inner[None]), 1)[:, :, None]
    out = host.astype(np.float64)
    under = out[top : top + width, left : left + width]
    out[top : top + width, left : left + width] = alpha * piece + (1 - alpha) * under
    covered = np.zeros(grid)
    covered[place[0] : place[0] + width // size, place[1] : place[1] + width // size] = 1
    return np.round(out).astype(np.uint8), covered.ravel()


def _place(host: Pixels, grid: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
    """A random place on the grid at which the square lies on the cell (the middle, if there is none)."""
    size = host.shape[0] // grid[0]
    cell = _cell(host)
    width = _PATCHES * size
    found = [(r, c) for r in range(grid[0] - _PATCHES + 1) for c in range(grid[1] - _PATCHES + 1)
             if cell[r * size : r * size + width, c * size : c * size + width].mean() >= _ON_CELL]  # fmt: skip
    middle = (grid[0] // 2 - _PATCHES // 2, grid[1] // 2 - _PATCHES // 2)
    return found[int(rng.integers(len(found)))] if found else middle


def _cell(pixels: Pixels) -> Array:
    """Which pixels show the cell: the estimate of half an image's side, scaled up."""
    size = (pixels.shape[1], pixels.shape[0])
    return np.asarray(Image.fromarray(estimate_cell(pixels)).resize(size, Image.Resampling.NEAREST))


def _fulfilling(context: Context, wanted: tuple[tuple[str, frozenset[str]], ...]) -> Array:
    out = np.ones(len(context.frame), bool)
    for column, values in wanted:
        if column not in context.frame:
            return np.zeros(len(context.frame), bool)
        out &= context.frame[column].astype("string").isin(values).fillna(False).to_numpy(bool)
    return out


def _some(rng: np.random.Generator, rows: Array, limit: int) -> Array:
    return rows if len(rows) <= limit else np.sort(rng.choice(rows, limit, replace=False))
