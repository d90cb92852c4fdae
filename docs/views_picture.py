"""Draw the views of a cell, and how far the tokens of each are from those of the cell as it is.

Usage: ``python docs/views_picture.py``
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from cytosae.backbones import load_backbone
from cytosae.cells import build_cells, bundled_path, select
from cytosae.tokens import load_images, turned
from cytosae.tokens._views import VIEWS

DOCS = Path(__file__).parent
N_CELLS, SHOWN = 64, 9


def back(grids: np.ndarray, view: int) -> np.ndarray:
    """Undo `turned`."""
    straight = grids[:, :, ::-1] if view % 2 else grids
    return np.rot90(straight, -(view // 2), axes=(1, 2))


def main() -> None:
    """Write ``images/tokens-views.png`` and print the mean shares."""
    import tempfile

    backbone = load_backbone("dinov2-s")
    with tempfile.TemporaryDirectory() as folder:
        cells = build_cells(bundled_path(), Path(folder) / "cells.parquet")
        frame = select(cells, ["dataset=acevedo_pbc"])
        frame = frame.iloc[np.linspace(0, len(frame) - 1, N_CELLS).astype(int)]
        images = load_images(frame, cells.root, backbone)
    grids = []
    for view in range(VIEWS):
        tokens = backbone.tokens(np.ascontiguousarray(turned(images, view)))[:, backbone.n_prefix :].numpy()
        grids.append(back(tokens.reshape(N_CELLS, *backbone.grid, -1), view))
    first = grids[0]
    variance = float(((first - first.mean((0, 1, 2))) ** 2).sum(-1).mean())
    shares = [((grid - first) ** 2).sum(-1) / variance for grid in grids]

    figure, axes = plt.subplots(2, VIEWS, figsize=(11, 3.1), layout="constrained")
    for view, (above, below) in enumerate(axes.T):
        above.imshow(turned(images[SHOWN : SHOWN + 1], view)[0])
        drawn = below.imshow(
            turned(shares[view][SHOWN : SHOWN + 1], view)[0], vmin=0, vmax=1.2, cmap="magma", interpolation="nearest"
        )
        quarter = f"{90 * (view // 2)}°" if view > 1 else ("as it is" if view == 0 else "")
        above.set_title(" ".join(filter(None, [quarter, "mirrored" if view % 2 else ""])), fontsize=9)
        below.set_xlabel(f"mean {shares[view].mean():.0%}", fontsize=9)
        for axis in (above, below):
            axis.set_xticks([])
            axis.set_yticks([])
    bar = figure.colorbar(drawn, ax=axes[1], fraction=0.02, pad=0.01)
    bar.set_label("difference, of the variance", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    figure.savefig(DOCS / "images" / "tokens-views.png", dpi=110)
    print([round(float(share.mean()), 3) for share in shares])


if __name__ == "__main__":
    main()
