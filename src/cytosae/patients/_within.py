"""What other proportions of cell types alone would give of a profile, patient by patient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from cytosae.patients._cohort import Cohort, Floats, Ints

#: Values compared with their thresholds at a time.
_PIECE = 2**24


@dataclass(frozen=True)
class TypeRates:
    """Cells of the compared patients, by type.

    A patient's profile is the sum over types of its share of cells of the type times the rate of the concept in them. Its
    *composition part* has the rate common to both sides of a comparison (all patients weighing alike) in the place of its
    own, and so differs between patients by their mixtures only; what remains, the *within part*, differs by what the cells
    of a type are like. Both are numbers of one patient, made without its diagnosis, so both are tested as the profile is,
    and their effects add up to the whole (the decomposition of Kitagawa 1955 with pooled rates as the standard). Where a
    type occurs on one side only, its part is composition.

    Attributes
    ----------
    carried
        Sparse 0/1 [n_cells, n_concepts].
    patient, kind
        int64 [n_cells]: the compared patient (-1: none) and the type of each cell.
    shares
        float64 [n_patients, n_types]: mixture of each patient.
    weight
        float64 [n_cells]: 1 / cells of its patient.
    """

    carried: sp.csr_matrix
    patient: Ints
    kind: Ints
    shares: Floats
    weight: Floats

    @classmethod
    def of(cls, cohort: Cohort, profiles: Any, judged: Ints, tested: Ints) -> TypeRates | None:
        """From a cohort and its profiles, for some patients and concepts (rows and columns of `profiles`); None without all labels."""
        if any(label is None for label in cohort.labels) or not len(cohort.labels):
            return None
        names, kind = np.unique(cohort.labels.astype(str), return_inverse=True)
        at = pd.Index(cohort.patients["patient"].astype(str)).get_indexer(
            profiles.obs["patient"].astype(str).to_numpy()[judged]
        )
        place = np.full(len(cohort.patients), -1)
        place[at] = np.arange(len(judged))
        patient, weight = place[cohort.owner], 1.0 / cohort.n_cells[cohort.owner]
        shares = np.zeros((len(judged), len(names)))
        here = patient >= 0
        np.add.at(shares, (patient[here], kind[here]), weight[here])
        some = cohort.maximum[:, tested]
        threshold = profiles.var["threshold"].to_numpy(np.float64)[tested]
        for start in range(0, some.nnz, _PIECE):
            piece = slice(start, start + _PIECE)
            some.data[piece] = some.data[piece] > threshold[some.indices[piece]]
        carried = sp.csr_matrix(some)
        carried.eliminate_zeros()
        return cls(carried, patient, kind.astype(np.int64), shares, weight)

    def composition(self, rows: Ints, block: Ints) -> Floats:
        """Composition parts [len(rows), n_concepts] of some patients; rates are common to a block (block [len(rows)])."""
        n_types = self.shares.shape[1]
        blocks, at = np.unique(block, return_inverse=True)
        group = np.full(len(self.shares), -1)
        group[rows] = at
        of_cell = np.where(self.patient >= 0, group[self.patient], -1)
        cells = np.flatnonzero(of_cell >= 0)
        joint = (
            sp.csr_matrix(
                (self.weight[cells], (of_cell[cells] * n_types + self.kind[cells], cells)),
                shape=(len(blocks) * n_types, len(self.patient)),
            )
            @ self.carried
        )
        joint = joint.toarray().reshape(len(blocks), n_types, -1)
        out = np.empty((len(rows), self.carried.shape[1]))
        for b in range(len(blocks)):
            mixture = self.shares[rows[at == b]]
            total = mixture.sum(0)
            out[at == b] = mixture @ (joint[b] / np.where(total > 0, total, 1.0)[:, None])
        return out
