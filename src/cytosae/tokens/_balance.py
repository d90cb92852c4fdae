"""Blocks that are kept side by side are brought to one spread, by factors that depend on the network alone."""

from __future__ import annotations

import math

import numpy as np
import torch

from cytosae.backbones import Backbone, Layer
from cytosae.cells import ImageParquet, bundled_path, decode_image

#: Bundled cells on which the spread of a block is measured.
_CELLS = 32
_BATCH = 16


def balanced(backbone: Backbone, layer: Layer) -> Layer:
    """Give every one of several blocks its factor, where none has one.

    The factor is the power of two that brings the spread of a block's patch tokens (root of the mean squared distance from
    their mean) nearest to that of the last block. It is measured on `_CELLS` of the cells inside the package, so that all
    stores of one backbone and the same blocks fit one another, whatever their cells.

    Parameters
    ----------
    backbone
        The network.
    layer
        A block, which is given back; or several, of which each without a factor has 1 where another has one.

    Returns
    -------
    An int, or ``[[block, factor], ...]`` in ascending order.

    Raises
    ------
    UsageError
        See `tap_of`.
    """
    backbone.block_number(layer)  # refuses what does not exist
    if isinstance(layer, int):
        return layer
    tap = backbone.tap(layer)
    if not tap.several or not all(isinstance(part, int) for part in layer):
        return tap.as_layer()
    spreads = _spreads(backbone, tap.blocks)
    return [[block, 2.0 ** round(math.log2(spreads[-1] / s))] for block, s in zip(tap.blocks, spreads, strict=True)]


def _spreads(backbone: Backbone, blocks: tuple[int, ...]) -> list[float]:
    store = ImageParquet(bundled_path())
    rows = np.linspace(0, len(store) - 1, _CELLS).round().astype(int)
    resize = backbone.preprocessing.resize
    images = np.stack([resize(decode_image(store.read(int(row))[0] or b"").pixels) for row in rows])
    parts = [backbone.tokens(images[i : i + _BATCH], list(blocks)).cpu() for i in range(0, _CELLS, _BATCH)]
    patches = torch.cat(parts)[:, backbone.n_prefix :].flatten(0, 1).double()
    each = (patches - patches.mean(0)).square().mean(0).view(len(blocks), backbone.d_in)
    return [math.sqrt(max(s, 1e-30)) for s in each.sum(1).tolist()]
