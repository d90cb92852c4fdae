"""The landscape of concepts: log frequency against log mean activation, colour = label entropy (figure 2 of the paper)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib import colormaps

from cytosae.reports._axis import LogAxis

WIDTH, HEIGHT = 760, 460
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 110, 14, 52


@dataclass(frozen=True)
class Dot:
    """One concept in the plot."""

    x: float
    y: float
    colour: str
    latent: int
    title: str
    shown: bool


@dataclass(frozen=True)
class Landscape:
    """All that the template draws."""

    width: int
    height: int
    dots: list[Dot]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    box: tuple[float, float, float, float]
    colours: list[tuple[float, str]]
    entropy_ticks: list[tuple[float, str]]
    n_left_out: int


def landscape(concepts: pd.DataFrame, shown: set[int], n_labels: int) -> Landscape:
    """Positions and colours of all concepts that are active at all; `shown` ones are marked and link to their card."""
    alive = concepts[(concepts["n_cells_active"] > 0) & concepts["mean_activation"].gt(0)]
    x = alive["mean_activation"].to_numpy(float)
    y = alive["frequency"].to_numpy(float)
    entropy = alive["label_entropy"].to_numpy(float)
    top_entropy = math.log(max(n_labels, 2))
    box = (_LEFT, _TOP, WIDTH - _RIGHT, HEIGHT - _BOTTOM)
    across, up = LogAxis.over(x, box[0], box[2]), LogAxis.over(y, box[3], box[1])
    map_ = colormaps["viridis"]

    def colour(value: float) -> str:
        if not math.isfinite(value):
            return "#999999"
        r, g, b, _ = map_(min(value / top_entropy, 1.0))
        return f"#{round(r * 255):02x}{round(g * 255):02x}{round(b * 255):02x}"

    dots = []
    # the pure ones are drawn last, so that they lie on top
    for i in np.argsort(-np.nan_to_num(entropy, nan=9.0), kind="stable"):
        row = alive.iloc[int(i)]
        known = isinstance(row["top_label"], str)
        about = f"label entropy {row['label_entropy']:.2f}, most often {row['top_label']}" if known else "no label"
        title = f"Concept {row['latent']}: in {row['frequency']:.1%} of cells, mean activation {row['mean_activation']:.3g}, {about}"
        latent = int(row["latent"])
        dots.append(Dot(across.at(x[i]), up.at(y[i]), colour(entropy[i]), latent, title, latent in shown))
    dots.sort(key=lambda d: d.shown)
    bar = [(box[3] - (box[3] - box[1]) * k / 40, colour(top_entropy * k / 40)) for k in range(40, -1, -1)]
    steps = np.arange(0, top_entropy + 1e-9, 0.5)
    ticks = [(box[3] - (box[3] - box[1]) * v / top_entropy, f"{v:.1f}") for v in steps]
    return Landscape(
        WIDTH, HEIGHT, dots, across.ticks(), up.ticks(),
        box, bar, ticks, len(concepts) - len(alive),
    )  # fmt: skip
