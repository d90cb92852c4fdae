"""Small cohorts in memory, a table of real-looking cells, and the specification of a small cohort."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp

from cytosae.cells import SCHEMA, write_cells
from cytosae.patients import Cohort

TYPES = ("basophil", "lymphocyte", "monocyte", "neutrophil")


def memory_cohort(
    seed: int = 0, *, n_patients: int = 24, n_cells: int = 20, n_latents: int = 60, marked: int = 3, n_classes: int = 3
) -> Cohort:
    """Cells with noise concepts; in patients of the last diagnosis `marked` cells carry concept 0 strongly."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(n_patients), n_cells)
    group = np.arange(n_patients) % n_classes
    values = rng.gamma(2.0, 1.0, (len(owner), n_latents)) * (rng.random((len(owner), n_latents)) < 0.3)
    values[:, 0] *= rng.random(len(owner)) < 0.15
    for patient in np.flatnonzero(group == n_classes - 1):
        values[np.flatnonzero(owner == patient)[:marked], 0] = 20 + rng.random(marked)
    labels = rng.choice(TYPES, len(owner)).astype(object)
    patients = pd.DataFrame(
        {
            "patient": [f"p{i:02d}" for i in range(n_patients)],
            "diagnosis": [f"simulated {'ABCDE'[g]}" for g in group],
            "n_cells": n_cells,
            "simulated": True,
        }
    )
    return build(patients, owner, values, labels, rng.normal(size=(len(owner), 8)))


def build(patients, owner, values, labels, tokens):
    values = values.astype(np.float32)
    n_latents = values.shape[1]
    concepts = pd.DataFrame({"latent": np.arange(n_latents), "frequency": (values > 0).mean(0)})
    return Cohort(
        patients, "diagnosis", np.asarray(owner, np.int64), sp.csr_matrix(values), sp.csr_matrix(values / 4),
        sp.csr_matrix((values > 0) / np.float32(16)), labels, concepts, tokens, {"simulated": True},
    )  # fmt: skip


SPEC = {
    "name": "small", "cells_per_patient": 10, "from": ["split=test"],
    "diagnoses": [
        {"code": "A", "name": "even", "n_patients": 8,
         "mixture": {"neutrophil": 2, "lymphocyte": 2, "monocyte": 1, "basophil": 0.5}},
        {"code": "B", "name": "marked", "n_patients": 8,
         "mixture": {"neutrophil": 1, "lymphocyte": 2, "monocyte": 2, "basophil": 0.5}, "fixed": {"fine_label": {"rare": 3}}},
    ],
}  # fmt: skip


def source_table(path: Path, n: int = 600, seed: int = 0) -> Path:
    """Real-looking cells: four labels, a fine label, half of them in training, two that cannot be read."""
    rng = np.random.default_rng(seed)
    label = rng.choice(TYPES, n)
    frame = pd.DataFrame({name: [None] * n for name in SCHEMA.names})
    frame["cell_id"], frame["image"] = np.arange(n) + 7, [f"{i}.png" for i in range(n)]
    frame["sha256"], frame["label"], frame["dataset"] = [f"{i:064x}" for i in range(n)], label, "made"
    frame["split"], frame["status"] = np.where(np.arange(n) % 4 == 0, "train", "test"), "ok"
    frame.loc[[5, 9], ["status", "reason"]] = ["quarantined", "cut short"]
    frame["fine_label"] = np.where((label == "basophil") & (np.arange(n) % 3 == 0), "rare", label)
    write_cells(path, frame, root=str(path.parent), inputs={}, config={})
    return path
