"""Profiles as a heat map: patients in rows, ordered by diagnosis; concepts in columns, ordered by likeness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from scipy.cluster import hierarchy

_LEFT, _TOP, _COLUMN, _ROW, _GAP = 92, 20, 22, 16, 8


@dataclass(frozen=True)
class HeatMap:
    """Squares (x, y, colour, title), names of rows, columns and blocks, and the size."""

    width: int
    height: int
    column: int
    row: int
    squares: list[tuple[float, float, str, str]]
    rows: list[tuple[float, str]]
    columns: list[tuple[float, int]]
    blocks: list[tuple[float, float, str]]
    bottom: float
    top_value: float
    colours: list[str]


def heat_map(profiles: Any, target: str, latents: list[int]) -> HeatMap:
    """Share of a patient's cells that carry each of `latents`, from white (none) to dark (the largest shown)."""
    X = np.asarray(profiles.X, np.float64)[:, latents]
    if len(latents) > 2:
        links = hierarchy.linkage(X.T + 0.0, method="average", metric="euclidean")
        leaves = hierarchy.leaves_list(links)
        X, latents = X[:, leaves], [latents[i] for i in leaves]
    diagnoses, names = [str(v) for v in profiles.obs[target]], [str(v) for v in profiles.obs["patient"]]
    order = sorted(range(len(names)), key=lambda i: (diagnoses[i], names[i]))
    top = float(X.max()) or 1.0
    palette = colormaps["Blues"]
    squares, rows, blocks = [], [], []
    y, previous = float(_TOP), None
    for i in order:
        if diagnoses[i] != previous:
            y += _GAP if previous is not None else 0
            blocks.append((y, float(sum(d == diagnoses[i] for d in diagnoses) * _ROW), diagnoses[i]))
            previous = diagnoses[i]
        rows.append((y + _ROW - 4, names[i]))
        for j, latent in enumerate(latents):
            title = f"{names[i]}, concept {latent}: {X[i, j]:.0%} of cells"
            squares.append((float(_LEFT + j * _COLUMN), y, _hex(palette(X[i, j] / top)), title))
        y += _ROW
    columns = [(_LEFT + j * _COLUMN + _COLUMN / 2, latent) for j, latent in enumerate(latents)]
    width = _LEFT + len(latents) * _COLUMN + 190
    colours = [_hex(palette(k / 20)) for k in range(21)]
    return HeatMap(width, int(y) + 44, _COLUMN, _ROW, squares, rows, columns, blocks, y, top, colours)


def _hex(colour: Any) -> str:
    return "#" + "".join(f"{round(255 * c):02x}" for c in colour[:3])
