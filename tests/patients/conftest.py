"""A small cohort on disk with tokens, dictionary and index, made in a second."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from small_cohorts import SPEC, TYPES, source_table

from cytosae.cells import read_cells
from cytosae.concepts import index_concepts
from cytosae.sae import SparseAutoencoder, load_sae
from cytosae.sae._io import save_sae
from cytosae.storage import commit_folder, write_table
from cytosae.tokens import TokenStore


@dataclass(frozen=True)
class OnDisk:
    cells: Path
    tokens: Path
    sae: Path
    folder: Path


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


@pytest.fixture(scope="session")
def study(on_disk):
    """(cohort table, index folder) of a simulated cohort over the small study."""
    from cytosae.patients import parse_spec, simulate_cohort

    cohort = simulate_cohort(parse_spec(SPEC), read_cells(on_disk.cells), on_disk.folder / "cohort.parquet")
    index_concepts(
        cohort, load_sae(on_disk.sae), on_disk.folder / "index", store=TokenStore(on_disk.tokens), cells_matrix=True
    )
    return on_disk.folder / "cohort.parquet", on_disk.folder / "index"
