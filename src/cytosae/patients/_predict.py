"""The next patient: what a model of concept profiles says of cells it has never seen, and how far that can be trusted."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from cytosae._errors import CytosaeError, UsageError, nearest
from cytosae.cells import Cells
from cytosae.concepts import ConceptIndex
from cytosae.patients._artifact import Patients
from cytosae.patients._cohort import Floats, Ints, read_cohort
from cytosae.patients._likeness import Likeness
from cytosae.patients._linear import Contributions, explain_profile
from cytosae.patients._profiles import CellValues
from cytosae.patients._solvers import softmax

#: A concept is called unusual from this many standard deviations of the reference patients on; and what these must be at least.
UNUSUAL, FEWEST = 3.0, 5
_N_SIMILAR = 5


@dataclass(frozen=True)
class Unusual:
    """How a patient differs from reference patients.

    Attributes
    ----------
    reference
        The diagnosis of the reference patients; None: all training patients.
    n_patients
        How many they are.
    table
        Concepts beyond `UNUSUAL`, strongest first: ``latent, value, reference_mean, reference_highest, z``.
    usual
        How many such concepts a reference patient has on average, compared with the others.
    """

    reference: str | None
    n_patients: int
    table: pd.DataFrame
    usual: float


@dataclass(frozen=True)
class Prediction:
    """One new patient.

    Attributes
    ----------
    patient, labelled
        Name, and the diagnosis the table gives, if any.
    cell_ids
        Its usable cells.
    values
        Sparse [n_cells, n_latents]: largest code of each concept in each cell.
    probabilities, as_fitted
        Calibrated, and as the model gives them; [K].
    explained
        What each concept adds to each logit; exact.
    distance, share_nearer
        From the training cohort (see `Likeness`), and the share of training patients that lie nearer.
    similar
        ``patient, diagnosis, distance`` of the nearest training patients.
    unusual
        Against reference patients; None where these are too few.
    warnings
        What speaks against trusting the prediction, each a sentence.
    """

    patient: str
    labelled: str | None
    cell_ids: Ints
    values: sp.csr_matrix
    profile: Floats
    probabilities: Floats
    as_fitted: Floats
    explained: Contributions
    distance: float
    share_nearer: float
    similar: list[tuple[str, str, float]]
    unusual: Unusual | None
    warnings: list[str]

    @property
    def predicted(self) -> str:
        """The most probable class."""
        return self.explained.classes[int(self.probabilities.argmax())]


def predict_patients(
    patients: Patients, index: ConceptIndex, cells: Cells, *, reference: str | None = None
) -> tuple[list[Prediction], Likeness]:
    """Judge new patients with the model of a `patients` folder.

    Parameters
    ----------
    patients
        From `read_patients`.
    index
        A concept index over the new cells, by the same dictionary, made with ``--cells-matrix``.
    cells
        Their table, with the column ``patient``; a diagnosis is not needed.
    reference
        Diagnosis of the training patients that new ones are compared with; all of them where None.

    Returns
    -------
    One prediction a patient with usable cells, by name; and the measure of likeness with its threshold.

    Raises
    ------
    CytosaeError
        The index is of another dictionary or semantics, no cell has a patient, or none can be used.
    UsageError
        No training patient has the reference diagnosis.
    """
    facts, model = patients.facts, patients.model
    if index.manifest["inputs"].get("sae") != facts.get("sae") or index.semantics != facts["semantics"]:
        raise CytosaeError(
            f"{index.folder} was made with another dictionary (or other semantics) than the model; index these cells with "
            "the dictionary of the training cohort."
        )
    if patients.target not in cells.frame:
        cells = replace(cells, frame=cells.frame.assign(**{patients.target: None}))
    cohort = read_cohort(index, cells, None, target=patients.target)
    training = _training(patients)
    likeness = Likeness.of(model, np.asarray(training.X, np.float64))
    named = training.obs[patients.target].astype(str).to_numpy()
    if reference is not None and reference not in named:
        raise UsageError(
            f"No training patient has the {patients.target} {reference!r}{nearest(reference, set(named))}."
        )
    ids = np.asarray(cohort.cell_ids)
    X = CellValues(cohort.maximum, cohort.owner, len(cohort.patients)).shares(model.thresholds)
    temperature = float(facts.get("temperature", 1.0))
    latents = training.var["latent"].to_numpy(np.int64)
    out = []
    for i in np.flatnonzero(cohort.n_cells > 0):
        name, label = str(cohort.patients["patient"].iloc[i]), cohort.classes[i]
        explained = explain_profile(model, X[i], latents, name)
        mine = np.flatnonzero(cohort.owner == i)
        who, far = likeness.nearest(X[i], _N_SIMILAR)
        distance = likeness.distance(X[i])
        similar = [
            (str(training.obs["patient"].iloc[j]), str(named[j]), float(d)) for j, d in zip(who, far, strict=True)
        ]
        out.append(Prediction(
            name, None if label is None else str(label), ids[mine], cohort.maximum[mine], X[i],
            softmax(explained.logits[None] / temperature)[0], explained.probabilities, explained, distance,
            likeness.share_nearer(distance), similar, _unusual(X[i], len(mine), training, named, reference),
            _warnings(name, len(mine), distance, likeness, training, facts),
        ))  # fmt: skip
    if not out:
        raise CytosaeError(f"No patient in {index.folder} has usable cells; there is nothing to predict.")
    return out, likeness


def _training(patients: Patients) -> Any:
    """Profiles of the patients the model was fitted on."""
    profiles = patients.profiles
    return profiles[profiles.obs[patients.target].notna().to_numpy() & (profiles.obs["n_cells"].to_numpy() > 0)]


def _warnings(
    name: str, n_cells: int, distance: float, likeness: Likeness, training: Any, facts: dict[str, Any]
) -> list[str]:
    found = []
    if distance > likeness.threshold:
        found.append(
            f"{name} is unlike the training cohort: its distance {distance:.2f} lies above {likeness.threshold:.2f}, within "
            "which 95% of the training patients lie. Do not rely on the probabilities."
        )
    fewest = int(training.obs["n_cells"].min())
    if n_cells < fewest:
        found.append(
            f"Only {n_cells} cell{'s' * (n_cells != 1)}, fewer than any training patient has ({fewest}): shares of cells are uncertain."
        )
    if "temperature" not in facts:
        found.append("The model was made by an older version without calibration; make the patients folder again.")
    return found


def _unusual(x: Floats, n_cells: int, training: Any, named: npt.NDArray[Any], reference: str | None) -> Unusual | None:
    """Concepts in which x lies far outside the reference patients; the spread is at least that of counting n_cells cells."""
    R = np.asarray(training.X, np.float64)
    R = R if reference is None else R[named == reference]
    n = len(R)
    if n < FEWEST:
        return None
    mean, z = R.mean(0), _z(x, R.mean(0), R.std(0, ddof=1), n_cells)
    total, squares = R.sum(0), (R**2).sum(0)
    usual = []
    for i, own in enumerate(
        training.obs["n_cells"].to_numpy()[slice(None) if reference is None else named == reference]
    ):
        others = (total - R[i]) / (n - 1)
        spread = np.sqrt(np.maximum((squares - R[i] ** 2 - (n - 1) * others**2) / (n - 2), 0))
        usual.append((np.abs(_z(R[i], others, spread, int(own))) >= UNUSUAL).sum())
    order = np.argsort(-np.abs(z), kind="stable")
    order = order[np.abs(z[order]) >= UNUSUAL]
    table = pd.DataFrame({"latent": training.var["latent"].to_numpy(np.int64)[order], "value": x[order],
                          "reference_mean": mean[order], "reference_highest": R.max(0)[order], "z": z[order]})  # fmt: skip
    return Unusual(reference, n, table, float(np.mean(usual)))


def _z(x: Floats, mean: Floats, spread: Floats, n_cells: int) -> Floats:
    likely = np.clip(mean, 1 / n_cells, 1 - 1 / n_cells) if n_cells > 1 else np.full_like(mean, 0.5)
    return np.asarray((x - mean) / np.maximum(spread, np.sqrt(likely * (1 - likely) / n_cells)))


def prediction_record(prediction: Prediction) -> dict[str, Any]:
    """One patient as `predictions.json` holds it."""
    p, e = prediction, prediction.explained
    table = e.table.set_index("latent")[list(e.classes)]
    largest = table.abs().max(axis=1).sort_values(ascending=False, kind="stable").index[:50]
    unusual = None
    if p.unusual is not None:
        unusual = {"reference": p.unusual.reference, "n_patients": p.unusual.n_patients,
                   "usual_number": p.unusual.usual, "concepts": json.loads(p.unusual.table.to_json(orient="records"))}  # fmt: skip
    return {
        "patient": p.patient, "labelled": p.labelled, "n_cells": len(p.cell_ids), "predicted": p.predicted,
        "probabilities": dict(zip(e.classes, map(float, p.probabilities), strict=True)),
        "probabilities_as_fitted": dict(zip(e.classes, map(float, p.as_fitted), strict=True)),
        "logits": dict(zip(e.classes, map(float, e.logits), strict=True)),
        "intercepts": dict(zip(e.classes, map(float, e.intercepts), strict=True)),
        "contributions": [{"latent": int(i), **{c: float(table.at[i, c]) for c in e.classes}} for i in largest],
        "contributions_of_the_others": {c: float(table[c].sum() - table.loc[largest, c].sum()) for c in e.classes},
        "distance": p.distance, "share_of_training_patients_nearer": p.share_nearer,
        "similar": [{"patient": who, "diagnosis": what, "distance": d} for who, what, d in p.similar],
        "unusual": unusual, "warnings": p.warnings,
    }  # fmt: skip
