"""One page a new patient, read in two minutes: the answer, what speaks for and against down to the patch, what is unusual."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cytosae._errors import CytosaeError
from cytosae._progress import Meter, say
from cytosae.backbones import Layer
from cytosae.cells import Cells, ImageReader, cell_share_of_patches, decode_image, estimate_cell, read_cells
from cytosae.concepts import ConceptIndex, backbone_of, check_tokens, concept_maps, named_concepts
from cytosae.evaluation import on_cell_share
from cytosae.patients import (
    Likeness,
    Patients,
    Prediction,
    predict_patients,
    prediction_record,
    read_patients,
)
from cytosae.reports._pictures import Overlay, cell_name, overlay
from cytosae.reports._report import _environment
from cytosae.sae import load_sae
from cytosae.storage import commit_folder, created_by, same_work, write_json
from cytosae.tokens import TokenStore, encode_images

KIND, VERSION = "predictions", 1
_N_REASONS, _N_UNUSUAL, _N_PICTURES = 4, 4, 4


@dataclass(frozen=True)
class Line:
    """A concept on the page; `width` in per cent of the largest bar, `on_cell` the share of it on the cells shown (NaN: not known)."""

    latent: int
    title: str
    value: float
    usual: float
    amount: float
    width: float
    highest: float
    on_cell: float
    pictures: list[Overlay]


@dataclass(frozen=True)
class PatientPage:
    """All that the template draws."""

    prediction: Prediction
    bars: list[tuple[str, float]]
    lines: list[Line]
    n_other: int
    others: float
    logit: float
    intercept: float
    unusual: list[Line]
    n_unusual: int


class Views:
    """Pictures and concept maps of the cells of a table; without a dictionary pictures alone.

    Parameters
    ----------
    cells
        The table.
    sae, store, weights, device
        The dictionary's folder; tokens of these cells, computed from the few images shown where None; weight file of the
        backbone; device.
    """

    def __init__(
        self, cells: Cells, sae: Path | str | None, store: TokenStore | None, weights: Path | str | None, device: str
    ) -> None:
        self._rows, self._root, self._reader = cells.frame.set_index("cell_id"), cells.root, ImageReader(cells.root)
        self._sae = None if sae is None else load_sae(sae)
        self._store, self._backbone = store, None
        self._layer: Layer = 0
        if self._sae is not None and store is not None:
            check_tokens(self._sae, store)
        elif self._sae is not None:
            self._backbone, self._layer = backbone_of(self._sae, device, weights)
        self._grid = (0, 0) if self._backbone is None else self._backbone.grid
        self._tokens: dict[int, Any] = {}

    @property
    def has_maps(self) -> bool:
        """Whether patches can be shown."""
        return self._sae is not None

    def pictures(self, latent: int, cell_ids: Sequence[int], values: Sequence[float]) -> list[Overlay]:
        """The cells with the concept's map over them."""
        maps = [self._map(cell, latent) for cell in cell_ids]
        top = max((float(m.max()) for m in maps), default=0.0)
        return [
            overlay(
                self._pixels(cell),
                m,
                top,
                self._label(cell),
                f"{cell_name(cell, self._rows.loc[cell, 'image'])}, activation {value:.2f}",
            )
            for cell, m, value in zip(cell_ids, maps, values, strict=True)
        ]

    def on_cell(self, latent: int, cell_ids: Sequence[int]) -> float:
        """The share of a concept that lies on these cells, by a simple estimate of where they are; NaN without maps."""
        if self._sae is None or not cell_ids:
            return float("nan")
        grid = self._store.grid if self._store is not None else self._grid
        shares = [cell_share_of_patches(estimate_cell(self._pixels(cell)), grid) for cell in cell_ids]
        return on_cell_share(np.stack([self._map(cell, latent) for cell in cell_ids]), np.stack(shares))

    def prepare(self, cell_ids: Sequence[int]) -> None:
        """Compute the tokens of these cells in one go, where no store holds them."""
        if self._backbone is None:
            return
        wanted = [c for c in dict.fromkeys(cell_ids) if c not in self._tokens]
        if wanted:
            frame = self._rows.loc[wanted].reset_index()
            done = 0
            for tokens in encode_images(frame, self._root, self._backbone, self._layer):
                for row in tokens:
                    self._tokens[wanted[done]] = row[self._backbone.n_prefix :].float()
                    done += 1

    def _pixels(self, cell_id: int) -> npt.NDArray[np.uint8]:
        row = self._rows.loc[cell_id]
        pixels: npt.NDArray[np.uint8] = decode_image(self._reader.read(row["image"], row["sha256"])).pixels
        return pixels

    def _label(self, cell_id: int) -> str:
        label: Any = self._rows.loc[cell_id, "label"]
        return label if isinstance(label, str) else f"cell {cell_id}"

    def _map(self, cell_id: int, latent: int) -> npt.NDArray[Any]:
        if self._sae is None:
            return np.zeros((1, 1), np.float32)
        if self._store is not None:
            tokens, grid = self._store.read(self._store.rows_of([cell_id]), kind="patch")[0].float(), self._store.grid
        else:
            tokens, grid = self._tokens[cell_id], self._grid
        maps: npt.NDArray[Any] = concept_maps(self._sae, tokens, [latent], grid)
        return np.asarray(maps[0])


def write_predictions(
    patients: Path | str,
    index: ConceptIndex | Path | str,
    cells: Cells | Path | str,
    out: Path | str,
    *,
    sae: Path | str | None = None,
    store: TokenStore | None = None,
    weights: Path | str | None = None,
    reference: str | None = None,
    named_in: ConceptIndex | Path | str | None = None,
    device: str = "cpu",
) -> list[Prediction]:
    """Judge new patients and write a folder: ``predictions.json``, a page a patient, and ``index.html`` that lists them.

    Parameters
    ----------
    patients
        The `patients` folder of the training cohort.
    index, cells
        A concept index over the new cells (made with ``--cells-matrix``), and their table.
    out
        The folder to write; an equal one is kept.
    sae, store, weights, device
        To show patches; see `Views`.
    reference
        Diagnosis of the training patients that new ones are compared with.
    named_in
        An index by the same dictionary whose names of concepts are shown (that of the training cohort); `index` where None.

    Raises
    ------
    CytosaeError
        See `cytosae.patients.predict_patients`; or the dictionary's backbone cannot be run; or `named_in` is of another
        dictionary.
    """
    trained = read_patients(patients)
    index = index if isinstance(index, ConceptIndex) else ConceptIndex(index)
    cells = cells if isinstance(cells, Cells) else read_cells(cells)
    found, likeness = predict_patients(trained, index, cells, reference=reference)
    names = _names(index, named_in)
    inputs = {"patients": trained.manifest.hash, "index": index.hash, "cells": cells.hash}
    config = {"reference": reference, "maps": sae is not None, "names": names}
    if same_work(Path(out), KIND, inputs, config):
        say(f"patients predict: {out} is there already")
        return found
    views = Views(cells, sae, store, weights, device)
    files = _file_names([p.patient for p in found])
    titles = _titles(trained, names)
    facts = _facts(trained, likeness, index, views)
    template = _environment().get_template("patient.html.j2")
    with commit_folder(Path(out), kind=KIND, version=VERSION, inputs=inputs, config=config) as (folder, extra):
        with Meter(len(found), "patients predict", "pages") as meter:
            for prediction, name in zip(found, files, strict=True):
                page = _page(prediction, trained, titles, views)
                (folder / name).write_text(template.render(page=page, facts=facts), "utf-8")
                meter.add(1)
        listing = _environment().get_template("predictions.html.j2")
        (folder / "index.html").write_text(
            listing.render(rows=list(zip(found, files, strict=True)), facts=facts), "utf-8"
        )
        write_json(folder / "predictions.json", {
            "kind": KIND, "version": VERSION, "note": "Research use only: nothing here is a diagnosis.",
            "simulated": trained.simulated, "target": trained.target, "classes": list(trained.model.classes),
            "temperature": facts["temperature"], "likeness": likeness.record, "inputs": inputs,
            "patients": [{**prediction_record(p), "page": n} for p, n in zip(found, files, strict=True)],
        })  # fmt: skip
        extra |= {"n_patients": len(found), "simulated": trained.simulated}
    return found


def _page(p: Prediction, trained: Patients, titles: Callable[[int], str], views: Views) -> PatientPage:
    explained = p.explained
    k = explained.classes.index(p.predicted)
    table = explained.for_class(p.predicted)
    strongest = table.reindex(table["contribution"].abs().sort_values(ascending=False, kind="stable").index)
    shown = pd.concat(
        [strongest[strongest["contribution"] * s > 0].head(_N_REASONS) for s in (1, -1)]
    )  # for, then against
    thresholds = trained.model.thresholds
    unusual = p.unusual.table.head(_N_UNUSUAL) if p.unusual is not None else pd.DataFrame({"latent": []})
    latents = [int(v) for v in dict.fromkeys([*shown["latent"], *unusual["latent"]])]
    carriers = {latent: _carriers(p, latent, float(thresholds[latent])) for latent in latents}
    views.prepare([c for cells, _ in carriers.values() for c in cells])
    pictures = {latent: views.pictures(latent, *carriers[latent]) for latent in latents}
    on_cell = {latent: views.on_cell(latent, carriers[latent][0]) for latent in latents}

    def lines(rows: pd.DataFrame, amount: str, usual: str, highest: str) -> list[Line]:
        widest = float(rows[amount].abs().max()) if len(rows) else 1.0
        return [
            Line(int(r["latent"]), titles(int(r["latent"])), float(r["value"]), float(r[usual]), float(r[amount]),
                 100 * abs(float(r[amount])) / (widest or 1.0), float(r[highest]), on_cell[int(r["latent"])],
                 pictures[int(r["latent"])])
            for r in rows.to_dict("records")
        ]  # fmt: skip

    order = np.argsort(-p.probabilities, kind="stable")
    return PatientPage(
        prediction=p, bars=[(explained.classes[i], float(p.probabilities[i])) for i in order],
        lines=lines(shown, "contribution", "cohort_mean", "cohort_mean"), n_other=len(table) - len(shown),
        others=float(table["contribution"].sum() - shown["contribution"].sum()),
        logit=float(explained.logits[k]), intercept=float(explained.intercepts[k]),
        unusual=lines(unusual, "z", "reference_mean", "reference_highest"),
        n_unusual=len(p.unusual.table) if p.unusual is not None else 0,
    )  # fmt: skip


def _carriers(p: Prediction, latent: int, above: float) -> tuple[list[int], list[float]]:
    """The patient's strongest cells that carry a concept as the profile counts it, and their values."""
    values = np.asarray(p.values[:, [latent]].todense()).ravel()
    order = [int(i) for i in np.argsort(-values, kind="stable")[:_N_PICTURES] if values[i] > max(above, 0.0)]
    return [int(p.cell_ids[i]) for i in order], [float(values[i]) for i in order]


def _names(index: ConceptIndex, named_in: ConceptIndex | Path | str | None) -> dict[str, str]:
    """Names of concepts by the digits of their number (keys of JSON)."""
    source = index if named_in is None else named_in if isinstance(named_in, ConceptIndex) else ConceptIndex(named_in)
    if source.manifest["inputs"].get("sae") != index.manifest["inputs"].get("sae"):
        raise CytosaeError(f"{source.folder} was made with another dictionary, so its names mean other concepts.")
    table = named_concepts(source)
    table = table[table["name"].notna()]
    return {str(latent): str(name) for latent, name in zip(table["latent"], table["name"], strict=True)}


def _titles(trained: Patients, names: dict[str, str]) -> Callable[[int], str]:
    """latent -> its name where it has one, else what its strongest cells in training were."""
    var = trained.profiles.var.set_index("latent")

    def title(latent: int) -> str:
        name = names.get(str(latent))
        if name is not None:
            return f"{name} (concept {latent})"
        label = var["top_label"].get(latent) if "top_label" in var else None
        return f"concept {latent}" + (f", strongest in training on {label}" if isinstance(label, str) and label else "")

    return title


def _facts(trained: Patients, likeness: Likeness, index: ConceptIndex, views: Views) -> dict[str, Any]:
    """What holds for all pages: how well the model does, on whom, and how the numbers were made."""
    record, facts = trained.classification, trained.facts
    metrics = record["models"]["concept_profile"]["metrics"]
    calibration = record["models"]["concept_profile"].get("calibration", {}).get("calibrated")
    return {
        "simulated": trained.simulated, "target": trained.target, "classes": record["classes"],
        "n_training": int(facts["n_patients"]), "by_class": {c: int((trained.profiles.obs[trained.target] == c).sum()) for c in record["classes"]},
        "balanced_accuracy": metrics["balanced_accuracy"], "chance": 1 / len(record["classes"]),
        "ece": calibration["ece"] if calibration else None, "temperature": float(facts.get("temperature", 1.0)),
        "threshold": likeness.threshold, "median": float(np.median(likeness.own)), "verdict": record["verdict"],
        "best_baseline": str(record["best_baseline"]).replace("_", " "),
        "setting": record["sae_saw_these_cells"]["setting"], "has_maps": views.has_maps,
        "inputs": {"patients": trained.manifest.hash, "index": index.hash}, "created_by": created_by(),
    }  # fmt: skip


def _file_names(patients: Sequence[str]) -> list[str]:
    """A file name of each patient: harmless characters only, each once."""
    out: list[str] = []
    for patient in patients:
        stem = re.sub(r"[^A-Za-z0-9._-]+", "_", patient).strip("._")[:80] or "patient"
        name, n = f"{stem}.html", 2
        while name.lower() in {"index.html", *(o.lower() for o in out)}:
            name, n = f"{stem}-{n}.html", n + 1
        out.append(name)
    return out
