"""FVU against L0 on held-out cells: `default` beside ReLU + L1, same latents, same tokens, three seeds, principal components beside.

Usage: ``python benchmarks/front.py TRAIN HELDOUT --out FOLDER [--part default|relu-l1] [--presentations N] ...``

TRAIN and HELDOUT are run folders with ``cells.parquet`` and ``tokens/``: the dictionary is trained on the cells of the one whose
data set is given by --where, and measured on those of the other. Everything resumes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cytosae import TokenStore, load_sae, read_cells
from cytosae._progress import enable_progress
from cytosae.cells import select
from cytosae.sae import pca_fvu
from cytosae.training import Member, fit_many, measure, override

TARGETS = (16, 32, 64, 128)


def members(part: str, out: Path, settings: list[str], values: list[str], seeds: list[int]) -> list[Member]:
    """One dictionary for each value of the sparsity and each seed."""
    key = "k" if part != "relu-l1" else "l1"
    return [
        Member(out / f"{part}-{key}-{value}-seed-{seed}", override(part, [*settings, f"{key}={value}"]), seed)
        for value in values
        for seed in seeds
    ]


def main() -> None:
    """Train what is missing, measure all, write ``front-PART.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", type=Path)
    parser.add_argument("heldout", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", default="default", help="a recipe")
    parser.add_argument(
        "--values", nargs="+", default=[str(k) for k in TARGETS], help="values of k, or of l1 for relu-l1"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", dest="settings", default=[])
    parser.add_argument("--where", default="dataset=acevedo")
    parser.add_argument("--heldout-where", default="dataset=acevedo_pbc")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    enable_progress()
    cells, store = read_cells(arguments.train / "cells.parquet"), TokenStore(arguments.train / "tokens")
    test_cells, test_store = read_cells(arguments.heldout / "cells.parquet"), TokenStore(arguments.heldout / "tokens")
    rows = test_store.rows_of(select(test_cells, [arguments.heldout_where])["cell_id"].to_numpy())
    chosen = members(arguments.part, arguments.out, arguments.settings, arguments.values, arguments.seeds)
    fit_many(store, cells, chosen, where=[arguments.where], heldout=())
    train_rows = store.rows_of(select(cells, [arguments.where])["cell_id"].to_numpy())
    sample = store.read(train_rows[:: max(1, len(train_rows) // 400)], kind="patch").flatten(0, 1)
    results: list[dict[str, Any]] = []
    for member in chosen:
        sae = load_sae(member.out)
        kept = arguments.out / f"{member.out.name}.heldout.json"
        of = {"sae": sae.hash, "tokens": test_store.hash, "n_cells": len(rows)}
        metrics = json.loads(kept.read_text("utf-8")) if kept.exists() else {}
        if metrics.pop("of", None) != of:
            metrics = measure(sae, test_store, rows, "patch", sample.float(), 0)
            kept.write_text(json.dumps({**metrics, "of": of}) + "\n", "utf-8")
        results.append(
            {"name": member.out.name, "k": member.recipe.k, "l1": member.recipe.l1, "seed": member.seed, **metrics}
        )
        print({k: v for k, v in results[-1].items() if k != "frequency_histogram"}, flush=True)
    pick = rows[np.linspace(0, len(rows) - 1, 400).astype(int)]
    test = test_store.read(pick, kind="patch").flatten(0, 1)
    record = {"part": arguments.part, "settings": arguments.settings, "results": results,
              "pca": {str(k): pca_fvu(sample, test, k) for k in TARGETS}}  # fmt: skip
    (arguments.out / f"front-{arguments.part}.json").write_text(json.dumps(record, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
