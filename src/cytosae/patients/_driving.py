"""From a diagnosis or a differential concept down to the cells and patches: pathognomonic cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from cytosae._errors import CytosaeError, UsageError, nearest
from cytosae.patients._cohort import Cohort, Floats, Ints
from cytosae.patients._linear import LinearModel
from cytosae.sae import SparseAutoencoder
from cytosae.tokens import TokenStore


def driving_cells(model: LinearModel, cohort: Cohort, patient: str, diagnosis: str) -> pd.DataFrame:
    """How much each cell of a patient speaks for a diagnosis, in the model's own terms.

    A profile is a mean over cells and the model is linear in it, so the contributions of the cells and the intercept add
    up to the logit: cell c adds sum over concepts j of w_j (carries_cj - centre_j) / n, with w = coefficients / scale.

    Parameters
    ----------
    model
        A model of concept profiles.
    cohort
        The patients; any cohort indexed with the same dictionary.
    patient, diagnosis
        Whom, and the class to speak for.

    Returns
    -------
    One row a cell, from what speaks most for the diagnosis to what speaks most against it: ``cell_id``, ``row`` (of the
    cohort's matrices), ``label``, ``contribution``, ``latent`` (of the carried concepts the one that adds most; -1 where
    none is carried), ``latent_adds`` (what it adds).

    Raises
    ------
    UsageError
        No such patient or class.
    CytosaeError
        The patient has no cells, or the dictionary is another one.
    """
    w, rows = _weights(model, cohort, patient, diagnosis)
    some = cohort.maximum[rows][:, model.kept].tocsr()
    carries = some.copy()
    carries.data = (some.data > model.thresholds[model.kept][some.indices]).astype(np.float64)
    adds = carries.multiply(w / len(rows)).tocsr()
    adds.eliminate_zeros()
    contribution = np.asarray(adds.sum(1)).ravel() - float(w @ model.centre) / len(rows)
    best, most = np.full(len(rows), -1, np.int64), np.zeros(len(rows))
    for i in range(len(rows)):
        mine = slice(adds.indptr[i], adds.indptr[i + 1])
        if mine.stop > mine.start:
            top = int(adds.data[mine].argmax())
            best[i], most[i] = model.kept[adds.indices[mine][top]], adds.data[mine][top]
    return pd.DataFrame({
        "cell_id": _ids(cohort)[rows], "row": rows, "label": cohort.labels[rows], "contribution": contribution,
        "latent": best, "latent_adds": most,
    }).sort_values(["contribution", "cell_id"], ascending=[False, True], ignore_index=True)  # fmt: skip


def driving_patches(
    model: LinearModel,
    cohort: Cohort,
    patient: str,
    diagnosis: str,
    sae: SparseAutoencoder,
    store: TokenStore,
    *,
    n_cells: int = 5,
) -> pd.DataFrame:
    """The patches of a patient's strongest cells that speak for a diagnosis.

    What a concept adds to a cell is credited to the patch where it is strongest, since that patch alone decides whether the
    cell carries it. The credits of a cell's patches and the constant part of its concepts add up to its contribution.

    Parameters
    ----------
    sae, store
        The dictionary of the cohort's index, and tokens of its cells.
    n_cells
        Of the cells that speak most for it.

    Returns
    -------
    One row a patch with any credit, by cell as in `driving_cells`, then from most for to most against: ``cell_id``,
    ``patch`` (in row order, without class token), ``contribution``, ``latent`` (what adds most there), ``latent_adds``.
    """
    w, rows = _weights(model, cohort, patient, diagnosis)
    best = driving_cells(model, cohort, patient, diagnosis).head(n_cells)
    out = []
    ids = best["cell_id"].to_numpy(np.int64)
    tokens = store.chunks(store.rows_of(ids), 1, kind="patch")
    for cell_id, row, token in zip(ids, best["row"], tokens, strict=True):
        value = cohort.maximum[int(row)].toarray()[0][model.kept]
        carried = np.flatnonzero((value > model.thresholds[model.kept]) & (w != 0))
        codes = sae.encode(token[0].float())[:, model.kept[carried]].cpu().numpy()
        table = pd.DataFrame({"patch": codes.argmax(0), "latent": model.kept[carried], "adds": w[carried] / len(rows)})
        for patch, mine in table.groupby("patch"):
            top = mine.loc[mine["adds"].idxmax()]
            out.append({"cell_id": cell_id, "patch": int(patch), "contribution": float(mine["adds"].sum()),
                        "latent": int(top["latent"]), "latent_adds": float(top["adds"])})  # fmt: skip
    table = pd.DataFrame(out, columns=["cell_id", "patch", "contribution", "latent", "latent_adds"])
    place = pd.Series(np.arange(len(ids)), index=ids)
    order = np.lexsort((-table["contribution"], place.reindex(table["cell_id"]).to_numpy()))
    return table.iloc[order].reset_index(drop=True)


def concept_cells(
    profiles: Any, cohort: Cohort, latent: int, *, patients: Sequence[str] | None = None, n_cells: int = 5
) -> pd.DataFrame:
    """One concept through all patients: who carries it most, and each one's strongest cells.

    Parameters
    ----------
    profiles
        AnnData from `profile_patients` of this cohort.
    latent
        The concept.
    patients
        Only these; None: all with cells.
    n_cells
        Cells a patient at most; only cells that carry the concept are given.

    Returns
    -------
    One row a cell, patients from the largest profile down and cells from the strongest: ``patient``, the target,
    ``profile`` (the patient's), ``rank`` (of the cell, from 1), ``cell_id``, ``row``, ``label``, ``value``.

    Raises
    ------
    UsageError
        No such concept or patient.
    """
    names = cohort.patients["patient"].astype(str).tolist()
    if not 0 <= latent < cohort.maximum.shape[1]:
        raise UsageError(f"There is no concept {latent}; the dictionary has 0 to {cohort.maximum.shape[1] - 1}.")
    for name in patients or []:
        if name not in names:
            raise UsageError(f"There is no patient {name!r}{nearest(name, names)}.")
    at = int(np.flatnonzero(profiles.var["latent"].to_numpy() == latent)[0])
    share = pd.Series(np.asarray(profiles.X)[:, at], index=profiles.obs["patient"].astype(str))
    value = cohort.maximum[:, [latent]].toarray()[:, 0]
    rows = np.flatnonzero(value > float(profiles.var["threshold"].iloc[at]))
    table = pd.DataFrame(
        {"row": rows, "value": value[rows], "cell_id": _ids(cohort)[rows], "label": cohort.labels[rows]}
    )
    table["patient"] = np.array(names, object)[cohort.owner[rows]]
    table[cohort.target] = cohort.classes[cohort.owner[rows]]
    table["profile"] = share.reindex(table["patient"]).to_numpy()
    if patients is not None:
        table = table[table["patient"].isin(list(patients))]
    table = table.sort_values(["profile", "patient", "value", "cell_id"], ascending=[False, True, False, True])
    table["rank"] = table.groupby("patient").cumcount() + 1
    columns = ["patient", cohort.target, "profile", "rank", "cell_id", "row", "label", "value"]
    return table.loc[table["rank"] <= n_cells, columns].reset_index(drop=True)


def hit_cells(
    table: pd.DataFrame, profiles: Any, cohort: Cohort, *, fdr: float = 0.05, n_cells: int = 5
) -> pd.DataFrame:
    """The cells behind every hit of `differential`, from the patients of the side that carries the concept more.

    Returns
    -------
    The columns of `concept_cells`, then ``comparison`` (the target that is compared), ``against``, ``latent``, ``effect`` and ``q`` of the hit;
    most certain hit first.
    """
    hits = table[table["q"] < fdr].sort_values(["q", "p", "diagnosis", "latent"])
    classes = np.array([None if value is None or value != value else str(value) for value in cohort.classes], object)
    names = cohort.patients["patient"].astype(str).to_numpy(object)
    known = cohort.patients[cohort.target].notna().to_numpy(bool)
    out = []
    for hit in hits.itertuples():
        inside = classes == hit.diagnosis
        other = known & ~inside if hit.against == "rest" else classes == hit.against
        side = names[inside if hit.effect > 0 else other]
        cells = concept_cells(profiles, cohort, int(hit.latent), patients=list(side), n_cells=n_cells)
        head = {
            "comparison": hit.diagnosis,
            "against": hit.against,
            "latent": hit.latent,
            "effect": hit.effect,
            "q": hit.q,
        }
        out.append(cells.assign(**head))
    if not out:
        return pd.DataFrame(columns=["comparison", "against", "latent", "effect", "q"])
    return pd.concat(out, ignore_index=True)


def strongest_patches(cells: pd.DataFrame, latent: int, sae: SparseAutoencoder, store: TokenStore) -> Ints:
    """The patch of each row's cell (``cell_id``) on which a concept is strongest: int64, in row order, without class token."""
    tokens = store.chunks(store.rows_of(cells["cell_id"].to_numpy(np.int64)), 1, kind="patch")
    return np.array([int(sae.encode(t[0].float())[:, latent].argmax()) for t in tokens], np.int64)


def _ids(cohort: Cohort) -> Ints:
    return np.arange(len(cohort.owner)) if cohort.cell_ids is None else cohort.cell_ids


def _weights(model: LinearModel, cohort: Cohort, patient: str, diagnosis: str) -> tuple[Floats, Ints]:
    names = cohort.patients["patient"].astype(str).tolist()
    if patient not in names:
        raise UsageError(f"There is no patient {patient!r}{nearest(patient, names)}.")
    if diagnosis not in model.classes:
        raise UsageError(f"The model has no class {diagnosis!r}{nearest(diagnosis, model.classes)}.")
    if len(model.thresholds) != cohort.maximum.shape[1]:
        raise CytosaeError(
            f"The model is of {len(model.thresholds)} concepts, the cohort's index of {cohort.maximum.shape[1]}; give an "
            "index made with the model's dictionary."
        )
    rows = np.flatnonzero(cohort.owner == names.index(patient))
    if not len(rows):
        raise CytosaeError(f"Patient {patient} has no usable cells, so there is nothing to rank.")
    k = model.classes.index(diagnosis)
    return model.coefficients[k] / model.scale, rows
