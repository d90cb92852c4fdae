"""The `patients` folder: made whole from a cohort's table, index and tokens, and read back."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from cytosae._errors import CytosaeError
from cytosae._progress import say
from cytosae.cells import Cells
from cytosae.concepts import ConceptIndex
from cytosae.patients._classify import classify
from cytosae.patients._cohort import read_cohort
from cytosae.patients._designs import read_extras
from cytosae.patients._differential import DifferentialConfig, differential
from cytosae.patients._likeness import Likeness
from cytosae.patients._lineage import cells_seen
from cytosae.patients._linear import LinearModel, load_model, save_model
from cytosae.patients._mil import mil_is_there
from cytosae.patients._plan import FixedFolds
from cytosae.patients._profiles import profile_patients, read_profiles, write_profiles
from cytosae.patients._protocol import ClassifyConfig
from cytosae.storage import (
    Manifest,
    artifact_hash,
    commit_folder,
    read_manifest,
    read_table,
    same_work,
    write_json,
    write_table,
)
from cytosae.tokens import TokenStore

KIND, VERSION = "patients", 1
SIMULATED = "Simulated patients made of real cells: nothing here says anything about a disease."


@dataclass(frozen=True)
class Patients:
    """The artifact in memory.

    Attributes
    ----------
    profiles
        AnnData, patients x concepts (see `profile_patients`).
    differential
        One row a diagnosis and tested concept (see `cytosae.patients.differential`).
    classification
        The record of the cross-validation.
    model
        The final model of concept profiles, fitted on all patients.
    manifest
        How it was made.
    """

    profiles: Any
    differential: pd.DataFrame
    classification: dict[str, Any]
    model: LinearModel
    manifest: Manifest

    @property
    def simulated(self) -> bool:
        """Whether any patient is simulated."""
        return bool(self.manifest["simulated"])

    @property
    def facts(self) -> dict[str, Any]:
        """What `model.json` says of the model: its dictionary, temperature, likeness ..."""
        return dict(json.loads((self.manifest.folder / "model.json").read_text("utf-8")))

    @property
    def target(self) -> str:
        """The column told apart."""
        return str(self.manifest["config"]["target"])


def write_patients(
    index: ConceptIndex | Path | str,
    cells: Cells,
    out: Path | str,
    *,
    store: TokenStore | None = None,
    sae: Path | str | None = None,
    sae_cells: Cells | None = None,
    target: str = "diagnosis",
    classification: ClassifyConfig | None = None,
    comparison: DifferentialConfig | None = None,
    fixed: FixedFolds | None = None,
    exclude: Path | str | None = None,
) -> Patients:
    """Profiles, differential concepts, classification and final model of a cohort, in one folder.

    Parameters
    ----------
    index
        A concept index over `cells`, made with ``--cells-matrix``.
    cells
        The cohort's table.
    out
        The folder to write; an equal one is kept.
    store
        Tokens of these cells, for the baselines made of tokens.
    sae, sae_cells
        The dictionary, and the table it was trained on where that is another: to tell whether it saw these cells.
    target
        Column to tell apart.
    classification, comparison
        The protocols; `classification.rule` is how profiles are counted.
    fixed
        Folds from files, in place of drawn ones.
    exclude
        A ``technical.parquet`` of the same dictionary: concepts with a flag in it are neither tested nor fitted.

    Raises
    ------
    CytosaeError
        The parts do not belong together; a class has fewer patients than folds.
    """
    out = Path(out)
    index = index if isinstance(index, ConceptIndex) else ConceptIndex(index)
    protocol, comparison = classification or ClassifyConfig(), comparison or DifferentialConfig()
    seen = cells_seen(cells, index, sae, sae_cells, fixed.tested if fixed else None)
    inputs = {"cells": cells.hash, "index": index.hash, **({"tokens": store.hash} if store else {})}
    config = {"target": target, "classification": asdict(protocol), "differential": asdict(comparison),
              "semantics": "default", "sae_saw_these_cells": seen,
              "folds_from": fixed.record if fixed else None,
              "excluded_by": artifact_hash(Path(exclude)) if exclude else None,
              "torchmil": store is not None and mil_is_there()}  # fmt: skip
    if same_work(out, KIND, inputs, config):
        say(f"patients: {out} is there already")
        return read_patients(out)
    cohort = read_cohort(index, cells, store, target=target, exclude=exclude, means=False)  # the extras hold them
    with commit_folder(out, kind=KIND, version=VERSION, inputs=inputs, config=config) as (folder, extra):
        # first: a cohort too small for it is refused before anything else is done
        with TemporaryDirectory(prefix=".pooled-", dir=folder) as room:
            result = classify(cohort, protocol, fixed=fixed, extras=read_extras(cohort, cells, store, Path(room)))
        profiles = profile_patients(cohort, protocol.rule)
        say("patients: differential concepts")
        table = differential(profiles, comparison, cohort=cohort if comparison.layer is None else None)
        record = json.loads(profiles.uns["cytosae"])
        head = {"simulated": cohort.simulated, "note": SIMULATED if cohort.simulated else None,
                "sae_saw_these_cells": seen, "patients_without_cells": record["patients_without_cells"],
                "n_quarantined": cells.n_quarantined, "semantics": "default"}  # fmt: skip
        write_profiles(folder / "profiles.h5ad", profiles)
        write_table(
            folder / "differential.parquet", pa.Table.from_pandas(table, preserve_index=False), kind="differential",
            version=VERSION, inputs=inputs, atomic=False,
            config={**asdict(comparison), **head, "family": "all rows", "min_frequency": protocol.rule.min_frequency,
                    "n_concepts_filtered": record["n_concepts_filtered"], "target": target},
        )  # fmt: skip
        write_json(folder / "classification.json",
                   {"kind": "classification", "version": VERSION, **head, **result.record})  # fmt: skip
        save_model(folder, result.final, {
            **head, "target": target, "quantile": protocol.rule.quantile, "inputs": inputs, "sae": cohort.record["sae"],
            "n_patients": len(cohort.judged), "semantics": "default", "temperature": result.temperature,
            "likeness": Likeness.of(result.final, np.asarray(profiles.X)[cohort.judged]).record,
        })  # fmt: skip
        extra |= {**head, "n_patients": len(cohort.patients), "n_patients_judged": len(cohort.judged),
                  "n_concepts_filtered": record["n_concepts_filtered"],
                  "n_cells": cohort.record["n_cells"],
                  "n_cells_without_patient": cohort.record["n_cells_without_patient"]}  # fmt: skip
    return read_patients(out)


def read_patients(folder: Path | str) -> Patients:
    """Read a `patients` folder.

    Raises
    ------
    CytosaeError
        Missing, changed since it was written, or written by a newer or a much older program.
    """
    folder = Path(folder)
    manifest = read_manifest(folder, KIND, VERSION)
    table = read_table(folder / "differential.parquet", "differential", VERSION)[0].to_pandas()
    if "against" not in table:
        raise CytosaeError(
            f"{folder} was written before comparisons said what a diagnosis is compared with; run 'patients' again."
        )
    record = json.loads((folder / "classification.json").read_text("utf-8"))
    return Patients(read_profiles(folder / "profiles.h5ad"), table, record, load_model(folder), manifest)
