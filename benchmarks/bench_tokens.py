"""Token extraction against the bare forward pass, its peak memory, and how well the order of training mixes.

Usage: ``python benchmarks/bench_tokens.py [STORE] [--parts vit-s vit-b compiled memory mixing] [--out benchmarks/results/tokens.json]``

- vit-s, vit-b: `extract_tokens` (decode, resize, forward, float16 store) as a share of the bare bf16 forward pass of the same
  blocks on images already in memory, in the same batches, in turns.
- compiled: seconds that compiling takes, the rate of compiled blocks over that of eager ones (in turns, one batch each, both
  networks in --precision), and the images after which it has paid.
- memory: peak resident memory of one process each for 1,000 and 4,000 cells. The bundled cells are repeated, and the
  network is one random block of ViT-S's width, so that the tokens have their real size and the run is short.
- mixing: over one epoch of a real STORE, distinct cells a batch and the variance of the batch means, both against an
  ideal shuffle, in both orders of `TokenStream`, and for whole cells a step; for `blocks` also the rate of reading.

Parts that are not run keep their former figures in the file.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

import cytosae
from bench_decode import machine
from cytosae.backbones import Backbone, Preprocessing, load_backbone, probe
from cytosae.cells import Cells, bundled_path, read_cells
from cytosae.cells._build import build_table
from cytosae.tokens import TokenStore, TokenStream, extract_tokens, load_images
from cytosae.tokens._extract import BATCH

THREADS, LAYER, MIXED = 2, -2, 4096
PARTS = ("vit-s", "vit-b", "compiled", "memory", "mixing")
#: Share of the tokens' bytes that the order ``blocks`` may hold, so that several blocks are needed.
SHARE_IN_MEMORY = 0.2


def bundled_cells(n: int | None = None) -> Cells:
    """The first `n` bundled cells; beyond their number they are repeated under new ids."""
    with tempfile.TemporaryDirectory() as folder:
        cells = read_cells(build_table(bundled_path(), Path(folder) / "cells.parquet", near_duplicates=False).path)
    frame = cells.ok
    frame = frame.iloc[np.arange(n or len(frame)) % len(frame)].reset_index(drop=True)
    return Cells(frame.assign(cell_id=np.arange(len(frame))), cells.root)


def random_backbone(name: str, precision: str = "bfloat16") -> Backbone:
    torch.manual_seed(0)
    model = (
        VisionTransformer(img_size=224, patch_size=14, embed_dim=384, depth=2, num_heads=6, num_classes=0)
        if name == "one block"
        else timm.create_model(name, pretrained=False, img_size=224, num_classes=0)
    )
    return Backbone(model, name=name, weights_sha256="", preprocessing=Preprocessing(side=224), precision=precision)


def speed(backbone: Backbone, n: int, rounds: int) -> dict[str, Any]:
    """Extraction's rate over the bare forward pass's, in turns."""
    cells = bundled_cells(n)
    images = load_images(cells.frame, cells.root, backbone)

    def bare() -> None:
        for start in range(0, n, BATCH):
            backbone.tokens(images[start : start + BATCH], LAYER)

    def extraction() -> None:
        with tempfile.TemporaryDirectory() as folder:
            extract_tokens(cells, backbone, Path(folder) / "tokens", layer=LAYER)

    shares, rates = [], []
    backbone.tokens(images[:BATCH], LAYER)
    for turn in range(rounds):
        times = {}
        for call in (bare, extraction) if turn % 2 else (extraction, bare):
            started = time.perf_counter()
            call()
            times[call] = time.perf_counter() - started
        shares.append(times[bare] / times[extraction])
        rates.append(n / times[extraction])
    return {"images": n, "rounds": rounds, "median": round(statistics.median(shares), 3),
            "lowest": round(min(shares), 3), "highest": round(max(shares), 3),
            "images_per_second_median": round(statistics.median(rates), 2)}  # fmt: skip


def compiled(backbone: Backbone, rounds: int) -> dict[str, Any]:
    """What compiling the blocks costs and gains."""
    images = probe(BATCH, backbone.preprocessing.side)
    started = time.perf_counter()
    backbone.compile(BATCH, LAYER)
    cost = time.perf_counter() - started
    times: dict[int, list[float]] = {0: [], BATCH: []}
    for turn in range(rounds):
        for backbone.compiled in (0, BATCH) if turn % 2 else (BATCH, 0):
            started = time.perf_counter()
            backbone.tokens(images, LAYER)
            times[backbone.compiled].append(time.perf_counter() - started)
    gains = [eager / other for eager, other in zip(times[0], times[BATCH], strict=True)]
    saved = (statistics.median(times[0]) - statistics.median(times[BATCH])) / BATCH
    return {"precision": backbone.precision, "rounds": rounds, "seconds_to_compile": round(cost, 1),
            "median": round(statistics.median(gains), 3), "lowest": round(min(gains), 3), "highest": round(max(gains), 3),
            "images_to_break_even": round(cost / saved) if saved > 0 else None}  # fmt: skip


def peak_of(n: int) -> None:
    """Extract from `n` cells and print this process's peak resident memory in MB."""
    torch.set_num_threads(THREADS)
    with tempfile.TemporaryDirectory() as folder:
        extract_tokens(bundled_cells(n), random_backbone("one block"), Path(folder) / "tokens", layer=LAYER)
    # not getrusage: its maximum is handed down from the process that started this one
    status = Path("/proc/self/status").read_text()
    print(next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024)


def memory() -> dict[str, Any]:
    peaks = {}
    for n in (1000, 4000):
        done = subprocess.run(
            [sys.executable, __file__, "--peak-of", str(n)], capture_output=True, text=True, check=True, env=os.environ
        )
        peaks[str(n)] = round(float(done.stdout.split()[-1]))
    return {
        "network": "one random block, 384 wide",
        "peak_mb": peaks,
        "growth": round(peaks["4000"] / peaks["1000"], 3),
    }


class RowNumbers(SimpleNamespace):
    """Stands where a store stands; each of its tokens is one number, the row it comes from."""

    def __init__(self, store: TokenStore) -> None:
        super().__init__(d_in=1, dtype="float32", folder=store.folder, grid=store.grid, sampled=store.sampled)
        self.patches, self.part = store.patches, store.part

    def read_tokens(self, rows: Any, places: Any) -> torch.Tensor:
        return torch.from_numpy(np.asarray(rows, np.float32))[:, None]


def mixing(store: TokenStore) -> dict[str, Any]:
    """Distinct cells a batch, and variance of the batch means, over one epoch; both against an ideal shuffle."""
    rows, n_patches = np.arange(store.n_rows), store.n_tokens - store.n_prefix
    n, token_bytes = store.n_rows * n_patches, store.d_in * (4 if store.dtype == "float32" else 2)
    total, square = np.zeros(store.d_in), 0.0
    for tokens in store.chunks(rows, 64, kind="patch", partial=True):
        flat = tokens.reshape(-1, store.d_in).double()
        total, square = total + flat.sum(0).numpy(), square + float((flat**2).sum())
    mean = total / n
    per_token = square / n - float(mean @ mean)
    ideal_variance = per_token / MIXED * (n - MIXED) / (n - 1)  # drawn without repetition
    missed = math.lgamma(n - n_patches + 1) - math.lgamma(n - n_patches - MIXED + 1)
    missed -= math.lgamma(n + 1) - math.lgamma(n - MIXED + 1)
    ideal_cells = store.n_rows * -math.expm1(missed)

    def of(means: list[np.ndarray[Any, Any]], distinct: list[int], **record: Any) -> dict[str, Any]:
        variance = float(((np.stack(means) - mean) ** 2).sum(1).mean())
        return {**record, "steps": len(means), "distinct_cells_mean": round(statistics.fmean(distinct), 1),
                "distinct_cells_over_ideal": round(statistics.fmean(distinct) / ideal_cells, 4),
                "variance_over_ideal": round(variance / ideal_variance, 3)}  # fmt: skip

    result: dict[str, Any] = {
        "cells": store.n_rows,
        "tokens": n,
        "batch": MIXED,
        "ideal_distinct_cells": round(ideal_cells, 1),
    }
    for name, held in (("permutation", n), ("blocks", int(SHARE_IN_MEMORY * n))):
        with (
            TokenStream(store, rows, batch=MIXED, memory_limit=held * token_bytes) as stream,
            TokenStream(cast(TokenStore, RowNumbers(store)), rows, batch=MIXED, memory_limit=held * 4) as numbers,
        ):
            if stream.record != numbers.record or stream.order != name:
                raise SystemExit(f"bench_tokens: the two streams differ ({stream.record}, {numbers.record})")
            steps = range(stream.n_steps_per_epoch)
            means = [stream.at(step).double().mean(0).numpy() for step in steps]
            distinct = [len(np.unique(numbers.at(step).numpy())) for step in steps]
            result[name] = of(means, distinct, **stream.record, share_in_memory=held / n)
        if name == "blocks":
            result[name]["tokens_per_second"] = reading(store, rows, held * token_bytes)
    means = list(_whole_cells(store, rows))
    result["whole_cells"] = of(means, [MIXED // n_patches] * len(means))
    return result


def reading(store: TokenStore, rows: np.ndarray[Any, Any], limit: int) -> int:
    """Tokens a second of one epoch in the order ``blocks``, from pages that the system may hold."""
    with TokenStream(store, rows, batch=MIXED, memory_limit=limit) as stream:
        started = time.perf_counter()
        for step in range(stream.n_steps_per_epoch):
            stream.at(step)
        return round(stream.n_steps_per_epoch * stream.batch / (time.perf_counter() - started))


def _whole_cells(store: TokenStore, rows: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
    """Batch means where a step takes whole cells in random order, as published training does."""
    a_step = MIXED // (store.n_tokens - store.n_prefix)
    shuffled = np.random.default_rng(0).permutation(rows)
    for start in range(0, len(rows) - a_step + 1, a_step):
        tokens = store.read(shuffled[start : start + a_step], kind="patch", partial=True)
        yield tokens.reshape(-1, store.d_in).double().mean(0).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", type=Path, nargs="?", help="a token store, for the part 'mixing'")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--precision", default="bfloat16", choices=("float32", "bfloat16"), help="of the part 'compiled'"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "tokens.json")
    parser.add_argument("--peak-of", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peak_of:
        return peak_of(given.peak_of)
    torch.set_num_threads(THREADS)
    result: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {}
    here = {"cytosae": cytosae.__version__, **machine(), "threads": THREADS}
    shares = result.setdefault("share_of_the_bare_forward", {})
    if "vit-s" in given.parts:
        shares["vit-s/14 (dinov2-s)"] = speed(load_backbone("dinov2-s", precision="bfloat16"), 96, given.rounds)
        shares["vit-s/14 (dinov2-s)"]["machine"] = here
    if "vit-b" in given.parts:
        shares["vit-b/14 (random weights)"] = speed(random_backbone("vit_base_patch14_dinov2"), 48, given.rounds)
        shares["vit-b/14 (random weights)"]["machine"] = here
    if "compiled" in given.parts:
        gains = result.setdefault("compiled_over_eager", {}).setdefault(given.precision, {})
        gains["vit-s/14 (dinov2-s)"] = compiled(load_backbone("dinov2-s", precision=given.precision), given.rounds)
        random = random_backbone("vit_base_patch14_dinov2", given.precision)
        gains["vit-b/14 (random weights)"] = compiled(random, given.rounds)
        gains["machine"] = here
    if "memory" in given.parts:
        result["memory"] = {**memory(), "machine": here}
    if "mixing" in given.parts:
        if given.store is None:
            parser.error("the part 'mixing' wants a token store")
        result["mixing"] = {**mixing(TokenStore(given.store)), "machine": here}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
