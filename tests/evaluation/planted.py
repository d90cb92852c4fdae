"""A small world of known answers: cells whose tokens are sums of planted directions, and the dictionary that knows them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from cytosae.cells import SCHEMA, Cells, read_cells, write_cells
from cytosae.evaluation import Context, open_context
from cytosae.sae import KIND as SAE
from cytosae.sae import SparseAutoencoder, load_sae, save_sae
from cytosae.storage import commit_folder
from cytosae.tokens import TokenStore

TYPES = ("eosinophil", "lymphocyte", "monocyte")
D, N_LATENTS, GRID = 48, 48, (3, 3)


@dataclass
class World:
    folder: Path
    cells: Cells
    store: TokenStore
    sae: SparseAutoencoder
    random: SparseAutoencoder

    @property
    def arguments(self) -> dict[str, object]:
        return {"cells": self.folder / "cells.parquet", "tokens": [self.folder / "tokens"]}

    def sae_of(self, folder: Path) -> SparseAutoencoder:
        return load_sae(folder / "sae")


def directions(seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(D, N_LATENTS, generator=g))[0].T.contiguous()


def make_world(folder: Path, n: int = 700, seed: int = 0, ids: np.ndarray | None = None, noise: float = 0.05) -> World:
    """Directions 0 to 2 mark the cell types, 3 and 4 the vacuole (yes, no), 5 and 6 the size (big, small)."""
    rng = np.random.default_rng(seed)
    W = directions().numpy()
    kind = rng.integers(0, 3, n)
    vacuole, big = rng.random(n) < 0.4, rng.random(n) < 0.5
    n_tokens = 1 + GRID[0] * GRID[1]
    strength = np.zeros((n, n_tokens, N_LATENTS))
    for i in range(n):
        for latent in (kind[i], 3 + (not vacuole[i]), 5 + (not big[i])):
            strength[i, 1 + rng.choice(n_tokens - 1, 3, replace=False), latent] = rng.uniform(2, 4, 3)
        others = rng.integers(7, N_LATENTS, (n_tokens, 3))
        strength[i, np.arange(n_tokens)[:, None], others] += rng.uniform(1, 4, others.shape)
    strength[:, 0, :7] = strength[:, 1:, :7].max(1)
    tokens = strength @ W + noise * rng.normal(size=(n, n_tokens, D)) + 0.5
    ids = np.arange(n) if ids is None else ids
    order = np.argsort(ids)
    split = rng.choice(["train", "val", "test"], n, p=[0.5, 0.35, 0.15])
    frame = pd.DataFrame({name: [None] * n for name in SCHEMA.names} | {
        "cell_id": ids, "image": [f"{i}.png" for i in range(n)], "sha256": [f"{i:064x}" for i in range(n)], "width": 30,
        "height": 30, "mode": "RGB", "label": np.array(TYPES)[kind], "dataset": "acevedo_pbc", "status": "ok",
        "wbcatt_split": split, "cytoplasm_vacuole": np.where(vacuole, "yes", "no"), "cell_size": np.where(big, "big", "small"),
    })  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    write_cells(folder / "cells.parquet", frame.iloc[order], root=str(folder), inputs={}, config={})
    write_store(folder / "tokens", tokens[order].astype("<f4"), ids[order])
    good = planted_sae()
    g = torch.Generator().manual_seed(77)
    R = torch.nn.functional.normalize(torch.randn(N_LATENTS, D, generator=g), dim=1)
    random = SparseAutoencoder(R.T.contiguous(), torch.full((N_LATENTS,), -1.5), R, torch.full((D,), 0.5))
    for name, sae in (("sae", good), ("random", random)):
        with commit_folder(folder / name, kind=SAE, version=1, inputs={}, config={}) as (out, _):
            save_sae(out, sae, {"recipe": name, "token_kinds": ["patch"]})
    return World(folder, read_cells(folder / "cells.parquet"), TokenStore(folder / "tokens"), good, random)


def planted_sae() -> SparseAutoencoder:
    """Reads the planted strengths: the directions are orthonormal."""
    W = directions()
    threshold = torch.full((N_LATENTS,), 0.8)
    return SparseAutoencoder(W.T.contiguous(), torch.zeros(N_LATENTS), W, torch.full((D,), 0.5), "threshold", threshold)


def write_store(folder: Path, tokens: np.ndarray, ids: np.ndarray, grid: tuple[int, int] = GRID) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with commit_folder(folder, kind="tokens", version=2, inputs={}, config={}) as (out, extra):
        (out / "tokens-00000.bin").write_bytes(np.ascontiguousarray(tokens).tobytes())
        pq.write_table(pa.table({"cell_id": ids.astype(np.int64)}), out / "rows.parquet")
        extra |= {"n_rows": len(ids), "n_tokens": tokens.shape[1], "n_prefix": 1, "grid": list(grid), "d_in": tokens.shape[2],
                  "token_kinds": ["class"] + ["patch"] * (tokens.shape[1] - 1), "dtype": "float32", "layer": -2,
                  "backbone": {"name": "stand-in", "sha256": "0" * 64}, "preprocessing": {}, "precision": "float32"}  # fmt: skip


def context_of(world: World, out: Path, sae: str = "sae", n_draws: int = 100, **options: Any) -> Context:
    return replace(open_context(world.folder / sae, out, **world.arguments, **options), n_draws=n_draws, n_repeats=2)  # type: ignore[arg-type]
