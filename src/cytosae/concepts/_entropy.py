"""How mixed a concept's labels are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

#: Exemplars from which entropy and shares of labels are computed (as in the paper).
N_JUDGED = 10
#: What the published code adds within the logarithm.
PUBLISHED_EPSILON = 1e-9

Floats = npt.NDArray[np.float64]


def label_entropy(weights: npt.NDArray[Any], labels: Sequence[Any] | npt.NDArray[Any]) -> float:
    """Entropy (nats) of the labels of exemplars, each weighted by its activation (section 3 of arXiv 2507.12464).

    NaN where no exemplar has a label.
    """
    totals: dict[Any, float] = {}
    for weight, label in zip(weights, labels, strict=True):
        if label is not None and weight > 0:
            totals[label] = totals.get(label, 0.0) + float(weight)
    if not totals:
        return float("nan")
    p = np.array(list(totals.values())) / sum(totals.values())
    return float(max(0.0, -(p * np.log(p)).sum()))


def entropies(values: npt.NDArray[Any], labels: npt.NDArray[Any], n_labels: int, epsilon: float = 0.0) -> Floats:
    """`label_entropy` of many latents at once: float64 [n_latents], NaN where no exemplar has a label.

    Parameters
    ----------
    values, labels
        [n_latents, n]: activation and number of the label of each exemplar; a label below 0 or a value of 0 counts for none.
    n_labels
        Number of labels.
    epsilon
        Added within the logarithm; the published code has 1e-9.
    """
    weight = np.where((labels >= 0) & (values > 0), values, 0).astype(np.float64)
    totals = np.zeros((len(values), max(n_labels, 1)))
    np.add.at(totals, (np.arange(len(values))[:, None], np.maximum(labels, 0)), weight)
    whole = totals.sum(1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        p = totals / whole
        found = -np.where(p > 0, p * np.log(p + epsilon), 0.0).sum(1)
    found = found if epsilon else np.maximum(found, 0.0)
    return np.where(whole[:, 0] > 0, found, np.nan)


def class_entropy(active: npt.NDArray[Any], n_cells: npt.NDArray[Any]) -> Floats:
    """Entropy (nats) over the labels, each weighted by the share of its own cells in which the concept is active.

    The shares take the class balance out: ln(number of labels) for a concept that is as frequent in every class.

    Parameters
    ----------
    active
        [n_labels, n_latents]: cells of the label in which the latent is active.
    n_cells
        [n_labels]: cells of the label.
    """
    counted = n_cells > 0
    rate = active[counted] / n_cells[counted][:, None]
    total = rate.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        p = rate / total
        entropy = -np.where(p > 0, p * np.log(p), 0.0).sum(0)
    return np.where(total > 0, entropy, np.nan)


def top_labels(labels: npt.NDArray[Any], n_labels: int) -> tuple[npt.NDArray[np.int64], Floats]:
    """Most frequent label of each latent's exemplars (ties: the first by number; -1 for none), and its share of the labelled.

    `labels` is int [n_latents, n], -1 for an empty place or a cell without label.
    """
    counts = np.zeros((len(labels), n_labels + 1), np.int64)
    np.add.at(counts, (np.arange(len(labels))[:, None], np.where(labels >= 0, labels, n_labels)), 1)
    counts = counts[:, :n_labels]
    known = counts.sum(1)
    if not n_labels:
        return np.full(len(labels), -1), np.full(len(labels), np.nan)
    top = np.where(known > 0, counts.argmax(1), -1)
    with np.errstate(invalid="ignore"):
        return top, np.where(known > 0, counts.max(1) / known, np.nan)
