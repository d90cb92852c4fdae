"""What concepts are asked for: a value of an attribute or a cell type, among which cells, and whether there are enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

Bools = npt.NDArray[np.bool_]

#: Positives and negatives wanted on both sides; with fewer a score is not measurable.
MIN_CELLS = 20
#: WBCAtt's attributes (arXiv 2306.13531) and Cohen's kappa between its annotators on 1,000 cells.
ATTRIBUTES = {
    "cell_size": 0.79, "cell_shape": 0.89, "nucleus_shape": 0.88, "nuclear_cytoplasmic_ratio": 0.93, "chromatin_density": 0.86,
    "cytoplasm_vacuole": 0.92, "cytoplasm_texture": 0.87, "cytoplasm_colour": 0.91, "granule_type": 1.00,
    "granule_colour": 0.98, "granularity": 1.00,
}  # fmt: skip


@dataclass(frozen=True)
class Target:
    """One question a concept may answer.

    Attributes
    ----------
    group
        The attribute, or the data set whose labels these are.
    value
        What is looked for.
    stratum
        The cell type within which it is asked; empty: over all cells.
    positive, choose, score
        bool [n_cells]: cells that have it; cells on which units are chosen; cells on which they are scored.
    """

    group: str
    value: str
    stratum: str
    positive: Bools
    choose: Bools
    score: Bools

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """Positives and negatives among the choosing cells, then among the scored ones."""
        yes, no = self.positive, ~self.positive
        return tuple(int((a & b).sum()) for b in (self.choose, self.score) for a in (yes, no))  # type: ignore[return-value]

    @property
    def measurable(self) -> bool:
        """Whether there are `MIN_CELLS` positives and negatives on both sides."""
        return min(self.counts) >= MIN_CELLS


def targets_of(
    frame: pd.DataFrame,
    part: npt.NDArray[Any],
    column: str,
    *,
    group: str = "",
    strata: str = "",
    among: Bools | None = None,
) -> list[Target]:
    """One target for each value of a column, over all cells that have one; with `strata`, within each value of that column.

    Parameters
    ----------
    part
        ``choose`` or ``score`` for each cell.
    column
        Where the values stand; cells without one take no part.
    group
        The name of the targets' group; empty: the column's.
    strata
        Column of the cell types; empty: over all cells.
    among
        Only these cells.
    """
    values = frame[column].astype("string")
    known = values.notna().to_numpy(bool)
    if among is not None:
        known = known & among
    kinds = frame[strata].astype("string").fillna("") if strata else pd.Series("", index=frame.index, dtype="string")
    out = []
    for stratum in sorted(kinds[known].unique()):
        if strata and not stratum:
            continue
        here = known & (kinds == stratum).to_numpy(bool)
        for value in sorted(values[known].unique()):
            positive = here & (values == value).fillna(False).to_numpy(bool)
            out.append(
                Target(
                    group or column,
                    str(value),
                    str(stratum),
                    positive,
                    here & (part == "choose"),
                    here & (part == "score"),
                )
            )
    return out


def type_shares(frame: pd.DataFrame, target: Target) -> npt.NDArray[np.float64]:
    """The floor: for each cell the share of positives among the choosing cells of its type, float64 [n_cells]."""
    kinds = frame["label"].astype("string").fillna("").to_numpy(str)
    base = float(target.positive[target.choose].mean())
    out = np.full(len(frame), base)
    for kind in np.unique(kinds[target.choose]):
        out[kinds == kind] = target.positive[target.choose & (kinds == kind)].mean()
    return out
