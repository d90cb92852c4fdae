"""Where in the image units fire: on the cell or beside it, at one place or anywhere, along the rim."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cytosae._progress import Meter
from cytosae.evaluation._context import Context
from cytosae.evaluation._units import Units

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
_CHUNK = 8
#: Firing tokens wanted in each half for a judgement of place.
MIN_TOKENS = 20


@dataclass(frozen=True)
class Places:
    """What is known of the places of every unit; NaN where it fires on too few tokens.

    Attributes
    ----------
    on_cell_share
        Share of its activation that lies on the cell, float64 [n_units]; None without images.
    position_auroc
        How well the place alone says where it fires: the frequency at each place in one half of the cells, AUROC over the
        tokens of the other.
    border_share
        Share of its activation in the outermost ring of patches.
    n_tokens
        Tokens it fires on.
    """

    on_cell_share: Floats | None
    position_auroc: Floats
    border_share: Floats
    n_tokens: npt.NDArray[np.int64]


def places(context: Context, units: Units, rows: Array, half: Array, share: Floats | None) -> Places:
    """Measure some cells.

    Parameters
    ----------
    rows
        Of `context.frame`.
    half
        bool [len(rows)]: the second half.
    share
        float64 [len(rows), n_patches]: how much of each patch the cell covers; None where unknown.
    """
    grid = context.tokens.stores[0].grid
    ring = torch.from_numpy(rim(grid).ravel().astype(np.float64))
    n_patches, n_units = grid[0] * grid[1], units.n_units
    fires = torch.zeros(2, n_patches, n_units, dtype=torch.int32)
    total = torch.zeros(n_units, dtype=torch.float64)
    on, border = torch.zeros_like(total), torch.zeros_like(total)
    with Meter(len(rows), f"{units.name}: places", "cells") as meter, torch.inference_mode():
        for start in range(0, len(rows), _CHUNK):
            x = context.read(rows[start : start + _CHUNK], "patch")
            codes = units.encode(x.flatten(0, 1)).view(len(x), n_patches, n_units)
            for i in range(len(x)):
                fires[int(half[start + i])] += codes[i] > 0
            by_place = codes.sum(0).double()
            total += by_place.sum(0)
            border += ring @ by_place
            if share is not None:
                covered = torch.from_numpy(share[start : start + len(x)].astype(np.float32)).flatten()
                on += (covered @ codes.flatten(0, 1)).double()
            meter.add(len(x))
    enough = (fires.sum(1) >= MIN_TOKENS).all(0).numpy()
    unknown = np.where(enough, 1.0, np.nan)
    safe = np.maximum(total.numpy(), 1e-300)
    return Places(
        None if share is None else unknown * on.numpy() / safe,
        unknown * _by_place(fires, (~half).sum(), half.sum()),
        unknown * border.numpy() / safe,
        fires.sum((0, 1)).numpy().astype(np.int64),
    )


def rim(grid: tuple[int, int]) -> Array:
    """bool [rows, columns]: the outermost ring of patches."""
    out = np.ones(grid, bool)
    out[1:-1, 1:-1] = False
    return out


def _by_place(fires: torch.Tensor, n_first: int, n_second: int) -> Floats:
    """AUROC over the tokens of each half of the frequency by place in the other; the mean of both ways."""
    out = np.zeros(fires.shape[2])
    for fitted, scored, n in ((0, 1, n_second), (1, 0, n_first)):
        order = torch.argsort(fires[fitted], dim=0, descending=True, stable=True)
        known = fires[fitted].gather(0, order)
        yes = fires[scored].gather(0, order).double()
        no = float(n) - yes
        # places of equal frequency are one place
        same = torch.cat([torch.zeros_like(known[:1], dtype=torch.bool), known[1:] == known[:-1]])
        group = (~same).cumsum(0) - 1
        yes = torch.zeros_like(yes).scatter_add_(0, group, yes)
        no = torch.zeros_like(no).scatter_add_(0, group, no)
        above = yes.cumsum(0) - yes / 2
        out += ((no * above).sum(0) / (yes.sum(0) * no.sum(0)).clamp(min=1e-9)).numpy() / 2
    return out
