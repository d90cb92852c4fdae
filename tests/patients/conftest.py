"""Small cohorts: one in memory, and one on disk with tokens, dictionary and index, made in a second."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from cytosae.cells import SCHEMA, read_cells, write_cells
from cytosae.concepts import index_concepts
from cytosae.patients import Cohort
from cytosae.sae import SparseAutoencoder, load_sae
from cytosae.sae._io import save_sae
from cytosae.storage import commit_folder, write_table
from cytosae.tokens import TokenStore

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


@dataclass(frozen=True)
class OnDisk:
    cells: Path
    tokens: Path
    sae: Path
    folder: Path


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


@pytest.fixture(scope="session")
def on_disk(tmp_path_factory) -> OnDisk:
    folder = tmp_path_factory.mktemp("study")
    table = read_cells(source_table(folder / "cells.parquet"))
    rng = np.random.default_rng(1)
    ids = table.ok["cell_id"].to_numpy()
    means = {name: 2 * rng.normal(size=12) for name in (*TYPES, "rare")}
    tokens = np.stack([means[name] + rng.normal(size=(10, 12)) for name in table.ok["fine_label"]]).astype("<f4")
    head = {"n_rows": len(ids), "n_tokens": 10, "n_prefix": 1, "d_in": 12, "grid": [3, 3], "dtype": "float32",
            "layer": -2, "precision": "float32", "backbone": {"name": "none", "sha256": ""}, "preprocessing": {}}  # fmt: skip
    with commit_folder(folder / "tokens", kind="tokens", version=1, inputs={"cells": table.hash}, config={}) as (
        work,
        extra,
    ):
        tokens.tofile(work / "tokens-00000.bin")
        import pyarrow as pa

        write_table(work / "rows.parquet", pa.table({"cell_id": ids}), kind="token rows", version=1, atomic=False)
        extra |= head
    directions = torch.from_numpy(
        np.concatenate([np.stack(list(means.values())), rng.normal(size=(35, 12))]).astype(np.float32)
    )
    directions = torch.nn.functional.normalize(directions, dim=1)
    sae = SparseAutoencoder(
        directions.T.contiguous(), torch.zeros(40), directions, torch.zeros(12), "threshold", torch.full((40,), 4.0)
    )
    store = TokenStore(folder / "tokens")
    with commit_folder(
        folder / "sae", kind="sae", version=1, inputs={"cells": table.hash, "tokens": store.hash},
        config={"where": ["split=train"]},
    ) as (work, _):  # fmt: skip
        save_sae(work, sae, {"backbone": head["backbone"], "layer": -2, "preprocessing": {}})
    return OnDisk(folder / "cells.parquet", folder / "tokens", folder / "sae", folder)


SPEC = {
    "name": "small", "cells_per_patient": 10, "from": ["split=test"],
    "diagnoses": [
        {"code": "A", "name": "even", "n_patients": 8,
         "mixture": {"neutrophil": 2, "lymphocyte": 2, "monocyte": 1, "basophil": 0.5}},
        {"code": "B", "name": "marked", "n_patients": 8,
         "mixture": {"neutrophil": 1, "lymphocyte": 2, "monocyte": 2, "basophil": 0.5}, "fixed": {"fine_label": {"rare": 3}}},
    ],
}  # fmt: skip


@pytest.fixture(scope="session")
def study(on_disk):
    """(cohort table, index folder) of a simulated cohort over the small study."""
    from cytosae.patients import parse_spec, simulate_cohort

    cohort = simulate_cohort(parse_spec(SPEC), read_cells(on_disk.cells), on_disk.folder / "cohort.parquet")
    index_concepts(
        cohort, load_sae(on_disk.sae), on_disk.folder / "index", store=TokenStore(on_disk.tokens), cells_matrix=True
    )
    return on_disk.folder / "cohort.parquet", on_disk.folder / "index"
