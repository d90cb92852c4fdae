"""Whether rare cells come out on top where it is known which they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from cytosae._errors import CytosaeError
from cytosae.cells import Cells
from cytosae.evaluation._bootstrap import average_precision as weighted_precision
from cytosae.patients._cohort import Cohort, Floats, Ints

Bools = npt.NDArray[np.bool_]
#: From this average precision on cells outside of the cohort a concept is called planted for a type.
PLANTED = 0.8


def average_precision(positive: Bools, score: npt.NDArray[Any]) -> float:
    """Mean over the positives of the share of positives among what scores at least as high; ties count together. NaN without any."""
    return float(weighted_precision(score, positive, np.ones((1, len(score)), np.int64))[0])


def planted_concepts(
    values: sp.csr_matrix, is_type: Bools, *, least: float = PLANTED, cohort_cells: Bools | None = None
) -> pd.DataFrame:
    """Concepts that stand for a cell type, judged on cells outside of a cohort, before it is looked at.

    Parameters
    ----------
    values
        Sparse [n_cells, n_latents]: largest code of each cell.
    is_type
        bool [n_cells].
    least
        Average precision from which on a concept is planted.
    cohort_cells
        bool [n_cells]: cells of the cohort, which are left out.

    Returns
    -------
    ``latent``, ``average_precision`` of every concept that reaches `least`, best first.

    Raises
    ------
    CytosaeError
        No cell of the type outside of the cohort.
    """
    rows = np.arange(len(is_type)) if cohort_cells is None else np.flatnonzero(~cohort_cells)
    positive = is_type[rows]
    if not positive.any():
        raise CytosaeError("No cell of the type lies outside of the cohort; keep some back to fix its concepts on.")
    columns = sp.csr_matrix(values)[rows].tocsc()
    found = []
    for j in range(columns.shape[1]):
        span = slice(columns.indptr[j], columns.indptr[j + 1])
        at = columns.indices[span]
        active = positive[at].mean() * len(at) / positive.sum() if len(at) else 0.0
        if active + (1 - active) * positive.mean() < least:
            continue  # the cells in which it is inactive stand last, all together
        score = np.zeros(len(rows))
        score[at] = columns.data[span]
        ap = average_precision(positive, score)
        if ap >= least:
            found.append((j, ap))
    table = pd.DataFrame(found, columns=["latent", "average_precision"])
    return table.sort_values(["average_precision", "latent"], ascending=[False, True], ignore_index=True)


def precision_within_patients(positive: Bools, score: Floats, owner: Ints) -> pd.DataFrame:
    """Average precision of a ranking of cells within each patient that has both kinds.

    Returns
    -------
    ``patient`` (value of `owner`), ``n_cells``, ``n_positive``, ``average_precision``, ``chance`` (share of positives, what a
    random order gives on average), ``first`` (rank of the best positive, from 1).
    """
    rows = []
    for patient in np.unique(owner):
        mine = np.flatnonzero(owner == patient)
        hit, value = positive[mine], score[mine]
        if hit.all() or not hit.any():
            continue
        rows.append({
            "patient": patient, "n_cells": len(mine), "n_positive": int(hit.sum()),
            "average_precision": average_precision(hit, value), "chance": float(hit.mean()),
            "first": int((value >= value[hit].max()).sum()),
        })  # fmt: skip
    columns = ["patient", "n_cells", "n_positive", "average_precision", "chance", "first"]
    return pd.DataFrame(rows, columns=columns)


def read_annotations(path: Path | str) -> pd.DataFrame:
    """Read AML_Hehr's ``single_cell_annotations.csv``: ``patient``, ``image`` (file name), ``annotation``.

    Raises
    ------
    CytosaeError
        Missing, or without the columns ``ID``, ``im_tiffname`` and ``mll_annotation``; a cell twice.
    """
    path = Path(path)
    try:
        table = pd.read_csv(path, dtype=str)
    except (OSError, ValueError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise CytosaeError(f"{path} cannot be read as a table ({first}); give single_cell_annotations.csv.") from None
    wanted = {"ID": "patient", "im_tiffname": "image", "mll_annotation": "annotation"}
    for name in wanted:
        if name not in table.columns:
            raise CytosaeError(f"{path} lacks the column {name!r}; give single_cell_annotations.csv of SCEMILA.")
    out = table[list(wanted)].rename(columns=wanted).dropna()
    if out.duplicated(["patient", "image"]).any():
        raise CytosaeError(f"{path} names a cell twice; keep one row a cell.")
    return out.reset_index(drop=True)


def score_annotations(
    annotations: pd.DataFrame, cells: Cells, cohort: Cohort, scores: dict[str, Floats]
) -> pd.DataFrame:
    """Rank the annotated cells of each patient by scores, and see whether a kind of cell comes out on top.

    Parameters
    ----------
    annotations
        From `read_annotations`; cells are found by patient and file name.
    cells, cohort
        The table and the cohort read from it.
    scores
        Name -> float64 [n_cells of the cohort], such as a concept's codes or the contributions of `driving_cells`; NaN:
        a cell that was not scored, which takes no part.

    Returns
    -------
    One row a score, kind of cell and patient: ``score``, ``annotation``, and the columns of `precision_within_patients`, the
    annotated cells of the patient being all that are ranked.

    Raises
    ------
    CytosaeError
        No annotated cell is in the cohort, or the cohort does not know its cells.
    """
    rows, names, owner = _annotated(annotations, cells, cohort)
    out = []
    for title, score in scores.items():
        scored = ~np.isnan(score[rows])
        for annotation in sorted(set(names[scored])):
            positive = names[scored] == annotation
            table = precision_within_patients(positive, score[rows][scored], owner[scored])
            out.append(table.assign(score=title, annotation=annotation))
    whole = pd.concat(out, ignore_index=True)
    return whole[["score", "annotation", *[c for c in whole.columns if c not in ("score", "annotation")]]]


def concepts_chosen_elsewhere(
    annotations: pd.DataFrame, cells: Cells, cohort: Cohort, most: float = 0.1
) -> pd.DataFrame:
    """Rank the annotated cells of each patient by one concept a kind of cell, chosen on the annotated cells of the others.

    For a patient the concept with the highest mean average precision within the other patients is taken, so that no
    annotation of its own chooses.

    Parameters
    ----------
    annotations, cells, cohort
        As in `score_annotations`.
    most
        Kinds with a larger share of the annotated cells are no rare ones and left out; so are those in one patient only.

    Returns
    -------
    As `score_annotations`, and ``latent``; ``score`` is "concept chosen on the other patients".

    Raises
    ------
    CytosaeError
        As in `score_annotations`.
    """
    rows, names, owner = _annotated(annotations, cells, cohort)
    values = {who: cohort.maximum[rows[owner == who]].toarray() for who in np.unique(owner)}
    out = []
    for annotation in sorted(set(names)):
        positive = names == annotation
        some = [who for who in values if 0 < positive[owner == who].sum() < (owner == who).sum()]
        if positive.mean() > most or len(some) < 2:
            continue
        found = np.stack([_precisions(positive[owner == who], values[who]) for who in some])
        for i, who in enumerate(some):
            latent = int(np.delete(found, i, 0).mean(0).argmax())
            mine = owner == who
            table = precision_within_patients(positive[mine], values[who][:, latent].astype(np.float64), owner[mine])
            out.append(table.assign(score="concept chosen on the other patients", annotation=annotation, latent=latent))
    columns = [
        "score",
        "annotation",
        "patient",
        "n_cells",
        "n_positive",
        "average_precision",
        "chance",
        "first",
        "latent",
    ]
    return pd.concat(out, ignore_index=True)[columns] if out else pd.DataFrame(columns=columns)


def _precisions(positive: Bools, values: npt.NDArray[Any]) -> Floats:
    """`average_precision` of every column of values [n_cells, n]."""
    total = np.zeros(values.shape[1])
    for i in np.flatnonzero(positive):
        above = values >= values[i]
        total += above[positive].sum(0) / above.sum(0)
    return np.asarray(total / positive.sum())


def _annotated(
    annotations: pd.DataFrame, cells: Cells, cohort: Cohort
) -> tuple[Ints, npt.NDArray[Any], npt.NDArray[Any]]:
    """Of the annotated cells that are in the cohort: rows of its matrices, what they are called, and their patients."""
    if cohort.cell_ids is None:
        raise CytosaeError("The cohort does not know the ids of its cells; read it with read_cohort.")
    frame = cells.frame.set_index("cell_id").loc[cohort.cell_ids]
    image = frame["image"].astype(str).str.replace("\\", "/").str.rsplit("/", n=1).str[-1].str.lower()
    key = pd.MultiIndex.from_arrays([frame["patient"].astype(str), image])
    at = key.get_indexer(pd.MultiIndex.from_arrays([annotations["patient"], annotations["image"].str.lower()]))
    known = np.flatnonzero(at >= 0)
    if not len(known):
        raise CytosaeError("No annotated cell is in the cohort; patients and file names must be those of AML_Hehr.")
    rows, names = at[known], annotations["annotation"].to_numpy(object)[known]
    return rows, names, cohort.patients["patient"].astype(str).to_numpy(object)[cohort.owner[rows]]
