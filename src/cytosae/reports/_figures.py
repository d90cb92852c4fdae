"""Pictures for files: one explained image, drawn with matplotlib."""

from __future__ import annotations

from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
from PIL import Image

from cytosae.concepts import Explanation
from cytosae.reports._pictures import HEAT, OUTLINE, raster
from cytosae.storage import commit_file

_COLUMNS = 4


def save_explanation(explanation: Explanation, path: Path) -> None:
    """Draw an image and the map of each of its concepts into one PNG.

    Yellow is opaque where the concept is at its largest in this picture; the line encloses what is above half of that.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    n = len(explanation.concepts)
    columns = min(_COLUMNS, n + 1)
    n_rows = -(-(n + 1) // columns)
    side = 448
    image = np.asarray(Image.fromarray(explanation.pixels).resize((side, side), Image.Resampling.LANCZOS))
    figure = Figure(figsize=(2.9 * columns, 3.45 * n_rows + 0.35), dpi=150)
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(n_rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    axes[0].imshow(image)
    height, width = explanation.pixels.shape[:2]
    axes[0].set_title(f"{Path(explanation.image).name}\n{width} x {height} px", fontsize=9)
    for axis, row, values in zip(axes[1:], explanation.concepts.itertuples(), explanation.maps, strict=False):
        smooth = raster(values, side)
        peak = float(values.max())
        layer = np.empty((side, side, 4))
        layer[..., :3] = np.array(HEAT) / 255
        layer[..., 3] = 0.62 * np.clip(smooth / peak, 0, 1) ** 0.8
        axis.imshow(image)
        axis.imshow(layer)
        for colour, line in (("#111111", 2.4), ("white", 1.0)):
            axis.contour(smooth, levels=[OUTLINE * peak], colors=[colour], linewidths=[line])
        axis.set_title(_title(row), fontsize=9)
    figure.text(0.5, 0.008, "Research use only. Yellow: where the concept is active, on its own scale in each picture.",
                ha="center", fontsize=7.5, color="#555555")  # fmt: skip
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    with commit_file(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": "cytosae"})


def _title(row: Any) -> str:
    name = getattr(row, "name", None)
    text = f"concept {row.latent}: {row.value:.2f}"
    if isinstance(name, str):
        text = f"{shorten(name, 38, placeholder='...')}\n{text}"
    if hasattr(row, "frequency"):
        label = row.top_label if isinstance(row.top_label, str) else "no label"
        text += f"\nin {row.frequency:.0%} of cells, mostly {label}"
    return text
