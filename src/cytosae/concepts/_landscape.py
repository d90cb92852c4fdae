"""The landscape of a dictionary: its numbers, and its picture (figure 2 of arXiv 2507.12464)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cytosae.concepts._index import ConceptIndex

#: Mean activation from which the paper counts a concept as alive.
PUBLISHED_ALIVE = 1e-3


def alive(index: ConceptIndex, above: float) -> npt.NDArray[np.bool_]:
    """Concepts whose mean activation (over the cells where they are active) exceeds `above`: bool [n_latents]."""
    return np.asarray(index.concepts["mean_activation"].fillna(0).to_numpy(np.float64) > above)


def landscape_numbers(index: ConceptIndex, above: float = PUBLISHED_ALIVE) -> dict[str, Any]:
    """What the picture shows, in numbers.

    Returns
    -------
    ``n_latents``, ``n_cells``, ``n_dead``; ``active_a_cell`` (latents active in a cell, on average); ``n_in_most_cells``
    (active in more than half of the cells); ``n_above`` and ``idle_share`` (mean activation above `above`, and the share of the
    dictionary that is not); ``n_pure`` (label entropy below 0.1 nats, all ten exemplars of a label or nearly).
    """
    c, up = index.concepts, alive(index, above)
    return {
        "n_latents": len(c),
        "n_cells": index.n_cells,
        "n_dead": int(c["dead"].sum()),
        "active_a_cell": float(c["frequency"].sum()),
        "n_in_most_cells": int((c["frequency"] > 0.5).sum()),
        "n_above": int(up.sum()),
        "idle_share": float(1 - up.mean()),
        "n_pure": int((c["label_entropy"] < 0.1).sum()),
    }


def active_jaccard(a: ConceptIndex, b: ConceptIndex, above: float = PUBLISHED_ALIVE) -> float:
    """Jaccard index of the concepts above `above` in two indices of one dictionary; NaN where there are none."""
    x, y = alive(a, above), alive(b, above)
    return float((x & y).sum() / (x | y).sum()) if (x | y).any() else float("nan")


def draw_landscape(indices: Sequence[ConceptIndex], names: Sequence[str], above: float = PUBLISHED_ALIVE) -> Any:
    """A figure with one panel an index: frequency against mean activation, both logarithmic, colour = label entropy."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(indices) + 0.8, 4.4), layout="constrained")
    axes = figure.subplots(1, len(indices), sharex=True, sharey=True, squeeze=False)[0]
    top = max(float(np.log(max(len(i.manifest["labels"]), 2))) for i in indices)
    dots: Any = None
    for axis, index, name in zip(axes, indices, names, strict=True):
        shown = index.concepts[index.concepts["mean_activation"].gt(0)]
        shown = shown.sort_values("label_entropy", ascending=False, na_position="first")  # the pure ones lie on top
        dots = axis.scatter(
            shown["mean_activation"], shown["frequency"], c=shown["label_entropy"], s=2.5, linewidths=0, cmap="viridis",
            vmin=0, vmax=top, rasterized=True,
        )  # fmt: skip
        axis.set(xscale="log", yscale="log", title=f"{name}: {index.n_cells:,} cells", xlabel="mean activation")
        axis.axvline(above, color="0.4", linewidth=0.8, linestyle="--")
    axes[0].set_ylabel("share of cells")
    figure.colorbar(dots, ax=list(axes), label="label entropy of the exemplars (nats)", pad=0.01)
    return figure
