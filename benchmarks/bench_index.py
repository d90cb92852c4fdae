"""The index pass against the bare forward pass, and against a plain rendering of the published pass, as ratios of interleaved runs.

Usage: ``python benchmarks/bench_index.py [--repeats 3] [--threads 2] [--sae FOLDER] [--out benchmarks/results/index.json]``

Codes are made as the pass itself chooses (compiled where that can be built); each result names the path. Without bfloat16 in
the processor the bfloat16 rows are left out, and the record says so.

- codes: tokens to sparse codes alone, 384 -> 6,144 and 768 -> 49,152, with each encoder that is here, against the dense product.
- dinov2-s: images of bundled cells to a whole index (decoding, forward, codes, statistics) with 6,144 latents against the
  forward pass alone on decoded images, in float32 and where there is bfloat16 in it. `--sae` is a trained dictionary of
  DINOv2-S; without it random directions with thresholds at 32 active latents a patch stand in.
- vit-b: a ViT-B/14 with random weights and 49,152 latents (random directions, thresholds at 130 active latents a token),
  against the published pass: all blocks in float32, the whole forward pass of the dictionary on all 257 tokens, 64 images at a
  time, top lists, done twice over (statistics, then patients), as the published programs do. Times are a cell.
- memory: peak resident size of the pass over n and 4n stored cells, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch

from bench_decode import machine
from cytosae import SparseAutoencoder, index_concepts, load_backbone, load_sae
from cytosae.backbones import Backbone, Preprocessing
from cytosae.cells import Cells, build_cells, bundled_path
from cytosae.concepts import _pass as the_pass
from cytosae.concepts._codes import DenseEncoder, Encoder
from cytosae.concepts._native import NativeEncoder
from cytosae.concepts._screen import ScreenedEncoder
from cytosae.sae.ops.native import native_library
from cytosae.tokens import load_images
from cytosae.training import has_bfloat16

NO_BFLOAT16 = "bfloat16 rows are left out: this processor has no bfloat16 products"


def dictionary(backbone: Backbone, images: Any, n: int, active: float, kind: str) -> SparseAutoencoder:
    """Random directions; thresholds at which a token of these images has about `active` codes."""
    g = torch.Generator().manual_seed(0)
    some = images[:: max(1, len(images) // 64)][:64]  # of all kinds: the first ones are much alike
    x = torch.cat([backbone.tokens(some[i : i + 8], -2).flatten(0, 1) for i in range(0, len(some), 8)])
    mean = x.mean(0)
    W = torch.nn.functional.normalize(torch.randn(n, x.shape[1], generator=g), dim=1)
    level = torch.quantile((x[::8] - mean) @ W.T, 1 - active / n, dim=0)
    bias, threshold = (torch.zeros(n), level) if kind == "threshold" else (-level, None)
    return SparseAutoencoder(W.T.contiguous(), bias, W, mean, kind, threshold, hash="bench")


def published_codes(x: torch.Tensor, sae: SparseAutoencoder) -> torch.Tensor:
    """The published programs take the codes out of the whole forward pass: decoder and losses are computed with them."""
    hidden = (x - sae.b_dec) @ sae.W_enc + sae.b_enc  # lives as long as the codes do, in the cache of the hooks
    codes = torch.relu(hidden)
    recon = codes @ sae.W_dec + sae.b_dec
    error = ((recon - x).square() / x.square().sum(-1, keepdim=True).sqrt()).mean()
    float(error + 8e-5 * codes.abs().sum(-1).mean())
    return codes


def published_pass(backbone: Backbone, sae: SparseAutoencoder, images: Any, batch: int = 64) -> None:
    """What the published programs do, plainly: statistics over all images, then once more for the patients.

    Read in the code of arXiv 2507.12464 (its hooked forward pass, its statistics and patient programs).
    """
    n = sae.n_latents
    for part in ("statistics", "patients"):
        total, count = torch.zeros(n), torch.zeros(n)
        values, indices = torch.zeros(n, 10), torch.zeros(n, 10)
        barcode = torch.zeros(n)
        for start in range(0, len(images), batch):
            x = backbone.tokens(images[start : start + batch], -1)  # the published hook runs all blocks
            codes = published_codes(x, sae)
            if part == "patients":
                barcode += (codes > 0.2).sum(1).float().sum(0)
                continue
            mean = codes.mean(1)
            total += mean.sum(0)
            count += (mean > 0).sum(0)
            both = torch.cat([values, mean.T], 1)
            places = torch.cat([indices, torch.arange(start, start + len(mean)).float().expand(n, -1)], 1)
            values, order = both.topk(10, dim=1)
            indices = places.gather(1, order)


def interleaved(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call, the calls taking turns; a first round is thrown away."""
    out: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn:
                out[name].append(time.perf_counter() - start)
    return out


def ratio(slow: list[float], fast: list[float]) -> dict[str, float]:
    """Median, smallest and largest ratio of paired times."""
    found = [a / b for a, b in zip(slow, fast, strict=True)]
    return {
        "median": round(statistics.median(found), 3),
        "low": round(min(found), 3),
        "high": round(max(found), 3),
    }


class IndexOf:
    """The pass from images to an index, with the network at hand; `path` is how its codes were made."""

    def __init__(self, cells: Cells, sae: SparseAutoencoder, backbone: Backbone, folder: Path) -> None:
        self.cells, self.sae, self.backbone, self.folder = cells, sae, backbone, folder
        self.n_calls = 0
        self.encode: dict[str, Any] = {}

    def __call__(self) -> None:
        vars(the_pass)["backbone_of"] = lambda *_: (self.backbone, -2)  # the network at hand instead of loading it anew
        self.n_calls += 1
        name = f"{self.backbone.name}-{self.backbone.precision}-{self.n_calls}"
        self.encode = index_concepts(self.cells, self.sae, self.folder / name).manifest["encode"]


def bare(backbone: Backbone, images: Any) -> Callable[[], object]:
    """The forward pass alone."""

    def call() -> None:
        for start in range(0, len(images), 16):
            backbone.tokens(images[start : start + 16], -2)

    return call


def bench_codes(repeats: int) -> dict[str, Any]:
    """Tokens to codes alone: made-up tokens whose dimensions are as unequal as real ones, about 32 and 130 codes each."""
    out = {}
    for d, n, active in ((384, 6144, 32), (768, 49_152, 130)):
        g = torch.Generator().manual_seed(0)
        x = torch.randn(2 * 257, d, generator=g) * torch.logspace(-0.5, 0.5, d)[torch.randperm(d, generator=g)]
        W = torch.nn.functional.normalize(torch.randn(n, d, generator=g), dim=1)
        level = torch.quantile(x[::8] @ W.T, 1 - active / n, dim=0)
        sae = SparseAutoencoder(W.T.contiguous(), torch.zeros(n), W, torch.zeros(d), "threshold", level)
        encoders: list[Encoder] = [DenseEncoder(sae)]
        if native_library() is not None:
            encoders.append(NativeEncoder(sae))
        if has_bfloat16("cpu"):
            encoders.append(ScreenedEncoder(sae))
        times = interleaved({e.path: partial(e, x) for e in encoders}, repeats)
        dense = times[DenseEncoder.path]
        out[f"{d} to {n}"] = {
            path: {
                "ms a token": round(1000 * statistics.median(t) / len(x), 4),
                "times the dense product": ratio(dense, t),
            }
            for path, t in times.items()
        }
    return out


def bench_small(cells: Cells, folder: Path, sae_path: Path | None, repeats: int) -> dict[str, Any]:
    out: dict[str, Any] = {} if has_bfloat16("cpu") else {"bfloat16": NO_BFLOAT16}
    for precision in ["bfloat16", "float32"] if has_bfloat16("cpu") else ["float32"]:
        backbone = load_backbone("dinov2-s", precision=precision)
        images = load_images(cells.ok, cells.root, backbone)
        sae = load_sae(sae_path) if sae_path else dictionary(backbone, images, 6144, 32, "threshold")
        ours = IndexOf(cells, sae, backbone, folder)
        times = interleaved({"ours": ours, "bare": bare(backbone, images)}, repeats)
        out[precision] = {"share of the bare forward pass": ratio(times["bare"], times["ours"]), "cells": len(images),
                          "ms a cell": round(1000 * statistics.median(times["ours"]) / len(images), 1),
                          "codes": ours.encode}  # fmt: skip
    return out


def bench_large(cells: Cells, few: int, folder: Path, repeats: int) -> dict[str, Any]:
    """Seconds a cell: ours over all `cells`, the published pass, which has no costs but those of each image, over `few`."""
    torch.manual_seed(0)
    model = timm.create_model("vit_base_patch14_dinov2", pretrained=False, img_size=224, num_classes=0)
    state = {k: v.clone() for k, v in model.state_dict().items()}

    def network(precision: str) -> Backbone:
        other = timm.create_model("vit_base_patch14_dinov2", pretrained=False, img_size=224, num_classes=0)
        other.load_state_dict(state)
        return Backbone(other, name="vit-b", weights_sha256="", preprocessing=Preprocessing(), precision=precision)

    plain = network("float32")
    images = load_images(cells.ok, cells.root, plain)
    sae = dictionary(plain, images, 49_152, 130, "relu")
    ours = {"float32": IndexOf(cells, sae, plain, folder)}
    if has_bfloat16("cpu"):
        ours["bfloat16"] = IndexOf(cells, sae, network("bfloat16"), folder)
    times = interleaved({"published": lambda: published_pass(plain, sae, images[:few]), **ours}, repeats)
    times = {n: [t / (few if n == "published" else len(images)) for t in each] for n, each in times.items()}
    each = {name: round(1000 * statistics.median(t), 1) for name, t in times.items()}
    return {"ms a cell": each, "cells": len(images), "cells of the published pass": few, "codes": {name: call.encode for name, call in ours.items()},
            **({} if has_bfloat16("cpu") else {"bfloat16": NO_BFLOAT16}),
            **{f"times the published pass, {n}": ratio(times["published"], times[n]) for n in ours}}  # fmt: skip


def bench_memory(folder: Path, n: int, threads: int) -> dict[str, Any]:
    """Peak memory over n and 4n made-up stored cells, 384 -> 6,144."""
    peaks = {}
    for times in (1, 4):
        command = [sys.executable, __file__, "--child", str(n * times), "--folder", str(folder / f"m{times}"),
                   "--threads", str(threads)]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"bench_index: the pass over {n * times} stored cells failed: {done.stderr[-500:]}")
        peaks[str(n * times)] = float(done.stdout.split()[-1])
    small, large = peaks.values()
    return {"peak MB by cells": peaks, "growth": round(large / small - 1, 4)}


def child(n: int, folder: Path) -> None:
    """One pass over `n` stored cells; prints the peak resident size in MB."""
    import pandas as pd
    import pyarrow as pa

    from cytosae.cells import SCHEMA
    from cytosae.storage import commit_folder, write_table
    from cytosae.tokens import TokenStore

    rng = np.random.default_rng(0)
    frame = pd.DataFrame({name: [None] * n for name in SCHEMA.names})
    frame["cell_id"], frame["status"], frame["label"], frame["image"] = np.arange(n), "ok", "a", ""
    with commit_folder(folder / "t", kind="tokens", version=1, inputs={}, config={}) as (work, extra):
        lot = rng.normal(size=(256, 65, 384)).astype("<f2")
        for i in range(-(-n // 256)):
            lot[: n - 256 * i].tofile(work / f"tokens-{i:05d}.bin")
        table = pa.table({"cell_id": np.arange(n)})
        write_table(work / "rows.parquet", table, kind="token rows", version=1, atomic=False)
        extra |= {"n_rows": n, "n_tokens": 65, "n_prefix": 1, "d_in": 384, "dtype": "float16", "grid": [8, 8],
                  "precision": "float32", "backbone": {}, "layer": -2}  # fmt: skip
    g = torch.Generator().manual_seed(0)
    W = torch.nn.functional.normalize(torch.randn(6144, 384, generator=g), dim=1)
    sae = SparseAutoencoder(
        W.T.contiguous(), torch.zeros(6144), W, torch.zeros(384), "threshold", torch.full((6144,), 2.5)
    )
    index_concepts(Cells(frame, "", "m"), sae, folder / "i", store=TokenStore(folder / "t"), cells_matrix=True)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    """Run what is asked for, print and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cells", type=int, default=512, help="Cells that are indexed.")
    parser.add_argument("--memory", type=int, default=1024, help="Cells of the smaller pass of the memory test.")
    parser.add_argument("--sae", type=Path)
    parser.add_argument("--only", choices=["codes", "dinov2-s", "vit-b", "memory"])
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "index.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.child:
        child(arguments.child, arguments.folder)
        return
    old = json.loads(arguments.out.read_text("utf-8")) if arguments.only and arguments.out.exists() else {"results": {}}
    results: dict[str, Any] = old["results"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = build_cells(bundled_path(), folder / "cells.parquet")
        few = Cells(whole.frame.head(arguments.cells), whole.root, whole.hash)
        with torch.inference_mode():
            if arguments.only in (None, "codes"):
                results["codes"] = bench_codes(arguments.repeats)
            if arguments.only in (None, "dinov2-s"):
                results["dinov2-s"] = bench_small(few, folder, arguments.sae, arguments.repeats)
            if arguments.only in (None, "vit-b"):
                results["vit-b"] = bench_large(few, min(64, len(few.frame)), folder, arguments.repeats)
        if arguments.only in (None, "memory"):
            results["memory"] = bench_memory(folder, arguments.memory, arguments.threads)
    results["peak MB of this process"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    record = {"machine": machine(), "threads": arguments.threads, "repeats": arguments.repeats, "results": results}
    print(json.dumps(results, indent=1))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", "utf-8")


if __name__ == "__main__":
    main()
