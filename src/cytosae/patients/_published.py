"""Patients and diseases as the published code counts them, under the name ``cytosae-2025`` only."""

from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
import pandas as pd

from cytosae._errors import CytosaeError, nearest
from cytosae.cells import Cells
from cytosae.concepts import ConceptIndex, patient_barcodes
from cytosae.storage import created_by

SEMANTICS = "cytosae-2025"
#: A token fires above this code.
THRESHOLD = 0.2


def published_profiles(index: ConceptIndex, cells: Cells, *, target: str = "diagnosis") -> Any:
    """The published "barcodes": tokens of a patient's images with a code above 0.2, divided by the number of latents.

    The divisor is a defect of the published code (it should be the patient's images): the numbers grow with the number of
    images and are good for checking published results only. `profile_patients` counts correctly.

    Parameters
    ----------
    index
        A concept index in the ``cytosae-2025`` semantics.
    cells
        The table it was made over, with the patients' target.
    target
        Column of the disease.

    Returns
    -------
    AnnData, patients x concepts: ``X`` float64; ``obs``: patient and target; ``varm["diseases"]``: the mean over each
    disease's patients, as a table; ``uns["cytosae"]``: the record.

    Raises
    ------
    CytosaeError
        The index is of another semantics, counted with another threshold, of other cells, or has no patients.
    """
    import anndata

    if index.semantics != SEMANTICS:
        raise CytosaeError(
            f"{index.folder} is not in the {SEMANTICS} semantics; make it with 'cytosae index --semantics {SEMANTICS}'."
        )
    if index.manifest["inputs"].get("cells") != cells.hash:
        raise CytosaeError(f"{index.folder} was not made over this table; give the one it was made over.")
    if target not in cells.frame.columns:
        raise CytosaeError(f"The cells have no column {target!r}{nearest(target, cells.frame.columns)}.")
    statistics = index.statistics()
    if "patient" not in statistics.groups or THRESHOLD not in statistics.thresholds:
        raise CytosaeError(
            f"{index.folder} has no patients, or tokens above {THRESHOLD} were not counted; make it again over cells with patients."
        )
    names = list(statistics.groups["patient"])
    X = patient_barcodes(statistics, THRESHOLD)
    of_patient = cells.frame[cells.frame["patient"].notna()].groupby("patient")[target].first()
    obs = pd.DataFrame({"patient": names}, index=pd.Index(names, name="name"))
    obs[target] = of_patient.reindex(names).astype(object).to_numpy(object)
    known = obs[target].notna().to_numpy(bool)
    diseases = sorted(set(obs[target][known]))
    by_disease = {d: X[(obs[target] == d).to_numpy(bool)].mean(0) for d in diseases}
    var = pd.DataFrame({"latent": np.arange(X.shape[1])}, index=pd.Index([str(i) for i in range(X.shape[1])]))
    obs[target] = obs[target].where(obs[target].notna(), "").astype(str).astype("category")
    record = {"kind": "profiles", "version": 1, "created_by": created_by(), "semantics": SEMANTICS, "target": target,
              "threshold": THRESHOLD, "divisor": f"the number of latents ({X.shape[1]}), as published"}  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return anndata.AnnData(X=X, obs=obs, var=var, varm={"diseases": pd.DataFrame(by_disease, index=var.index)},
                               uns={"cytosae": json.dumps(record, sort_keys=True)})  # fmt: skip
