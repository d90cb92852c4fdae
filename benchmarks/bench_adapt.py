"""Adaptation against the bare passes it cannot do without, and its peak memory.

Usage: ``python benchmarks/bench_adapt.py [--threads 1] [--rounds 6] [--out benchmarks/results/adapt.json]``

- step: views a second of `Adapter.step` (reading views, teacher, student, heads, balancing, optimiser) as a share of the bare
  work of the trained blocks on tokens in memory: one forward pass of the teacher, forward and backward of the student, in the
  same precision and batch, in turns.
- views: views a second of writing them (decoding, augmenting, the frozen blocks) as a share of the bare forward pass of those
  blocks.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
from pathlib import Path

import torch

from bench_decode import machine
from bench_tokens import bundled_cells
from cytosae.backbones import load_backbone
from cytosae.training import has_bfloat16
from cytosae.training.adapt import Adaptation
from cytosae.training.adapt._adapter import Adapter, Blocks
from cytosae.training.adapt._views import Views

CELLS, STEPS = 320, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "adapt.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bfloat16 = has_bfloat16("cpu")
    backbone, config, cells = load_backbone("dinov2-s"), Adaptation(), bundled_cells(CELLS)
    first, last = round(config.frozen * backbone.depth), backbone.block_number(-2)
    cast = torch.autocast("cpu", torch.bfloat16, enabled=bfloat16)
    with tempfile.TemporaryDirectory() as folder:
        views = Views(Path(folder) / "views", config.views, CELLS, backbone.n_tokens, backbone.d_in)
        since = time.perf_counter()
        views.write(cells.frame, cells.root, backbone, first, bfloat16)
        writing = CELLS * config.views / (time.perf_counter() - since)
        images = torch.randint(0, 256, (16, 224, 224, 3), dtype=torch.uint8)
        bare_writing = []
        for _ in range(options.rounds):
            since = time.perf_counter()
            with torch.no_grad(), cast:
                backbone.run_blocks(backbone.embed(images), 0, first)
            bare_writing.append(16 / (time.perf_counter() - since))
        adapter = Adapter(views, backbone, config, first, last, 0, bfloat16=bfloat16)
        blocks, x = Blocks(backbone, first, last), torch.randn(2 * config.batch, backbone.n_tokens, backbone.d_in)
        adapter.step(0)
        ratios, rates = [], []
        for round_ in range(options.rounds):
            since = time.perf_counter()
            for step in range(STEPS):
                adapter.step(1 + round_ * STEPS + step)
            ours = STEPS * 2 * config.batch / (time.perf_counter() - since)
            since = time.perf_counter()
            for _ in range(STEPS):
                with torch.no_grad(), cast:
                    blocks(x)
                with cast:
                    loss = blocks(x).square().mean()
                loss.backward()
                blocks.zero_grad()
            bare = STEPS * 2 * config.batch / (time.perf_counter() - since)
            rates.append(ours)
            ratios.append(ours / bare)
            print(f"round {round_}: {ours:.1f} views a second, {ours / bare:.3f} of the bare passes", flush=True)
    result = {
        "machine": machine(), "threads": options.threads, "products": "bfloat16" if bfloat16 else "float32",
        "step": {"share_of_bare": statistics.median(ratios), "low": min(ratios), "high": max(ratios),
                 "views_a_second": statistics.median(rates)},
        "views": {"share_of_bare": writing / statistics.median(bare_writing), "views_a_second": writing},
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }  # fmt: skip
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
