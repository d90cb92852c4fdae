"""Which units find a region of the image: single ones and small unions, chosen on some images and scored on others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse

from cytosae.evaluation._bootstrap import Score, as_score, average_precision, mean_score, precisions_of_many
from cytosae.evaluation._candidates import random_subsets
from cytosae.evaluation._units import Units

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

#: Units in a union at most; best single units among which unions are sought; columns made dense together.
UNION, _POOL, _COLUMNS = 5, 48, 256
#: A patch belongs to the region when at least this share of it does (for average precision and for choosing).
COVERED = 0.5
#: Levels to which values are rounded, by rank, before the bootstrap.
_LEVELS = 4096
_CHUNK = 8


class Found(NamedTuple):
    """Units added up after scaling, their average precision where they were chosen, and the threshold of the best IoU there."""

    units: tuple[int, ...]
    precision: float
    threshold: float


@dataclass(frozen=True)
class Images:
    """Images with a region known patch by patch.

    Attributes
    ----------
    share
        float64 [n, n_patches]: how much of each patch the region covers.
    choosing
        bool [n]: images on which units are chosen; the others are scored.
    weights
        int16 [1 + n_draws, n scored]: how often each scored image is drawn (see `draw_weights`).
    """

    share: Floats
    choosing: Array
    weights: Array

    def precision(self, values: Array) -> Score:
        """Average precision of `values` [n scored, n_patches] over the patches of the scored images.

        Values are rounded to 4,096 levels by rank, so that each draw costs one product.
        """
        positive = self.share[~self.choosing] >= COVERED
        level = _levels(values)
        n, top = len(values), int(level.max()) + 1
        at = (np.arange(n)[:, None] * top + level).ravel()
        hits = np.bincount(at, positive.ravel().astype(np.float64), n * top).reshape(n, top)[:, ::-1]
        every = np.bincount(at, minlength=n * top).reshape(n, top)[:, ::-1]
        w = self.weights.astype(np.float64)
        gained = w @ hits
        found, above = np.cumsum(gained, axis=1), np.cumsum(w @ every, axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return as_score((gained * found / np.maximum(above, 1)).sum(1) / found[:, -1])

    def overlap(self, values: Array, threshold: float) -> Score:
        """Intersection over union of the patches at or above a threshold with the region, the shares of patches counting."""
        share = self.share[~self.choosing]
        yes = values >= threshold
        w = self.weights.astype(np.float64)
        both = w @ (yes * share).sum(1)
        with np.errstate(divide="ignore", invalid="ignore"):
            return as_score(both / (w @ yes.sum(1) + w @ share.sum(1) - both))


class PatchCodes:
    """The values of all units on all patches of some images, sparse by unit: [n * n_patches, n_units]."""

    def __init__(self, units: Units, tokens: Sequence[torch.Tensor]) -> None:
        rows = []
        with torch.inference_mode():
            for piece in tokens:
                rows.append(sparse.csr_matrix(units.encode(piece.flatten(0, 1)).numpy()))
        self.matrix = sparse.vstack(rows).tocsc()
        self.n_patches = tokens[0].shape[1]

    def dense(self, units: Sequence[int] | Array) -> Array:
        """float32 [n * n_patches, len(units)]."""
        return np.asarray(self.matrix[:, units].toarray())

    def scales(self, patches: Array) -> Floats:
        """Root mean square of every unit over some patches (bool [n * n_patches]); 1 where it is silent."""
        square = self.matrix.power(2).T @ patches.astype(np.float64) / max(int(patches.sum()), 1)
        return np.where(square > 0, np.sqrt(np.maximum(square, 1e-300)), 1.0)


@dataclass
class Side:
    """What the units of one kind find: ``single``, ``single equal``, ``union``, ``union equal`` -> score; and the picks."""

    precision: dict[str, Score]
    overlap: dict[str, Score]
    single: Found
    union: Found
    n_candidates: int


def find_region(codes: PatchCodes, images: Images, size: int, n_repeats: int, seed: int) -> Side:
    """Choose the best unit and the best union on the choosing images, and score both on the others.

    Parameters
    ----------
    size, n_repeats
        Candidates at which kinds of units of different number are compared, and how often they are drawn.
    """
    patches = np.repeat(images.choosing, codes.n_patches)
    truth = (images.share >= COVERED).ravel()[patches]
    single = _single(codes, patches, truth)
    alive = alive_units(codes, patches)
    scales = codes.scales(patches)
    everyone = _choose(codes, images, patches, truth, single, alive, scales)
    subsets = [alive] if len(alive) <= size else random_subsets(alive, size, n_repeats, seed)
    equal = [
        everyone if len(s) == len(alive) else _choose(codes, images, patches, truth, single, s, scales) for s in subsets
    ]
    precision: dict[str, Score] = {}
    overlap: dict[str, Score] = {}
    for i, name in enumerate(("single", "union")):
        scored: dict[tuple[int, ...], Score] = {}
        for pick in (everyone[i], *(e[i] for e in equal)):
            if pick.units not in scored:
                values = _union(codes, pick.units, scales).reshape(-1, codes.n_patches)[~images.choosing]
                scored[pick.units] = images.precision(values)
                if pick is everyone[i]:
                    overlap[name] = images.overlap(values, pick.threshold)
        precision[name] = scored[everyone[i].units]
        precision[f"{name} equal"] = mean_score([scored[e[i].units] for e in equal])
    return Side(precision, overlap, *everyone, len(alive))


def alive_units(codes: PatchCodes, patches: Array) -> Array:
    """Units that fire on one of some patches."""
    return np.flatnonzero((codes.matrix.T @ patches.astype(np.float32)) > 0)


def best_overlap(values: Array, share: Array) -> float:
    """The threshold at which IoU with the share of each patch is largest."""
    order = np.argsort(-values, kind="stable")
    both = np.cumsum(share[order])
    iou = both / np.maximum(np.arange(1, len(order) + 1) + share.sum() - both, 1e-12)
    ranked = values[order]
    iou[np.append(ranked[1:] == ranked[:-1], False)] = -1
    return float(ranked[int(np.argmax(iou))])


def _single(codes: PatchCodes, patches: Array, truth: Array) -> Floats:
    """Average precision of every unit on the choosing patches."""
    out = np.empty(codes.matrix.shape[1])
    counted = np.ones((len(truth), 1), bool)
    for a in range(0, len(out), _COLUMNS):
        block = codes.matrix[:, a : a + _COLUMNS].toarray()[patches]
        out[a : a + _COLUMNS] = precisions_of_many(block, truth[:, None], counted)[:, 0]
    return out


def _choose(
    codes: PatchCodes, images: Images, patches: Array, truth: Array, single: Floats, among: Array, scales: Floats
) -> tuple[Found, Found]:
    """The best unit, and the union grown from it as long as average precision rises."""
    order = among[np.argsort(-single[among], kind="stable")][:_POOL]
    columns = codes.dense(order)[patches] / scales[order]
    share = images.share.ravel()[patches]
    first = (int(order[0]),)
    total, best = columns[:, 0].astype(np.float64), float(single[order[0]])
    alone = Found(first, best, best_overlap(total, share))
    chosen = [0]
    while len(chosen) < min(UNION, len(order)):
        tried = [(_precision(total + columns[:, j], truth), -j) for j in range(len(order)) if j not in chosen]
        value, j = max(tried)
        if value <= best:
            break
        chosen.append(-j)
        total, best = total + columns[:, -j], value
    return alone, Found(tuple(int(order[j]) for j in chosen), best, best_overlap(total, share))


def _union(codes: PatchCodes, units: tuple[int, ...], scales: Floats) -> Floats:
    """The scaled sum of some units on all patches, added in the order of choice."""
    columns = codes.dense(list(units)) / scales[list(units)]
    total = columns[:, 0].astype(np.float64)
    for j in range(1, len(units)):
        total = total + columns[:, j]
    return total


def _precision(values: Array, truth: Array) -> float:
    return float(average_precision(values, truth, np.ones((1, len(values)), np.int16))[0])


def _levels(values: Array) -> Array:
    """Values as whole numbers in the same order; more than 4,096 different ones share levels by rank."""
    found, level = np.unique(values, return_inverse=True)
    level = level.reshape(values.shape)
    if len(found) <= _LEVELS:
        return level
    counts = np.cumsum(np.bincount(level.ravel()))
    return np.asarray(((counts - 1) * _LEVELS // counts[-1])[level])


def in_pieces(tokens: torch.Tensor) -> list[torch.Tensor]:
    """[n, n_patches, d] cut into lots of a fixed number of images."""
    return list(torch.split(tokens, _CHUNK))
