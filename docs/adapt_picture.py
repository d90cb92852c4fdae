"""Draw what two stains of one cell do to its patches, in the packaged network and in the one adapted to blood cells.

Usage: ``python docs/adapt_picture.py [ADAPTED]`` (a folder that ``cytosae adapt`` wrote; without it the packaged ``dinov2-s-blood``)
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
import torch
from matplotlib import pyplot as plt

from cytosae.backbones import BLOOD, Backbone, load_backbone
from cytosae.cells import ImageParquet, bundled_path, decode_image
from cytosae.training.adapt import view

DOCS = Path(__file__).parent
LABELS = (
    ("acevedo_pbc", "eosinophil"),
    ("acevedo_pbc", "lymphocyte"),
    ("bmc_marrow", "eosinophil"),
    ("bmc_marrow", "promyelocyte"),
)
#: Cells among which the colours are fitted.
FITTED = 64


def components(backbone: Backbone, shown: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, float]:
    """The first three principal components of the patches of the pictures shown, as colours; and how far two stains are apart."""
    every = np.concatenate([shown, others])
    tokens = torch.cat([backbone.tokens(every[i : i + 16])[:, backbone.n_prefix :] for i in range(0, len(every), 16)])
    flat = tokens.flatten(0, 1).double()
    centred = flat - flat.mean(0)
    _, axes = torch.linalg.eigh(centred.T @ centred)
    three = centred @ axes[:, -3:].flip(1)
    low, high = three.quantile(0.02, 0), three.quantile(0.98, 0)
    colours = ((three - low) / (high - low)).clamp(0, 1).view(len(every), *backbone.grid, 3)
    n = len(shown) // 2
    a, b = tokens[:n].double(), tokens[n : 2 * n].double()
    apart = float((a - b).square().sum(-1).mean() / 2 / centred.square().sum(1).mean())
    return colours[: 2 * n].numpy(), apart


def main() -> None:
    """Write ``images/adapt.jpg``."""
    plain = load_backbone("dinov2-s")
    blood = load_backbone("adapted", weights=sys.argv[1]) if len(sys.argv) > 1 else load_backbone(BLOOD)
    store = ImageParquet(bundled_path())
    frame = store.frame()

    def pixels(row: int) -> np.ndarray:
        return plain.preprocessing.resize(decode_image(store.read(row)[0] or b"").pixels)

    rows = [
        int(np.flatnonzero((frame["dataset"] == dataset) & (frame["label"] == label))[3]) for dataset, label in LABELS
    ]
    views = np.stack([view(pixels(row), row, number) for number in (0, 1) for row in rows])
    others = np.stack([pixels(int(row)) for row in np.linspace(0, len(frame) - 1, FITTED).round()])
    found = {
        name: components(net, views, others) for name, net in (("DINOv2-S", plain), ("adapted to blood cells", blood))
    }
    figure, axes = plt.subplots(len(rows), 6, figsize=(9.2, 6.6), layout="constrained")
    for r, (dataset, label) in enumerate(LABELS):
        pictures = [views[r], views[len(rows) + r]]
        for colours, _ in found.values():
            pictures += [colours[r], colours[len(rows) + r]]
        for axis, picture in zip(axes[r], pictures, strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
        axes[r, 0].set_ylabel(f"{label}\n{'blood' if dataset == 'acevedo_pbc' else 'marrow'}", fontsize=9)
    for column, title in enumerate(
        ["one stain", "another", *[f"{n}, {s}" for n in ("DINOv2-S", "adapted") for s in ("one", "another")]]
    ):
        axes[0, column].set_title(title, fontsize=9)
    said = "; ".join(f"{name}: {apart:.3f}" for name, (_, apart) in found.items())
    figure.suptitle(f"Patches of one place in two stains, apart by this share of the variance. {said}", fontsize=10)
    figure.savefig(DOCS / "images" / "adapt.jpg", dpi=110)


if __name__ == "__main__":
    main()
