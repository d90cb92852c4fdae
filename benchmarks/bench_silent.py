"""A step of ReLU + L1 whose silent latents have had no gradient for long, against the same step early on.

Usage: ``python benchmarks/bench_silent.py [--rounds 5] [--size 384x3072x256]``

Adam's averages of a latent without a gradient shrink below 1e-38 and stay there; processors compute with such numbers many
times more slowly. Steps with averages of 1e-42 and of 1e-12 run in turn, one thread; ratios are of one round. Each path is timed as
it is, and as it would be if such numbers were kept.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from _steps import LR, problem
from bench_decode import machine
from cytosae.sae.ops import AdamStep, Rule, Term, Weights
from cytosae.sae.ops.native import NativePath, native_library
from cytosae.sae.ops.portable import PortablePath

STEPS = 12


def seconds(path: Any, size: str, average: float) -> float:
    """A step's time, half of the latents silent with such averages."""
    d, n_latents, n = map(int, size.split("x"))
    batches, D, bias = problem(d, n_latents, n, "ghost")
    w = Weights.start(D, D)
    w.b_enc.copy_(bias)
    for moment in (w.E_avg, w.D_avg):
        moment[n_latents // 2 :] = average
    spent = 0.0
    for i in range(STEPS + 1):
        x = batches[i % len(batches)]
        codes = path.select(x, w.E, w.b_enc, Rule("relu"))
        residual = path.decode(codes, w.D, [n_latents])[0] - x
        start = time.perf_counter()
        path.update(
            w, x, [Term(codes, residual[None] / x.numel(), [n_latents])], AdamStep(5000 + i, LR), normalise=True
        )
        spent += (time.perf_counter() - start) * (i > 0)
    return spent / STEPS


def main() -> None:
    """Print and write ``results/silent.json``."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", default="384x3072x256")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    flushes = [("", True), (", small numbers kept", False)]
    paths: dict[str, tuple[Any, bool]] = {f"portable-float32{name}": (PortablePath(), on) for name, on in flushes}
    if native_library() is not None:
        for name, on in flushes:
            native = NativePath(lib=native_library() if on else native_library("-DCYTOSAE_KEEP_DENORMALS"))
            paths[native.name + name] = native, on
    record: dict[str, Any] = {"machine": machine(), "size": arguments.size, "rounds": arguments.rounds}
    for name, (path, on) in paths.items():
        torch.set_flush_denormal(on)  # as `fit` does
        ratios = [
            seconds(path, arguments.size, 1e-42) / seconds(path, arguments.size, 1e-12) for _ in range(arguments.rounds)
        ]
        record[name] = {"silent_over_fresh": round(statistics.median(ratios), 2),
                        "range": [round(min(ratios), 2), round(max(ratios), 2)]}  # fmt: skip
        print(name, record[name], flush=True)
    out = Path(__file__).parent / "results" / "silent.json"
    out.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
