"""Cells with images and masks: a nucleus at a place of its own, tokens that know it, and tokens that know only the place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from planted import N_LATENTS, D, directions, planted_sae, write_store

from cytosae.cells import SCHEMA, read_cells, write_cells
from cytosae.concepts._stream import StoredTokens
from cytosae.evaluation import Context
from cytosae.sae import SparseAutoencoder
from cytosae.storage import hash_bytes
from cytosae.tokens import TokenStore

SIDE = 24


def place_context(
    folder: Path, n: int = 60, grid: tuple[int, int] = (3, 3), *, seed: int = 0, order: bool = False
) -> Context:
    """Latent 0 lies on the nucleus and 1 on the cytoplasm, wherever they are; 2 in the first patch of every cell of one
    slide; 3 in the middle patch of every cell; the others anywhere."""  # fmt: skip
    rng = np.random.default_rng(seed)
    side, patch, n_patches = SIDE, SIDE // grid[0], grid[0] * grid[1]
    middle = grid[0] // 2 * grid[1] + grid[1] // 2
    (folder / "i").mkdir(parents=True, exist_ok=True)
    strength = np.zeros((n, 1 + n_patches, N_LATENTS))
    rows = []
    for i in range(n):
        # mostly in the middle, as in real images
        place = middle if rng.random() < 0.5 else int(rng.integers(1, n_patches))
        beside = 1 + int((place - 1 + rng.integers(1, n_patches - 1)) % (n_patches - 1))
        mask = np.zeros((side, side), np.uint8)
        pixels = np.full((side, side, 3), (235, 225, 225), np.uint8)
        for where, grey, colour in ((place, 255, (80, 40, 120)), (beside, 128, (170, 150, 200))):
            r, c = divmod(where, grid[1])
            box = np.s_[r * patch : (r + 1) * patch, c * patch : (c + 1) * patch]
            mask[box], pixels[box] = grey, colour
        slide = i % 2
        pixels = np.clip(pixels + rng.normal(0, 2, pixels.shape) + (0 if slide else (0, -14, 6)), 0, 255).astype(
            np.uint8
        )
        strength[i, 1 + place, 0] = rng.uniform(2, 4)
        strength[i, 1 + beside, 1] = rng.uniform(2, 4)
        strength[i, 1, 2] = 3.0 * slide
        strength[i, 1 + middle, 3] = 3.0
        for t in range(1, 1 + n_patches):
            strength[i, t, rng.integers(4, N_LATENTS, 2)] += rng.uniform(1, 3, 2)
        for name, array in ((f"{i}.png", pixels), (f"{i}-mask.png", mask)):
            Image.fromarray(array).save(folder / "i" / name)
        rows.append({"image": f"i/{i}.png", "mask": f"i/{i}-mask.png", "patient": f"s{slide}-{i // 6}", "slide": None,
                     "sha256": hash_bytes((folder / "i" / f"{i}.png").read_bytes())})  # fmt: skip
    tokens = strength @ directions().numpy() + 0.03 * rng.normal(size=(n, 1 + n_patches, D)) + 0.5
    frame = pd.DataFrame({name: [None] * n for name in SCHEMA.names} | {
        "cell_id": np.arange(n), "width": side, "height": side, "mode": "RGB", "status": "ok",
        "label": np.where(rng.random(n) < 0.5, "monocyte", "lymphocyte"), "dataset": "made",
        **{k: [r[k] for r in rows] for k in rows[0]},
    })  # fmt: skip
    if order:
        frame = frame.sample(frac=1, random_state=1)
    write_cells(folder / "cells.parquet", frame, root=str(folder), inputs={}, config={})
    write_store(folder / "tokens", tokens.astype("<f4"), np.arange(n), grid)
    cells = read_cells(folder / "cells.parquet")
    store = StoredTokens([TokenStore(folder / "tokens")], [None])
    return Context(
        cells, cells.ok.reset_index(drop=True), store, planted_sae(), folder / "card", n_draws=60, n_random=1
    )


def with_sae(context: Context, sae: SparseAutoencoder) -> Context:
    return replace(context, sae=sae)


def only(latents: list[int]) -> SparseAutoencoder:
    """The planted dictionary with all latents but a few silenced."""
    sae = planted_sae()
    assert sae.threshold is not None
    threshold = torch.full_like(sae.threshold, 1e6)
    threshold[latents] = sae.threshold[latents]
    return replace(sae, threshold=threshold)
