"""What a bf16 forward pass and a float16 store change in the codes and exemplars of a dictionary, on the bundled cells.

Usage: ``python benchmarks/bf16_downstream.py [--sae runs/demo/sae] [--cells 256] [--out benchmarks/results/bf16_downstream.json]``

The dictionary is that of --sae (the demo's, say), or one of the recipe ``small``, trained here on float32 tokens of the packaged
DINOv2-S. Its codes of the same cells are
then compared with those from tokens of a bf16 forward pass, and from float32 tokens rounded to float16 as the store rounds.
An exemplar is a cell, ranked by its largest code over the patches.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import cytosae
from bench_decode import machine
from bench_tokens import LAYER, THREADS, bundled_cells
from cytosae.backbones import load_backbone
from cytosae.cells import Cells
from cytosae.sae import SparseAutoencoder, load_sae
from cytosae.tokens import TokenStore, extract_tokens
from cytosae.training import fit, override

#: Cells encoded at once, and exemplars a concept.
CHUNK, TOP = 16, 10


def spread_cells(n: int) -> Cells:
    """`n` of the bundled cells, evenly over the table, so that every class is there."""
    cells = bundled_cells()
    chosen = np.unique(np.linspace(0, len(cells.frame) - 1, min(n, len(cells.frame))).astype(int))
    return Cells(cells.frame.iloc[chosen].reset_index(drop=True), cells.root)


def compare(sae: SparseAutoencoder, reference: TokenStore, other: TokenStore, rounded: bool) -> dict[str, Any]:
    """Codes of `other` (rounded to float16 where asked) against those of `reference`."""
    rows = np.arange(reference.n_rows)
    n_either = n_flipped = n_reference = 0
    errors, ranked = [], ([], [])  # type: ignore[var-annotated]
    chunks = (reference.chunks(rows, CHUNK, kind="patch"), other.chunks(rows, CHUNK, kind="patch"))
    for first, second in zip(*chunks, strict=True):
        codes = sae.encode(first), sae.encode(second.half().float() if rounded else second)
        on = codes[0] > 0, codes[1] > 0
        both = on[0] & on[1]
        n_reference += int(on[0].sum())
        n_either += int((on[0] | on[1]).sum())
        n_flipped += int((on[0] ^ on[1]).sum())
        errors.append(((codes[1][both] - codes[0][both]).abs() / codes[0][both]).numpy())
        for maxima, code in zip(ranked, codes, strict=True):
            maxima.append(code.amax(1).numpy())
    error = np.concatenate(errors)
    cells = np.concatenate(ranked[0]), np.concatenate(ranked[1])  # [cells, latents]
    concepts = np.flatnonzero((cells[0] > 0).sum(0) >= TOP)
    best = [np.argsort(-c[:, concepts], axis=0, kind="stable")[:TOP] for c in cells]
    changed = [len(set(best[0][:, i]) - set(best[1][:, i])) for i in range(len(concepts))]
    return {"active_codes": n_reference, "share_of_active_that_flip": float(f"{n_flipped / n_either:.3g}"),
            "median_relative_error": float(f"{np.median(error):.3g}"),
            "relative_error_p95": float(f"{np.quantile(error, 0.95):.3g}"), "concepts": len(concepts),
            "share_of_exemplars_that_change": float(f"{np.mean(changed) / TOP:.3g}"),
            "share_of_concepts_with_no_change": float(f"{np.mean(np.array(changed) == 0):.3g}")}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=256)
    parser.add_argument(
        "--sae", type=Path, help="a finished dictionary for block -2 of dinov2-s, in place of one trained here"
    )
    parser.add_argument("--set", action="append", default=[], help="a field of the recipe, as in 'cytosae fit --set'")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "bf16_downstream.json")
    given = parser.parse_args()
    torch.set_num_threads(THREADS)
    cells = spread_cells(given.cells)
    recipe = override("small", given.set)
    with tempfile.TemporaryDirectory() as folder:
        stores = {
            precision: extract_tokens(
                cells,
                load_backbone("dinov2-s", precision=precision),
                Path(folder) / precision,
                layer=LAYER,
                store="float32",
            )
            for precision in ("float32", "bfloat16")
        }
        sae = load_sae(given.sae) if given.sae else fit(stores["float32"], cells, recipe, Path(folder) / "sae", seed=0)
        exact, fast = stores["float32"], stores["bfloat16"]
        result = {
            "cytosae": cytosae.__version__, "machine": {**machine(), "threads": THREADS}, "cells": len(cells),
            "tokens": len(cells) * (exact.n_tokens - exact.n_prefix), "n_latents": sae.n_latents,
            "sae": given.sae.name if given.sae else "trained here", "recipe": sae.info.get("recipe"),
            "metrics": sae.info.get("metrics"),
            "bf16 forward, float32 store": compare(sae, exact, fast, rounded=False),
            "float32 forward, float16 store": compare(sae, exact, exact, rounded=True),
            "bf16 forward, float16 store": compare(sae, exact, fast, rounded=True),
        }  # fmt: skip
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
