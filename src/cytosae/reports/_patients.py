"""Patients in the report: profiles, what sets diagnoses apart down to the patch, classification, one patient explained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from cytosae.concepts import CellsByConcepts
from cytosae.patients import Patients, contributions, read_patients
from cytosae.reports._axis import LogAxis
from cytosae.reports._gallery import describe, on_cell
from cytosae.reports._heatmap import HeatMap, heat_map
from cytosae.reports._pictures import Overlay, overlay
from cytosae.reports._run import Run
from cytosae.reports._volcano import Volcano, names_beside, volcanoes

#: A difference is called found below this share of expected false findings.
FDR = 0.05
_N_HITS, _N_PICTURES, _N_REASONS, _N_COLUMNS = 4, 6, 5, 36
_SIDE, _BOX = (480, 470), (58.0, 14.0, 466.0, 420.0)


@dataclass(frozen=True)
class Hit:
    """A concept that sets a diagnosis apart, and the cells of its patients that carry it; `on_cell`: share of it on the cell."""

    latent: int
    title: str
    row: dict[str, Any]
    top_label: str
    on_cell: float
    pictures: list[Overlay]


@dataclass(frozen=True)
class Diagnosis:
    """One diagnosis against the rest."""

    name: str
    n_patients: int
    n_found: int
    hits: list[Hit]
    best_q: float


@dataclass(frozen=True)
class Reason:
    """What one concept adds to a patient's logit; `width` is in per cent of the largest shown, `on_cell` as in `Hit`."""

    latent: int
    title: str
    on_cell: float
    value: float
    cohort_mean: float
    contribution: float
    width: float
    pictures: list[Overlay]


@dataclass(frozen=True)
class OnePatient:
    """A patient explained for the class the model gives it."""

    patient: str
    diagnosis: str
    predicted: str
    probability: float
    out_of_fold: float
    logit: float
    intercept: float
    n_other: int
    others: float
    reasons: list[Reason]


@dataclass(frozen=True)
class Scatter:
    """Mean profile in one diagnosis against that in another, every concept a dot (the paper's disease scatter)."""

    x_name: str
    y_name: str
    width: int
    height: int
    box: tuple[float, float, float, float]
    dots: list[tuple[float, float, str, str]]
    names: list[tuple[float, float, str, int]]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    diagonal: tuple[float, float, float, float]


@dataclass(frozen=True)
class PatientsPage:
    """All that the template draws."""

    record: dict[str, Any]
    simulated: bool
    n_patients: int
    n_cells: int
    n_concepts: int
    n_tests: int
    smallest_p: float
    heat: HeatMap
    diagnoses: list[Diagnosis]
    volcanoes: list[Volcano]
    n_comparisons_left_out: int
    models: list[tuple[str, dict[str, Any], str]]
    one: OnePatient | None
    scatter: Scatter | None
    without_cells: list[str]


def patients_page(run: Run) -> PatientsPage | None:
    """Everything of `patients/`; None where the run has none."""
    if not (run.folder / "patients" / "manifest.json").exists():
        return None
    found = read_patients(run.folder / "patients")
    matrix = run.matrix("index-cohort")
    table, record = found.differential, found.classification
    profiles = found.profiles[found.profiles.obs["n_cells"].to_numpy() > 0]
    diagnoses = [_diagnosis(run, found, matrix, str(name)) for name in record["classes"]]
    panels, left_out = volcanoes(table, FDR)
    return PatientsPage(
        record=record,
        simulated=found.simulated,
        n_patients=len(found.profiles),
        n_cells=int(found.manifest["n_cells"]),
        n_concepts=int(table["latent"].nunique()),
        n_tests=len(table),
        smallest_p=float(table["smallest_p"].max()) if len(table) else float("nan"),
        heat=heat_map(profiles, found.target, _columns(table, profiles)),
        diagnoses=diagnoses,
        volcanoes=panels,
        n_comparisons_left_out=left_out,
        models=_models(record),
        one=_one_patient(run, found, matrix),
        scatter=_scatter(profiles, table, found.target),
        without_cells=list(record["patients_without_cells"]),
    )


def _columns(table: pd.DataFrame, profiles: Any) -> list[int]:
    """Concepts of the heat map: for each diagnosis in turn the smallest q, then those that vary most."""
    ranked = [g.sort_values(["q", "p", "latent"])["latent"].tolist() for _, g in table.groupby("diagnosis", sort=True)]
    turns = [latents[i] for i in range(_N_COLUMNS) for latents in ranked if i < len(latents)]
    spread = np.argsort(-np.asarray(profiles.X).std(0), kind="stable").tolist()
    return list(dict.fromkeys([*turns, *spread]))[:_N_COLUMNS]


def _diagnosis(run: Run, found: Patients, matrix: CellsByConcepts | None, name: str) -> Diagnosis:
    rows = found.differential[found.differential["diagnosis"] == name].sort_values(["q", "p", "latent"])
    hits = rows[rows["q"] < FDR]
    shown = []
    for row in hits.head(_N_HITS).to_dict("records"):
        latent = int(row["latent"])
        label = run.index.concepts["top_label"][latent]
        cells = _cells_with(matrix, latent, found.target, name, row["effect"] < 0, above=_threshold(found, latent))
        top = label if isinstance(label, str) else "no label"
        shown.append(
            Hit(
                latent,
                run.title(latent),
                row,
                top,
                on_cell(run, run.index, latent),
                _pictures(run, matrix, latent, cells),
            )
        )
    n = int((found.profiles.obs[found.target] == name).sum())
    return Diagnosis(name, n, len(hits), shown, float(rows["q"].min()) if len(rows) else float("nan"))


def _threshold(found: Patients, latent: int) -> float:
    """The value above which a cell counts as carrying a concept."""
    return float(found.profiles.var["threshold"].to_numpy(np.float64)[latent])


def _cells_with(
    matrix: CellsByConcepts | None,
    latent: int,
    column: str,
    value: str,
    other: bool = False,
    n: int = _N_PICTURES,
    above: float = 0.0,
) -> list[int]:
    """The strongest cells of one diagnosis or patient, at most two a patient; of all others where `other`.

    Only cells that carry the concept as the profile counts it: with a value `above` its threshold.
    """
    if matrix is None:
        return []
    values = np.asarray(matrix.maximum[:, [latent]].todense()).ravel()
    here = (matrix.obs[column].to_numpy() == value) != other
    order = [
        i for i in np.argsort(-np.where(here, values, -1), kind="stable") if here[i] and values[i] > max(above, 0.0)
    ]
    taken: list[int] = []
    count: dict[Any, int] = {}
    for i in order:
        patient = matrix.obs["patient"].iloc[i]
        if column == "patient" or count.get(patient, 0) < 2:
            taken.append(int(matrix.cell_ids[i]))
            count[patient] = count.get(patient, 0) + 1
        if len(taken) == n:
            break
    return taken


def _pictures(run: Run, matrix: CellsByConcepts | None, latent: int, cell_ids: list[int]) -> list[Overlay]:
    maps = [run.maps(cell, [latent])[0] for cell in cell_ids]
    top = max((float(m.max()) for m in maps), default=0.0)
    owner = {} if matrix is None else dict(zip(matrix.cell_ids.tolist(), matrix.obs["patient"], strict=True))
    return [
        overlay(
            run.pixels(c),
            m,
            top,
            f"{owner.get(c)}: {describe(run, c)}",
            f"{run.cell_name(c)}, activation {m.max():.2f}",
        )
        for c, m in zip(cell_ids, maps, strict=True)
    ]


def _models(record: dict[str, Any]) -> list[tuple[str, dict[str, Any], str]]:
    """(name, metrics, verdict of the concept profile against it) in the record's order."""
    names = {
        "concept_profile": "concept profile, L2 logistic regression",
        "concept_profile_l1": "concept profile, L1 logistic regression",
        "class_token": "mean of the class tokens, L2 logistic regression",
        "mean_tokens": "mean of all patch tokens, L2 logistic regression",
        "raw_neurons": "backbone dimensions counted as concepts are, L2",
        "pca": "principal components counted as concepts are, L2",
        "composition": "true cell-type shares, L2 logistic regression",
        "n_cells": "number of cells alone",
        "file_header": "file headers and lengths alone",
        "attention_mil": "attention over the cells' class tokens (torchmil)",
        "majority": "always the most frequent diagnosis",
    }
    primary = record["primary_metric"]
    out = []
    for name in record["model_order"]:
        difference = record["differences"].get(name, {}).get(primary)
        text = ""
        if difference:
            text = f"{difference['verdict']} ({difference['value']:+.2f}, {difference['low']:+.2f} to {difference['high']:+.2f})"
        out.append((names.get(name, name.replace("_", " ")), record["models"][name]["metrics"], text))
    return out


def _one_patient(run: Run, found: Patients, matrix: CellsByConcepts | None) -> OnePatient | None:
    """The patient of the last class on which the model is least sure out of fold and still right; else the first."""
    predictions = found.classification["predictions"]["concept_profile"]
    last = found.classification["classes"][-1]
    own = [p for p in predictions if p["true"] == last] or predictions
    if not own:
        return None
    right = [p for p in own if p["predicted"] == p["true"]] or own
    chosen = min(right, key=lambda p: (p["probabilities"][p["true"]], p["patient"]))
    explained = contributions(found.model, found.profiles, chosen["patient"])
    k = int(np.argmax(explained.probabilities))
    name = explained.classes[k]
    table = explained.for_class(name)
    strongest = table.reindex(table["contribution"].abs().sort_values(ascending=False, kind="stable").index)
    shown = pd.concat(
        [
            strongest[strongest["contribution"] > 0].head(_N_REASONS),
            strongest[strongest["contribution"] < 0].head(_N_REASONS),
        ]
    )
    widest = float(shown["contribution"].abs().max()) or 1.0
    reasons = [
        Reason(
            int(row["latent"]), run.title(int(row["latent"])), on_cell(run, run.index, int(row["latent"])), float(row["value"]), float(row["cohort_mean"]), float(row["contribution"]),
            100 * abs(float(row["contribution"])) / widest,
            _pictures(run, matrix, int(row["latent"]),
                      _cells_with(matrix, int(row["latent"]), "patient", chosen["patient"], n=3,
                                  above=_threshold(found, int(row["latent"])))),
        )
        for row in shown.to_dict("records")
    ]  # fmt: skip
    rest = float(table["contribution"].sum() - shown["contribution"].sum())
    return OnePatient(
        chosen["patient"], chosen["true"], name, float(explained.probabilities[k]), float(chosen["probabilities"][name]),
        float(explained.logits[k]), float(explained.intercepts[k]), len(table) - len(shown), rest, reasons,
    )  # fmt: skip


def _scatter(profiles: Any, table: pd.DataFrame, target: str) -> Scatter | None:
    """The last two diagnoses against each other."""
    names = sorted({str(v) for v in profiles.obs[target]})
    if len(names) < 2:
        return None
    x_name, y_name = names[-2:]
    X = np.asarray(profiles.X, np.float64)
    x, y = (X[(profiles.obs[target] == n).to_numpy()].mean(0) for n in (x_name, y_name))
    across, up = LogAxis.over(x, _BOX[0], _BOX[2]), LogAxis.over(y, _BOX[3], _BOX[1])
    found = {n: set(table[(table["diagnosis"] == n) & (table["q"] < FDR)]["latent"]) for n in (x_name, y_name)}
    dots, hits = [], []
    for i in np.flatnonzero((x > 0) | (y > 0)):
        kind = "x" if i in found[x_name] else "y" if i in found[y_name] else ""
        dots.append((across.at(x[i]), up.at(y[i]), kind, f"Concept {i}: {x[i]:.1%} against {y[i]:.1%} of cells"))
        if kind:
            hits.append((across.at(x[i]), up.at(y[i]), int(i)))
    dots.sort(key=lambda d: d[2])
    hits.sort(key=lambda h: (-abs(h[0] - _BOX[0] - _BOX[3] + h[1]), h[2]))  # the farthest from the diagonal first
    low, high = max(across.low, up.low), min(across.high, up.high)
    diagonal = (across.at(10**low), up.at(10**low), across.at(10**high), up.at(10**high))
    return Scatter(
        x_name, y_name, *_SIDE, _BOX, dots, names_beside(hits, _BOX, 12), across.ticks(), up.ticks(), diagonal
    )
