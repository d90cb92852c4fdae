"""A cohort in memory: patients, their usable cells, and what every cell says of every concept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from cytosae._errors import CytosaeError, UsageError, nearest
from cytosae.cells import SCHEMA, Cells
from cytosae.concepts import ConceptIndex, read_cells_by_concepts
from cytosae.patients._exclude import excluded_latents
from cytosae.tokens import TokenStore

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
#: Patients whose cells are summed at a time.
_BLOCK = 64
#: Sums over cells are kept as integer multiples of this, so that neither order nor repetition of cells changes a mean.
SCALE = 2.0**-32
#: Columns that belong to a cell, not to its patient.
_OF_CELLS = set(SCHEMA.names) - {"diagnosis", "dataset", "split"}


@dataclass(frozen=True)
class Cohort:
    """Patients and their usable cells.

    Attributes
    ----------
    patients
        One row a patient, sorted by ``patient``: ``patient``, the target, ``n_cells`` (usable and indexed),
        ``n_quarantined``, ``n_not_indexed``, then every column of the table that is constant within each patient.
    target
        Name of the column to tell apart.
    owner
        int64 [n_cells]: the patient (row of `patients`) of each cell.
    maximum, mean, patch_share
        Sparse [n_cells, n_latents]: largest code over the patches, mean code over them, share of active patches.
    labels
        Cell type of each cell, None where unknown; [n_cells].
    concepts
        The concept table of the index.
    tokens
        float64 [n_cells, d_in]: mean patch token of each cell; None without a token store.
    record
        What else is to be recorded: `simulated`, `n_cells_without_patient`, hashes of the inputs.
    cell_ids
        int64 [n_cells]; None for a cohort made in memory.
    excluded
        bool [n_latents]: concepts that are neither tested nor fitted (technical ones); None: there are none.
    """

    patients: pd.DataFrame
    target: str
    owner: Ints
    maximum: sp.csr_matrix
    mean: sp.csr_matrix
    patch_share: sp.csr_matrix
    labels: npt.NDArray[Any]
    concepts: pd.DataFrame
    tokens: Floats | None = None
    record: dict[str, Any] = field(default_factory=dict)
    cell_ids: Ints | None = None
    excluded: npt.NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        if not self.patients["patient"].is_monotonic_increasing or not self.patients["patient"].is_unique:
            raise CytosaeError(
                "The patients of a cohort must be sorted by name, each once: folds and draws depend on it."
            )

    @property
    def classes(self) -> npt.NDArray[Any]:
        """The target of each patient; None where unknown."""
        return np.asarray(self.patients[self.target], dtype=object)

    @property
    def n_cells(self) -> Ints:
        """Usable cells of each patient."""
        return np.bincount(self.owner, minlength=len(self.patients))

    @property
    def judged(self) -> Ints:
        """Patients (rows) with a known target and at least one usable cell."""
        return np.flatnonzero(self.patients[self.target].notna().to_numpy() & (self.n_cells > 0))

    @property
    def simulated(self) -> bool:
        """Whether any patient is simulated."""
        return bool(self.record.get("simulated", False))

    def by_patient(self, values: Any) -> Floats:
        """Means over each patient's cells, exact whatever the order and repetition of cells.

        `values` is dense or sparse [n_cells, n]; gives float64 [n_patients, n], NaN for a patient without cells.
        """
        total = np.zeros((len(self.patients), values.shape[1]), np.int64)
        for patients, rows in self.blocks():
            some = values[rows]
            n = len(patients)
            at = self.owner[rows] - patients[0]
            member = sp.csr_matrix((np.ones(len(rows), np.int64), (at, np.arange(len(rows)))), shape=(n, len(rows)))
            if sp.issparse(some):
                whole = np.rint(some.data.astype(np.float64) / SCALE).astype(np.int64)
                product = member @ sp.csr_matrix((whole, some.indices, some.indptr), shape=some.shape)
                total[patients] = product.toarray()
            else:
                total[patients] = member @ np.rint(np.asarray(some, np.float64) / SCALE).astype(np.int64)
        n_cells = self.n_cells
        with np.errstate(invalid="ignore"):
            return np.asarray(np.where(n_cells[:, None] > 0, total / n_cells[:, None], np.nan) * SCALE)

    def blocks(self, n: int = _BLOCK) -> Iterator[tuple[Ints, Ints]]:
        """`n` patients (rows of `patients`) at a time with their cells (rows of the matrices), sorted by patient."""
        order = np.argsort(self.owner, kind="stable")
        ends = np.concatenate([[0], np.cumsum(self.n_cells)])
        for start in range(0, len(self.patients), n):
            stop = min(start + n, len(self.patients))
            yield np.arange(start, stop), order[ends[start] : ends[stop]]


def read_cohort(
    index: ConceptIndex | Path | str, cells: Cells, store: TokenStore | None = None, *, target: str = "diagnosis",
    exclude: Sequence[int] | Path | str | None = None, means: bool = True,
) -> Cohort:  # fmt: skip
    """Bring together the cohort's table, its concept index and, for the token baseline, its tokens.

    Parameters
    ----------
    index
        A concept index made over `cells` with ``--cells-matrix``.
    cells
        The cohort's table; it also knows the patients of whom no cell could be used.
    store
        Tokens of these cells.
    target
        Column of `cells` to tell apart, constant within each patient.
    exclude
        Concepts to leave out of every test and model: latents, or the ``technical.parquet`` of a scorecard of this
        dictionary, of which every flagged concept is left out.
    means
        Whether to read the mean tokens; without them `store` is only checked and recorded.

    Raises
    ------
    UsageError
        The table has no such target.
    CytosaeError
        The parts do not belong together, a patient has two values of the target, or there is no patient.
    """
    if not isinstance(index, ConceptIndex):
        index = ConceptIndex(index)
    matrix = read_cells_by_concepts(index.folder)
    _belong_together(index, cells, store)
    if matrix.patch_share is None:
        raise CytosaeError(f"{index.folder}/cells.h5ad lacks the layer patch_share; make the index again.")
    frame = cells.frame
    if target not in frame.columns:
        raise UsageError(f"The cells have no column {target!r}{nearest(target, frame.columns)}.")
    row_of = pd.Series(np.arange(len(frame)), index=frame["cell_id"])
    rows = row_of.reindex(matrix.cell_ids)
    if rows.isna().any():
        raise CytosaeError(f"{index.folder} holds cells that the table lacks; make the index over this table.")
    mine = frame.iloc[rows.to_numpy(int)]
    keep = np.flatnonzero(mine["patient"].notna().to_numpy())
    patients = _patients(frame, set(matrix.cell_ids.tolist()), target)
    owner = pd.Index(patients["patient"]).get_indexer(mine["patient"].iloc[keep].astype(str))
    labels = mine["label"].astype(object).where(mine["label"].notna(), None).to_numpy(object)[keep]
    tokens = None if store is None or not means else mean_tokens(store, matrix.cell_ids[keep])
    simulated = "simulated" in frame.columns and bool(frame["simulated"].fillna(False).astype(bool).any())
    record = {
        "simulated": simulated,
        "n_cells": len(keep),
        "n_cells_without_patient": int(frame["patient"].isna().sum()),
        "n_quarantined": cells.n_quarantined,
        "inputs": {"cells": cells.hash, "index": index.hash, **({"tokens": store.hash} if store else {})},
        "sae": index.manifest["inputs"].get("sae"),
    }
    excluded = None
    if exclude is not None:
        excluded, record["excluded"] = excluded_latents(exclude, len(index.concepts), record["sae"])
    whole = len(keep) == len(matrix.cell_ids)  # then nothing is copied
    maximum, mean, share = (m if whole else m[keep] for m in (matrix.maximum, matrix.mean, matrix.patch_share))
    return Cohort(
        patients, target, owner.astype(np.int64), maximum, mean, share, labels, index.concepts, tokens, record,
        matrix.cell_ids[keep], excluded,
    )  # fmt: skip


def _belong_together(index: ConceptIndex, cells: Cells, store: TokenStore | None) -> None:
    """Refuse parts made of other cells: a ``cell_id`` means something only within its table."""
    if index.manifest["inputs"].get("cells") != cells.hash:
        raise CytosaeError(f"{index.folder} was not made over the table given with --cells; index that table.")
    if store is None:
        return
    made_of = index.manifest["inputs"].get("tokens")
    if made_of is not None and made_of != store.hash:
        raise CytosaeError(
            f"{index.folder} was made of other tokens than {store.folder}; give the same tokens to both."
        )
    if made_of is None and store.manifest["inputs"].get("cells") != cells.hash:
        raise CytosaeError(
            f"{store.folder} holds tokens of another table; make the index with these tokens (--tokens)."
        )


def mean_tokens(store: TokenStore, cell_ids: Ints) -> Floats:
    """Mean patch token of each cell, float64 [n_cells, d_in]."""
    chunks = store.chunks(store.rows_of(cell_ids), 16, kind="patch")
    return np.concatenate([chunk.numpy().mean(1, dtype=np.float64) for chunk in chunks])


def _patients(frame: pd.DataFrame, indexed: set[int], target: str) -> pd.DataFrame:
    """One row a patient of the table, whether or not any of its cells can be used."""
    frame = frame[frame["patient"].notna()].copy()
    if frame.empty:
        raise CytosaeError("The cells have no patients; fill the column 'patient', or simulate with 'cytosae cohort'.")
    frame["patient"] = frame["patient"].astype(str)
    groups = frame.groupby("patient", sort=True)
    known = groups[target].nunique(dropna=True)
    if (known > 1).any():
        name = known.index[known > 1][0]
        raise CytosaeError(f"Patient {name} has {known[name]} different values of {target!r}; a patient has one.")
    used = frame["cell_id"].isin(list(indexed))
    bad = frame["status"] != "ok"
    out = pd.DataFrame({"patient": list(groups.groups)})
    out[target] = groups[target].first().astype(object).to_numpy(object)
    out[target] = out[target].where(out[target].notna(), None)
    for name, which in (("n_cells", used), ("n_quarantined", bad), ("n_not_indexed", ~used & ~bad)):
        out[name] = which.groupby(frame["patient"], sort=True).sum().to_numpy(np.int64)
    for name in (c for c in frame.columns if c not in _OF_CELLS and c not in out and frame[c].notna().any()):
        if (groups[name].nunique(dropna=False) == 1).all():
            out[name] = groups[name].first().to_numpy()
    return out
