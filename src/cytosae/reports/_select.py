"""Which concepts the report shows: chosen on the cells the dictionary was trained on, judged on the others."""

from __future__ import annotations

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
    *,
    per_label: int = 2,
    n_common: int = 4,
) -> pd.DataFrame:
    """The concepts worth looking at.

    For each label the `per_label` concepts with the highest AUROC on the cells `chosen_on` (no two that say the same),
    then the `n_common` strongest concepts that tell no label from another.

    Returns
    -------
    ``latent, label`` (None for the common ones), ``auroc_chosen``, ``auroc`` (on `judged_on`)
    """
    train, test = chosen_on.maximum.toarray(), judged_on.maximum.toarray()
    labels, test_labels = chosen_on.obs["label"].to_numpy(str), judged_on.obs["label"].to_numpy(str)
    usable = index.concepts["n_cells_active"].to_numpy() >= MIN_ACTIVE
    taken: list[int] = []
    rows: list[dict[str, Any]] = []
    best = np.zeros(train.shape[1])
    for label in sorted(set(labels)):
        score = label_auroc(train, labels, label)
        best = np.maximum(best, np.abs(score - 0.5))
        held = label_auroc(test, test_labels, label)
        n = 0
        for latent in np.argsort(-np.where(usable, score, -1), kind="stable"):
            if n == per_label or not usable[latent]:
                break
            if latent in taken or any(_correlation(train[:, latent], train[:, t]) > _SAME for t in taken):
                continue
            taken.append(int(latent))
            rows.append({"latent": int(latent), "label": label, "auroc_chosen": score[latent], "auroc": held[latent]})
            n += 1
    total = (
        chosen_on.mean.sum(0).A1 if hasattr(chosen_on.mean.sum(0), "A1") else np.asarray(chosen_on.mean.sum(0)).ravel()
    )
    common = np.argsort(-np.where(usable & (best < np.quantile(best[usable], 0.25)), total, -1), kind="stable")
    for latent in common[:n_common]:
        if int(latent) not in taken:
            rows.append({"latent": int(latent), "label": None, "auroc_chosen": np.nan, "auroc": np.nan})
    return pd.DataFrame(rows, columns=["latent", "label", "auroc_chosen", "auroc"])


def _correlation(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    if a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])
