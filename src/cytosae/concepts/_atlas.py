"""The dictionary as a map: neighbours, clusters, and captions that the labels and attributes of the cells suggest."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from cytosae._errors import CytosaeError, UsageError
from cytosae.cells import Cells
from cytosae.concepts._index import ConceptIndex, indexed_cells
from cytosae.sae import SparseAutoencoder
from cytosae.storage import commit_folder, write_table

KIND, VERSION = "atlas", 1
#: Labels with a colour of their own, and the lift from which a suggestion is drawn.
_COLOURS, _DRAWN_FROM = 9, 1.5
#: A concept stands on the map if it is active in so many cells.
MIN_CELLS = 10
#: Columns of the cells that suggest captions, where they are there: the label and the attributes of WBCAtt.
ATTRIBUTES = ("label", "cell_size", "cell_shape", "nucleus_shape", "nuclear_cytoplasmic_ratio", "chromatin_density",
              "cytoplasm_vacuole", "cytoplasm_texture", "cytoplasm_colour", "granule_type", "granule_colour", "granularity")  # fmt: skip

Ints = npt.NDArray[np.int64]


def make_atlas(
    index: ConceptIndex, sae: SparseAutoencoder, cells: Cells, out: Path | str, *, n_clusters: int = 24, n_neighbours: int = 10,
    seed: int = 0,
) -> pd.DataFrame:  # fmt: skip
    """Lay the dictionary's decoder rows out and write the atlas.

    Parameters
    ----------
    index, sae, cells
        An index, its dictionary, and its cells.
    out
        Folder: ``atlas.parquet`` (``latent, x, y, cluster``), ``neighbours.parquet`` (``latent, rank, neighbour, cosine``),
        ``captions.parquet`` (see `captions`), ``atlas.png``.
    n_clusters
        Clusters asked for (KMeans on the decoder rows, of length one).
    n_neighbours
        Nearest concepts kept, by cosine.
    seed
        Of the layout and the clusters.

    Raises
    ------
    CytosaeError
        The parts do not belong together, fewer than three concepts are active in enough cells, or umap-learn is not installed.
    """
    if index.manifest["inputs"].get("sae") != sae.hash:
        raise CytosaeError(f"{index.folder} is not an index of this dictionary; give the one it was made with.")
    if index.manifest["inputs"].get("cells") != cells.hash:
        raise CytosaeError(f"{index.folder} was not made over the table given; give the table it was made from.")
    alive = np.flatnonzero(index.concepts["n_cells_active"].to_numpy() >= MIN_CELLS)
    if len(alive) < 3:
        raise CytosaeError(f"Fewer than three concepts are active in {MIN_CELLS} cells; index more cells.")
    if n_clusters < 2 or n_neighbours < 1:
        raise UsageError("An atlas wants at least two clusters and one neighbour.")
    rows = sae.W_dec[alive].cpu().numpy().astype(np.float64)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    near, cosine = neighbours(rows, min(n_neighbours, len(alive) - 1))
    place, cluster = layout(rows, seed), clusters(rows, min(n_clusters, len(alive)), seed)
    table = pd.DataFrame({"latent": alive, "x": place[:, 0], "y": place[:, 1], "cluster": cluster})
    near_table = pd.DataFrame({
        "latent": np.repeat(alive, near.shape[1]), "rank": np.tile(np.arange(near.shape[1]), len(alive)),
        "neighbour": alive[near].ravel(), "cosine": cosine.ravel(),
    })  # fmt: skip
    said = captions(index, cells, alive, cluster)
    inputs = {"index": index.hash, "sae": sae.hash, "cells": cells.hash}
    config = {"n_clusters": n_clusters, "n_neighbours": n_neighbours, "seed": seed}
    with commit_folder(Path(out), kind=KIND, version=VERSION, inputs=inputs, config=config) as (folder, extra):
        for name, content in (("atlas", table), ("neighbours", near_table), ("captions", said)):
            arrow = pa.Table.from_pandas(content, preserve_index=False).replace_schema_metadata(None)
            write_table(
                folder / f"{name}.parquet", arrow, kind=f"atlas {name}", version=VERSION, inputs=inputs, atomic=False
            )
        draw_atlas(table, said, index.concepts).savefig(folder / "atlas.png", dpi=100)
        extra |= {"n_concepts": len(table), "captions": "suggestions from enrichment, not names"}
    return table


def neighbours(rows: npt.NDArray[Any], n: int) -> tuple[Ints, npt.NDArray[np.float64]]:
    """The `n` nearest of the other rows (unit length) by cosine: numbers and cosines, nearest first; ties by number."""
    near, cosine = np.empty((len(rows), n), np.int64), np.empty((len(rows), n))
    for start in range(0, len(rows), 1024):
        found = rows[start : start + 1024] @ rows.T
        found[np.arange(len(found)), start + np.arange(len(found))] = -np.inf
        order = np.argsort(-found, axis=1, kind="stable")[:, :n]
        near[start : start + 1024], cosine[start : start + 1024] = order, np.take_along_axis(found, order, 1)
    return near, cosine


def layout(rows: npt.NDArray[Any], seed: int) -> npt.NDArray[np.float64]:
    """A UMAP by cosine: float64 [n, 2]. Distances far apart on it mean little.

    Raises
    ------
    CytosaeError
        umap-learn is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from umap import UMAP
    except ImportError as error:
        raise CytosaeError("The atlas wants umap-learn; run: python -m pip install 'cytosae[atlas]'.") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        n = min(15, len(rows) - 1)
        start = "spectral" if len(rows) > 10 else "random"
        made = UMAP(n_neighbors=max(n, 2), min_dist=0.1, metric="cosine", random_state=seed, n_jobs=1, init=start)
        return np.asarray(made.fit_transform(rows), dtype=np.float64)


def clusters(rows: npt.NDArray[Any], n: int, seed: int) -> Ints:
    """KMeans, numbered by size, the largest first: int64 [n_rows]."""
    from sklearn.cluster import KMeans

    found = KMeans(n, n_init=3, random_state=seed).fit_predict(rows)
    sizes = np.bincount(found, minlength=n)
    order = np.argsort(-sizes, kind="stable")
    number = np.empty(n, np.int64)
    number[order] = np.arange(n)
    return np.asarray(number[found])


def captions(
    index: ConceptIndex, cells: Cells, latents: Ints, cluster: Ints, columns: Sequence[str] = ATTRIBUTES
) -> pd.DataFrame:
    """What is more frequent among the exemplars of a cluster than among the cells indexed: suggestions, no names.

    For each cluster and each value of each column: of the cells that are an exemplar (one of those shown) of any of the
    cluster's concepts and have a value there, how many have this one, against all indexed cells that have any; a one-sided
    hypergeometric test, and Benjamini-Hochberg over all that were tried.

    Returns
    -------
    ``cluster, column, value, n_with, n, share, share_of_all, lift, p, q``, best first within a cluster; q < 0.05 only
    """
    from scipy import stats  # takes a second to import

    frame = indexed_cells(index, cells).set_index("cell_id")
    shown = index.exemplars[index.exemplars["shown"].astype(bool)]
    of_latent = pd.Series(cluster, index=latents)
    shown = shown[shown["latent"].isin(latents)]
    pairs = pd.DataFrame({"cluster": shown["latent"].map(of_latent), "cell_id": shown["cell_id"]}).drop_duplicates()
    names = ["cluster", "column", "value", "n_with", "n", "share", "share_of_all", "lift", "p"]
    parts: list[pd.DataFrame] = []
    n_tried = 0
    for column in (c for c in columns if c in frame and frame[c].notna().any()):
        known = frame[column].dropna().astype(str)
        totals = known.value_counts()
        mine = pairs.assign(value=pairs["cell_id"].map(known)).dropna(subset="value")
        part = mine.groupby(["cluster", "value"]).size().rename("n_with").reset_index()
        part["column"], part["n"] = column, part["cluster"].map(mine.groupby("cluster").size())
        part["share"], part["share_of_all"] = part["n_with"] / part["n"], part["value"].map(totals) / len(known)
        part["lift"] = part["share"] / part["share_of_all"]
        part["p"] = stats.hypergeom.sf(part["n_with"] - 1, len(known), part["value"].map(totals), part["n"])
        parts.append(part[names])
        n_tried += mine["cluster"].nunique() * len(totals)
    table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=names)
    # a value that none of a cluster's exemplars has was tried too, at p = 1
    p = np.concatenate([table["p"].to_numpy(np.float64), np.ones(n_tried - len(table))])
    table["q"] = stats.false_discovery_control(p)[: len(table)] if len(table) else pd.Series(dtype=float)
    table = table[(table["q"] < 0.05) & (table["lift"] > 1)]
    return table.sort_values(["cluster", "p", "lift"], ascending=[True, True, False], ignore_index=True)


def draw_atlas(table: pd.DataFrame, said: pd.DataFrame, concepts: pd.DataFrame) -> Any:
    """A figure of the map: a dot a concept, coloured by the label of most of its exemplars, and the strongest suggestions.

    Parameters
    ----------
    table, said
        The atlas, and its `captions`.
    concepts
        The index's, for ``top_label`` and ``top_label_share``. Without labels the colours are the clusters'.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7.5), layout="constrained")
    axis = figure.subplots()
    known = concepts.set_index("latent").loc[table["latent"]].reset_index(drop=True)
    label = known["top_label"].where(known["top_label_share"] > 0.5)
    common = list(label.value_counts().index[:_COLOURS])
    x, y = table["x"].to_numpy(), table["y"].to_numpy()
    if common:
        other = ~label.isin(common).to_numpy(bool)
        axis.scatter(x[other], y[other], color="0.82", s=5, linewidths=0, label="no one label")
        for number, name in enumerate(common):
            mine = (label == name).fillna(False).to_numpy(bool)
            axis.scatter(x[mine], y[mine], color=colormaps["tab10"](number), s=9, linewidths=0, label=str(name))
        axis.legend(
            title="most exemplars are of", loc="upper left", bbox_to_anchor=(1, 1), frameon=False, markerscale=2
        )
    else:
        axis.scatter(x, y, c=table["cluster"] % 20, cmap=colormaps["tab20"], s=5, linewidths=0, alpha=0.8)
    middle = table.groupby("cluster")[["x", "y"]].median()
    best = (
        said[said["lift"] >= _DRAWN_FROM].groupby("cluster").head(1).sort_values("lift", ascending=False, kind="stable")
    )
    axis.set_axis_off()
    figure.draw_without_rendering()  # from here on the axes stay where they are, so extents of texts can be compared
    placed: list[Any] = []
    for row in best.itertuples():
        at = tuple(float(v) for v in middle.loc[row.cluster])
        what = row.value if row.column == "label" else f"{str(row.column).replace('_', ' ')}: {row.value}"
        text = axis.text(at[0], at[1], f"{what}? ({row.lift:.1f}x)", fontsize=8, ha="center", va="center",
                         in_layout=False, bbox={"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 1})  # fmt: skip
        extent = text.get_window_extent()
        if extent.x0 >= 0 and extent.x1 <= figure.bbox.x1 and not any(extent.overlaps(other) for other in placed):
            placed.append(extent)
        else:
            text.remove()  # it would lie on a stronger one, or leave the picture; the table has it
    axis.set_title(f"{len(placed)} suggestions: what the exemplars of a cluster have at least {_DRAWN_FROM} times as often as all "
                   "cells", fontsize=9)  # fmt: skip
    return figure
