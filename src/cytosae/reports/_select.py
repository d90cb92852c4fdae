"""Which concepts the report shows: chosen on the cells the dictionary was trained on, judged on the others."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from cytosae.concepts import CellsByConcepts, ConceptIndex

#: A concept is shown only if it is active in so many cells of the part it is judged on.
MIN_ACTIVE = 10
#: Two concepts whose values over the cells correlate more than this say the same; the better is shown.
_SAME = 0.9
#: A concept is shown for a label only if so much of it lies on the cell; so many are tried.
_ON_CELL, _TRIED = 0.6, 40


def label_auroc(values: Any, labels: npt.NDArray[Any], label: str) -> npt.NDArray[np.float64]:
    """AUROC of every concept for one label against the rest: [n_latents], 0.5 where it tells nothing."""
    dense = values.toarray() if hasattr(values, "toarray") else np.asarray(values)
    positive = labels == label
    n_pos, n_neg = int(positive.sum()), int((~positive).sum())
    if not n_pos or not n_neg:
        return np.full(dense.shape[1], np.nan)
    ranks = stats.rankdata(dense, axis=0)
    u = ranks[positive].sum(0) - n_pos * (n_pos + 1) / 2
    return np.asarray(u / (n_pos * n_neg))


def choose_concepts(
    chosen_on: CellsByConcepts,
    judged_on: CellsByConcepts,
    index: ConceptIndex,
    on_cell: Callable[[int], float],
    *,
    per_label: int = 2,
    n_common: int = 3,
) -> pd.DataFrame:
    """The concepts worth looking at.

    For each label the `per_label` concepts with the highest AUROC on the cells `chosen_on` that lie mostly on the cell (no
    two that say the same); then the `n_common` strongest on the cell that tell no label from another; then the strongest
    that lies on the background, as a warning.

    Parameters
    ----------
    on_cell
        Gives the share of a concept that lies on the cell, on the cells `chosen_on`.

    Returns
    -------
    ``latent, label`` (None beyond the labels), ``auroc_chosen``, ``auroc`` (on `judged_on`)
    """
    train, test = chosen_on.maximum.toarray(), judged_on.maximum.toarray()
    labels, test_labels = chosen_on.obs["label"].to_numpy(str), judged_on.obs["label"].to_numpy(str)
    usable = index.concepts["n_cells_active"].to_numpy() >= MIN_ACTIVE
    taken: list[int] = []
    rows: list[dict[str, Any]] = []
    best = np.zeros(train.shape[1])

    def same(latent: int) -> bool:
        return any(_correlation(train[:, latent], train[:, other]) > _SAME for other in taken)

    for label in sorted(set(labels)):
        score = label_auroc(train, labels, label)
        best = np.maximum(best, np.abs(score - 0.5))
        held = label_auroc(test, test_labels, label)
        candidates = (int(i) for i in np.argsort(-np.where(usable, score, -1), kind="stable")[:_TRIED] if usable[i])
        fit = (i for i in candidates if i not in taken and not same(i) and on_cell(i) >= _ON_CELL)
        for latent in itertools.islice(fit, per_label):
            taken.append(latent)
            rows.append({"latent": latent, "label": label, "auroc_chosen": score[latent], "auroc": held[latent]})
    total = np.asarray(chosen_on.mean.sum(0)).ravel()
    plain = usable & (best < np.quantile(best[usable], 0.25))
    common = [int(i) for i in np.argsort(-np.where(plain, total, -1), kind="stable")[:_TRIED] if plain[i]]
    on = [i for i in common if i not in taken and on_cell(i) >= _ON_CELL][:n_common]
    off = [i for i in common if i not in taken and on_cell(i) < _ON_CELL][:1]
    rows += [{"latent": i, "label": None, "auroc_chosen": np.nan, "auroc": np.nan} for i in [*on, *off]]
    return pd.DataFrame(rows, columns=["latent", "label", "auroc_chosen", "auroc"])


def _correlation(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    if a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])
