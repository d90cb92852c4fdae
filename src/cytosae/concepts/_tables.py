"""From statistics to the tables of an index."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from cytosae.concepts import _exact
from cytosae.concepts._entropy import N_JUDGED, PUBLISHED_EPSILON, class_entropy, entropies, top_labels
from cytosae.concepts._groups import GroupCounts
from cytosae.concepts._shown import lookup, shown_exemplars
from cytosae.concepts._statistics import ConceptStatistics

#: The two ways of saying what a concept is, never mixed in one artifact.
SEMANTICS = ("default", "cytosae-2025")
#: A latent that fires on fewer than this share of the tokens is dead.
DEAD_BELOW = 1e-5


def tables(statistics: ConceptStatistics, frame: pd.DataFrame, semantics: str = "default") -> dict[str, pd.DataFrame]:
    """Tables ``concepts``, ``exemplars``, ``labels`` and ``groups`` of an index.

    Parameters
    ----------
    statistics
        Over the cells.
    frame
        The cells (at least ``cell_id``, ascending, and ``label``): gives the labels of the exemplars and says which of them
        are shown.
    semantics
        One of `SEMANTICS`. In ``default`` the entropy is that of the first ten exemplars shown, in ``cytosae-2025`` that of
        the first ten of the raw ranking, with the published code's epsilon.
    """
    s = statistics
    published = semantics == "cytosae-2025"
    names = sorted(frame["label"].dropna().astype(str).unique())
    number = pd.Series(np.arange(len(names)), index=names, dtype=np.int64)
    of_cell = number.reindex(frame["label"].astype(object)).fillna(-1).to_numpy(np.int64)
    ids = s.exemplars.cell_id
    labels = np.where(ids >= 0, lookup(ids, frame["cell_id"].to_numpy(np.int64), of_cell), -1)
    shown = ids >= 0 if published else shown_exemplars(ids, frame)
    judged = shown & (np.cumsum(shown, axis=1) <= N_JUDGED)
    values = np.where(judged, s.exemplars.value, 0)
    top, share = top_labels(np.where(judged, labels, -1), len(names))
    some = s.cells_active > 0
    cell_tokens = s.n_tokens / max(s.n_cells, 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(some, _exact.to_float(s.total) / cell_tokens / s.cells_active, np.nan)
    by_label = s.by.get("label")
    concepts = pd.DataFrame({
        "latent": np.arange(s.n_latents, dtype=np.int64),
        "n_cells_active": s.cells_active,
        "n_tokens_active": s.tokens_active,
        "frequency": s.cells_active / max(s.n_cells, 1),
        "mean_activation": mean,
        "max_activation": np.where(some, s.maximum.astype(np.float64), np.nan),
        "label_entropy": entropies(values, labels, len(names), PUBLISHED_EPSILON if published else 0.0),
        "class_entropy": class_entropy(by_label.dense(0), by_label.n_cells) if by_label else np.nan,
        "top_label": pd.array([names[i] if i >= 0 else None for i in top], dtype="string"),
        "top_label_share": share,
        "dead": ~some if published else s.tokens_active < DEAD_BELOW * s.n_tokens,
    })  # fmt: skip
    for row, threshold in enumerate(s.thresholds):
        concepts[f"n_cells_above_{threshold:g}"] = s.cells_above[row]
        concepts[f"n_tokens_above_{threshold:g}"] = s.tokens_above[row]
    flat = s.exemplars.flat()
    exemplars = pd.DataFrame(flat)
    exemplars["shown"] = shown[flat["latent"], flat["rank"]]
    if published:
        exemplars["patch"] = pd.array([None] * len(exemplars), dtype="Int32")
    return {
        "concepts": concepts,
        "exemplars": exemplars,
        "labels": _labels(by_label),
        "groups": _groups(s, cell_tokens),
    }


def _labels(counts: GroupCounts | None) -> pd.DataFrame:
    """``latent, label, n_cells_active, n_cells``: the label and the latents that are active in any of its cells."""
    if counts is None:
        counts = GroupCounts((), 1)
    counts.settle()
    group, latent = np.divmod(counts.keys, counts.n_latents)
    return pd.DataFrame({
        "latent": latent,
        "label": pd.array([counts.names[i] for i in group], dtype="string"),
        "n_cells_active": counts.rows[0],
        "n_cells": counts.n_cells[group],
    }).sort_values(["latent", "label"], ignore_index=True)  # fmt: skip


def _groups(statistics: ConceptStatistics, cell_tokens: float) -> pd.DataFrame:
    """Every grouping: ``grouping, group, latent``, counts, and the mean activation over the group's active cells."""
    parts = []
    for grouping, counts in sorted(statistics.by.items()):
        counts.settle()
        group, latent = np.divmod(counts.keys, counts.n_latents)
        n = counts.n_counts
        part = {
            "grouping": pd.Categorical([grouping] * len(latent), categories=sorted(statistics.by)),
            "group": pd.Categorical.from_codes(group, categories=list(counts.names)).astype("string"),
            "latent": latent,
            "n_cells": counts.n_cells[group],
            "n_cells_active": counts.rows[0],
            "n_tokens_active": counts.rows[1],
            "mean_activation": _exact.to_float(counts.rows[n:]) / cell_tokens / np.maximum(counts.rows[0], 1),
        }
        for row, threshold in enumerate(statistics.thresholds):
            part[f"n_cells_above_{threshold:g}"] = counts.rows[2 + 2 * row]
            part[f"n_tokens_above_{threshold:g}"] = counts.rows[3 + 2 * row]
        parts.append(pd.DataFrame(part))
    whole = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame({"grouping": [], "group": [], "latent": []})
    return whole.assign(grouping=whole["grouping"].astype("string"))


def patient_barcodes(statistics: ConceptStatistics, threshold: float) -> npt.NDArray[np.float64]:
    """What the published code makes of patients: tokens with a code above `threshold`, divided by the number of latents.

    The divisor is a defect of that code (it should be the patient's cells) and is kept only in ``cytosae-2025``.

    Returns
    -------
    float64 [n_patients, n_latents], patients in the order of ``statistics.groups["patient"]``
    """
    row = 3 + 2 * statistics.thresholds.index(threshold)
    return statistics.by["patient"].dense(row) / statistics.n_latents
