"""Statistics of every latent over cells: a value with `update`, `merge` and `finish`; sums are integers, so merging is exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cytosae._errors import CytosaeError

#: A cell's patch mean is kept as an integer multiple of this.
SCALE = 2.0**-24
#: Exemplars from which entropy and shares of labels are computed (as in the paper).
N_JUDGED = 10

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass
class ConceptStatistics:
    """Counts, sums, maxima and exemplars of `n_latents` latents.

    A cell's value for a latent is the maximum over its patches; its mean over the patches stands beside it.

    Attributes
    ----------
    labels
        Names of the labels; cells without one count for none.
    n_exemplars
        Cells kept a latent.
    """

    n_latents: int
    labels: tuple[str, ...]
    n_exemplars: int = 20
    n_cells: int = 0
    n_tokens: int = 0
    cells_active: Ints = field(init=False)
    tokens_active: Ints = field(init=False)
    mean_sum: Ints = field(init=False)
    maximum: Floats = field(init=False)
    label_cells: Ints = field(init=False)
    label_active: Ints = field(init=False)
    values: Floats = field(init=False)
    cell_ids: Ints = field(init=False)
    patches: npt.NDArray[np.int32] = field(init=False)

    def __post_init__(self) -> None:
        n, m = self.n_latents, self.n_exemplars
        self.cells_active = np.zeros(n, np.int64)
        self.tokens_active = np.zeros(n, np.int64)
        self.mean_sum = np.zeros(n, np.int64)
        self.maximum = np.zeros(n, np.float32)
        self.label_cells = np.zeros(len(self.labels), np.int64)
        self.label_active = np.zeros((len(self.labels), n), np.int64)
        self.values = np.zeros((m, n), np.float32)
        self.cell_ids = np.full((m, n), -1, np.int64)
        self.patches = np.full((m, n), -1, np.int32)

    def update(
        self,
        cell_ids: Ints,
        labels: Ints,
        maximum: Floats,
        patch: Ints,
        mean: npt.NDArray[Any],
        n_active: Ints,
        tokens_a_cell: int,
    ) -> None:
        """Add cells.

        Parameters
        ----------
        cell_ids, labels
            int64 [cells]; a label is its position in `labels`, -1 for none.
        maximum, patch, mean, n_active
            [cells, n_latents]: largest code over the patches, the (first) patch that has it, mean code over the patches,
            number of patches where the code is positive.
        tokens_a_cell
            Patches of a cell.
        """
        active = maximum > 0
        self.n_cells += len(cell_ids)
        self.n_tokens += len(cell_ids) * tokens_a_cell
        self.cells_active += active.sum(0)
        self.tokens_active += n_active.sum(0)
        self.mean_sum += np.rint(mean.astype(np.float64) / SCALE).astype(np.int64).sum(0)
        self.maximum = np.maximum(self.maximum, maximum.max(0, initial=0.0))
        for number in np.unique(labels[labels >= 0]):
            here = labels == number
            self.label_cells[number] += here.sum()
            self.label_active[number] += active[here].sum(0)
        ids = np.where(active, cell_ids[:, None], -1)
        self._keep_best(maximum.astype(np.float32), ids, np.where(active, patch, -1).astype(np.int32))

    def merge(self, other: ConceptStatistics) -> None:
        """Add what another part of the cells gave.

        Raises
        ------
        CytosaeError
            Another number of latents or exemplars, or other labels.
        """
        if (self.n_latents, self.labels, self.n_exemplars) != (other.n_latents, other.labels, other.n_exemplars):
            raise CytosaeError(
                "These statistics differ in latents, labels or number of exemplars and cannot be merged."
            )
        self.n_cells += other.n_cells
        self.n_tokens += other.n_tokens
        for name in ("cells_active", "tokens_active", "mean_sum", "label_cells", "label_active"):
            getattr(self, name).__iadd__(getattr(other, name))
        self.maximum = np.maximum(self.maximum, other.maximum)
        self._keep_best(other.values, other.cell_ids, other.patches)

    def _keep_best(self, values: Floats, ids: Ints, patches: npt.NDArray[np.int32]) -> None:
        """Merge candidates [c, n_latents] into the exemplars: larger value first, then the lower cell_id."""
        columns = np.flatnonzero((values.max(0, initial=0.0) >= self.values[-1]) & (values.max(0, initial=0.0) > 0))
        if not len(columns):
            return
        v = np.concatenate([self.values[:, columns], values[:, columns]])
        i = np.concatenate([self.cell_ids[:, columns], ids[:, columns]])
        p = np.concatenate([self.patches[:, columns], patches[:, columns]])
        order = np.lexsort((np.where(i < 0, np.iinfo(np.int64).max, i), -v), axis=0)[: self.n_exemplars]
        self.values[:, columns] = np.take_along_axis(v, order, 0)
        self.cell_ids[:, columns] = np.take_along_axis(i, order, 0)
        self.patches[:, columns] = np.take_along_axis(p, order, 0)

    def finish(self, label_of: dict[int, str | None]) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
        """Tables `concepts`, `exemplars`, `labels` as they stand in an index; `label_of` gives the label of a cell."""
        n = self.n_latents
        filled = self.cell_ids >= 0
        names = np.empty(self.cell_ids.shape, dtype=object)
        names[filled] = [label_of.get(int(c)) for c in self.cell_ids[filled]]
        entropy, top, share = _judge(self.values[:N_JUDGED], names[:N_JUDGED], filled[:N_JUDGED])
        some = self.cells_active > 0
        mean = np.full(n, np.nan)
        mean[some] = self.mean_sum[some] * SCALE / self.cells_active[some]
        concepts = pd.DataFrame({
            "latent": np.arange(n, dtype=np.int64),
            "n_cells_active": self.cells_active,
            "n_tokens_active": self.tokens_active,
            "frequency": self.cells_active / max(self.n_cells, 1),
            "mean_activation": mean,
            "max_activation": np.where(some, self.maximum.astype(np.float64), np.nan),
            "label_entropy": entropy,
            "class_entropy": self._class_entropy(),
            "top_label": pd.array(top, dtype="string"),
            "top_label_share": share,
            "dead": self.tokens_active < 1e-5 * self.n_tokens,
        })  # fmt: skip
        rank, latent = np.nonzero(filled)
        order = np.lexsort((rank, latent))
        rank, latent = rank[order], latent[order]
        exemplars = pd.DataFrame({
            "latent": latent.astype(np.int64),
            "rank": rank.astype(np.int32),
            "cell_id": self.cell_ids[rank, latent],
            "value": self.values[rank, latent],
            "patch": self.patches[rank, latent],
        })  # fmt: skip
        number, latent = np.nonzero(self.label_active)
        labels = pd.DataFrame({
            "latent": latent.astype(np.int64),
            "label": pd.array([self.labels[i] for i in number], dtype="string"),
            "n_cells_active": self.label_active[number, latent],
            "n_cells": self.label_cells[number],
        }).sort_values(["latent", "label"], ignore_index=True)  # fmt: skip
        return concepts, exemplars, labels

    def _class_entropy(self) -> npt.NDArray[np.float64]:
        """Entropy (nats) over the labels, each weighted by the share of its own cells in which the concept is active.

        The shares take the class balance out: ln(number of labels) for a concept that is as frequent in every class.
        """
        counted = self.label_cells > 0
        rate = self.label_active[counted] / self.label_cells[counted][:, None]
        total = rate.sum(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            p = rate / total
            entropy = -np.where(p > 0, p * np.log(p), 0.0).sum(0)
        return np.where(total > 0, entropy, np.nan)


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


def _judge(
    values: Floats, names: npt.NDArray[Any], filled: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.float64], list[str | None], npt.NDArray[np.float64]]:
    """Entropy, most frequent label (ties: the first by name) and its share, from each latent's exemplars."""
    n = values.shape[1]
    entropy, share = np.full(n, np.nan), np.full(n, np.nan)
    top: list[str | None] = [None] * n
    for latent in np.flatnonzero(filled[0]):
        rows = filled[:, latent]
        labels = [name for name in names[rows, latent] if name is not None]
        entropy[latent] = label_entropy(values[rows, latent], names[rows, latent])
        if labels:
            top[latent] = min(set(labels), key=lambda name: (-labels.count(name), name))
            share[latent] = labels.count(top[latent]) / len(labels)
    return entropy, top, share
