"""Figures of the paper (arXiv 2507.12464) from indices and profiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from textwrap import fill
from typing import Any

import numpy as np

from cytosae import ConceptIndex, SparseAutoencoder, TokenStore, concept_map
from cytosae.cells import Cells, ImageReader, decode_image
from cytosae.concepts import spread_map
from cytosae.concepts._landscape import PUBLISHED_ALIVE

#: Concepts and cells of each set in the picture of exemplars; concepts in the barcodes.
N_CONCEPTS, N_CELLS, N_BARCODE = 6, 3, 60


def kept_concepts(indices: Sequence[ConceptIndex], names: Sequence[str]) -> Any:
    """How many concepts are kept against the threshold on the mean activation."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.2, 4.2), layout="constrained")
    axis = figure.subplots()
    at = np.logspace(-5, 1, 121)
    for index, name in zip(indices, names, strict=True):
        mean = index.concepts["mean_activation"].fillna(0).to_numpy(np.float64)
        axis.plot(at, (mean[None] > at[:, None]).sum(1), label=f"{name} ({index.n_cells:,} cells)")
    axis.axvline(PUBLISHED_ALIVE, color="0.4", linewidth=0.8, linestyle="--")
    axis.set(xscale="log", xlabel="threshold on the mean activation", ylabel="concepts kept")
    axis.legend(frameon=False)
    return figure


def chosen_concepts(indices: Mapping[str, ConceptIndex], n: int) -> list[int]:
    """Concepts whose exemplars are of few labels in every set: lowest sum of ranks of label entropy, at most two a top label.

    They have to be active in at least ten cells and 1% of every set where that is possible.
    """
    tables = [i.concepts for i in indices.values()]
    entropy = sum(t["label_entropy"].fillna(np.inf).rank(method="average").to_numpy() for t in tables)
    often = np.min([(t["n_cells_active"] >= 10) & (t["frequency"] >= 0.01) for t in tables], axis=0).astype(bool)
    strength = tables[0]["max_activation"].fillna(0).to_numpy()
    order = np.lexsort((-strength, np.asarray(entropy), ~often))
    labels, kept = tables[0]["top_label"].astype("string").fillna("").tolist(), list[int]()
    for latent in order:
        if sum(labels[k] == labels[latent] for k in kept) < 2:
            kept.append(int(latent))
        if len(kept) == n:
            break
    return kept


def exemplars(
    sae: SparseAutoencoder,
    indices: Mapping[str, ConceptIndex],
    cells: Mapping[str, Cells],
    stores: Mapping[str, TokenStore],
    titles: Mapping[str, str],
) -> Any:
    """A row a concept; of each set its first exemplars, each with the concept's place in yellow."""
    from matplotlib.figure import Figure

    latents = chosen_concepts(indices, N_CONCEPTS)
    wide = N_CELLS * len(indices)
    figure = Figure(figsize=(1.25 * wide + 0.7, 1.35 * len(latents) + 0.5), layout="constrained")
    grid = figure.subplots(len(latents), wide, squeeze=False)
    for axis in grid.flat:
        axis.set_axis_off()
    for s, (name, index) in enumerate(indices.items()):
        rows, reader = cells[name].frame.set_index("cell_id"), ImageReader(cells[name].root)
        grid[0, s * N_CELLS].set_title(titles[name], loc="left", fontsize=10)
        for i, latent in enumerate(latents):
            if s == 0:
                grid[i, 0].text(
                    -0.08,
                    0.5,
                    f"{latent}",
                    transform=grid[i, 0].transAxes,
                    rotation=90,
                    va="center",
                    ha="right",
                    fontsize=8,
                )
            for j, row in enumerate(index.exemplars_of(latent).head(N_CELLS).itertuples()):
                pixels = decode_image(
                    reader.read(rows.loc[row.cell_id, "image"], rows.loc[row.cell_id, "sha256"])
                ).pixels
                tokens = stores[name].read(stores[name].rows_of([row.cell_id]), kind="patch")[0].float()
                place = spread_map(
                    np.asarray(concept_map(sae, tokens, latent, stores[name].grid)),
                    pixels.shape[1],
                    pixels.shape[0],
                    "smooth",
                )
                axis = grid[i, s * N_CELLS + j]
                axis.imshow(pixels)
                if place.max() > 0:
                    axis.contour(place, levels=[0.5 * place.max()], colors="yellow", linewidths=1.2)
                axis.text(
                    0.5,
                    -0.04,
                    str(rows.loc[row.cell_id, "label"])[:22],
                    transform=axis.transAxes,
                    ha="center",
                    va="top",
                    fontsize=6,
                )
    head = "Exemplars of concepts chosen by label entropy over all sets. Yellow: half of the largest code. Research use only."
    figure.suptitle(fill(head, int(17 * figure.get_figwidth())), fontsize=8)
    return figure


def barcodes(profiles: Any) -> Any:
    """Patients and, below, the means of the diagnoses, over the concepts that vary most between these means."""
    from matplotlib.figure import Figure

    X, names = _known(profiles)
    classes = sorted(set(names))
    means = np.array([X[names == c].mean(0) for c in classes])
    kept = np.sort(np.argsort(-means.std(0), kind="stable")[:N_BARCODE])
    order = np.argsort(names, kind="stable")
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    top, below = figure.subplots(2, 1, gridspec_kw={"height_ratios": [3, 1]})
    for axis, values, ticks in ((top, X[order][:, kept], None), (below, means[:, kept], classes)):
        shown = axis.imshow(
            values,
            aspect="auto",
            cmap="Blues",
            vmin=0,
            vmax=max(float(X[:, kept].max()), 1e-9),
            interpolation="nearest",
        )
        axis.set_xticks([])
        if ticks is not None:
            axis.set_yticks(range(len(ticks)), ticks, fontsize=7)
    starts = np.flatnonzero(np.append(True, names[order][1:] != names[order][:-1]))
    top.set_yticks(starts, [f"{names[order][s]}" for s in starts], fontsize=7)
    top.set_title("Patients", loc="left", fontsize=10)
    below.set_title("Means of the diagnoses", loc="left", fontsize=10)
    below.set_xlabel(f"{len(kept)} concepts that vary most between diagnoses (not a test)")
    figure.colorbar(shown, ax=[top, below], label="share of cells with the concept", pad=0.01)
    return figure


def disease_scatter(profiles: Any) -> Any:
    """Mean profile of every diagnosis against every other, a dot a concept."""
    from matplotlib.figure import Figure

    X, names = _known(profiles)
    classes = sorted(set(names))
    pairs = list(combinations(classes, 2))
    columns = min(len(pairs), 5)
    rows = -(-len(pairs) // columns)
    figure = Figure(figsize=(2.7 * columns + 0.4, 2.8 * rows + 0.3), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axis in axes.flat[len(pairs) :]:
        axis.set_axis_off()
    top = 1.05 * max(float(X[names == c].mean(0).max()) for c in classes)
    for axis, (a, b) in zip(axes.flat, pairs, strict=False):
        x, y = X[names == a].mean(0), X[names == b].mean(0)
        axis.scatter(x, y, s=3, linewidths=0, color="#0072b2", alpha=0.6, rasterized=True)
        axis.plot([0, top], [0, top], color="0.6", linewidth=0.7)
        axis.set_xlabel(a, fontsize=7)
        axis.set_ylabel(b, fontsize=7)
    figure.suptitle("Share of cells with each concept, mean over the patients of a diagnosis", fontsize=9)
    return figure


def _known(profiles: Any) -> tuple[Any, Any]:
    """Profiles and diagnoses of the patients that have both."""
    names = profiles.obs["diagnosis"].astype(object).to_numpy()
    known = np.array([isinstance(v, str) and v != "" for v in names]) & (profiles.obs["n_cells"].to_numpy() > 0)
    return np.asarray(profiles.X, np.float64)[known], names[known].astype(str)
