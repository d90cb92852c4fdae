"""Each stage against what bounds it or what it replaces, as ratios of interleaved runs.

Usage: ``python benchmarks/bench_stages.py [--repeats 5] [--threads 2] [--out benchmarks/results/stages.json]``

- tokens: decoding, forward pass and storing of 256 bundled cells against the bare forward pass on decoded images, at the
  same precision and batch.
- fit: one step (gradients written out) against the dense reference by automatic differentiation in float32, at the size of
  the recipe ``small`` and at 384 -> 6,144 with 4,096 tokens. Optimiser and decoder norm are the same on both sides and are
  left out.
- index: the pass over stored tokens against the bare float32 product of tokens and encoder, 768 latents.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench_decode import machine
from cytosae import SparseAutoencoder, extract_tokens, index_concepts, load_backbone
from cytosae.cells import Cells, build_cells, bundled_path
from cytosae.sae.ops import choose
from cytosae.sae.ops.reference import ReferencePath
from cytosae.tokens import TokenStore, load_images
from cytosae.training import TokenFacts, Trainer, has_bfloat16, override

N_CELLS = 256


def interleaved(first: Callable[[], object], second: Callable[[], object], repeats: int) -> dict[str, float]:
    """Median, smallest and largest ratio of the time of `second` to that of `first`: above 1, `first` is faster."""
    first(), second()
    ratios = []
    for _ in range(repeats):
        times = []
        for call in (first, second):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        ratios.append(times[1] / times[0])
    return {"median": round(statistics.median(ratios), 3), "low": round(min(ratios), 3), "high": round(max(ratios), 3)}


def bench_tokens(cells: Cells, folder: Path, repeats: int) -> dict[str, Any]:
    precision = "bfloat16" if has_bfloat16("cpu") else "float32"
    backbone = load_backbone("dinov2-s", precision=precision)
    images = load_images(cells.ok, cells.root, backbone)
    number = iter(range(10**6))

    def ours() -> None:
        extract_tokens(cells, backbone, folder / f"tokens-{next(number)}")

    def bare() -> None:
        for start in range(0, len(images), 16):
            backbone.tokens(images[start : start + 16])

    return {"what": f"share of the bare {precision} forward pass", **interleaved(ours, bare, repeats)}


def bench_fit(d_in: int, latents: int, batch: int, k: int, repeats: int) -> dict[str, Any]:
    x = torch.randn(batch, d_in, generator=torch.Generator().manual_seed(0))
    recipe = override("default", [f"expansion={latents // d_in}", f"k={k}", "warmup=0", "decay=0"])
    fast, dense = (
        Trainer(recipe, 0, TokenFacts.of(x), path, 10**6) for path in (choose("cpu", d_in, latents), ReferencePath())
    )
    step = iter(range(10**6))
    what = f"times the dense reference, {d_in} -> {latents:,}, {batch:,} tokens, k = {k}"
    pair = interleaved(lambda: fast.step(x, next(step)), lambda: dense.step(x, next(step)), repeats)
    return {"what": what, "path": fast.path.name, **pair}


def bench_index(cells: Cells, folder: Path, repeats: int) -> dict[str, Any]:
    store = TokenStore(folder / "tokens-0")
    g = torch.Generator().manual_seed(0)
    W = torch.nn.functional.normalize(torch.randn(store.d_in, 768, generator=g), dim=0)
    sae = SparseAutoencoder(W, torch.zeros(768), W.T.contiguous(), torch.zeros(store.d_in), "threshold",
                            torch.full((768,), 1.5), hash="bench")  # fmt: skip
    number = iter(range(10**6))

    def ours() -> None:
        index_concepts(cells, sae, folder / f"index-{next(number)}", store=store)

    def bare() -> None:
        for tokens in store.chunks(np.arange(store.n_rows), 16, kind="patch"):
            tokens.flatten(0, 1) @ W

    return {"what": "share of the bare float32 product over the same tokens", **interleaved(ours, bare, repeats)}


def main() -> None:
    """Run all, print and write them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "stages.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = build_cells(bundled_path(), folder / "cells.parquet")
        cells = Cells(whole.frame.head(N_CELLS), whole.root, whole.hash)
        results = {
            "tokens": bench_tokens(cells, folder, arguments.repeats),
            "fit small": bench_fit(384, 768, 512, 8, arguments.repeats),
            "fit 6,144": bench_fit(384, 6144, 4096, 32, arguments.repeats),
            "index": bench_index(cells, folder, arguments.repeats),
        }
    for stage, result in results.items():
        print(f"{stage:10} {result['median']:.2f} ({result['low']:.2f} to {result['high']:.2f}) {result['what']}")
    record = {"machine": machine(), "threads": arguments.threads, "repeats": arguments.repeats, "results": results}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", "utf-8")


if __name__ == "__main__":
    main()
