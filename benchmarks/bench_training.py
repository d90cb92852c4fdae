"""A whole training step on every path against the step as published code writes it, one process per configuration.

Usage: ``python benchmarks/bench_training.py [--threads 2] [--repeats 2] [--sizes 384x6144x4096 ...]``

A step selects codes, decodes, computes the gradient of the mean squared error, and moves the weights by Adam with the decoder
projected and normalised. The published step is dense float32 with automatic differentiation, `torch.optim.Adam`, projection
and renormalisation. Tokens are random with a spectrum that falls like that of real ones; half of a latent's direction comes
from such a token. ReLU has a bias that leaves about 130 latents active. The processes of one size run in turn, `repeats`
times over; ratios are of one round, so that a busy machine slows both sides.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from bench_decode import machine
from cytosae.sae.ops import AdamStep, Rule, Term, Weights, has_bfloat16
from cytosae.sae.ops.native import NativePath, native_library
from cytosae.sae.ops.portable import PortablePath

K, L0, LR = 64, 130, 4e-4
PATHS = ("native", "portable-bfloat16", "portable-float32", "published")


def problem(d: int, n_latents: int, n: int, kind: str) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Three batches of tokens [n, d], a dictionary [n_latents, d] of unit rows, and the encoder's bias."""
    g = torch.Generator().manual_seed(0)
    basis = torch.randn(d, d, generator=g) * (torch.arange(1, d + 1).float() ** -0.6)[:, None]

    def tokens(count: int) -> torch.Tensor:
        x = torch.randn(count, d, generator=g) @ basis
        return x.mul_(d**0.5 / float(x.norm(dim=1).mean()))

    D = F.normalize(
        F.normalize(tokens(n_latents), dim=1) + F.normalize(torch.randn(n_latents, d, generator=g), dim=1), dim=1
    )
    batches = [tokens(n) for _ in range(3)]
    bias = torch.zeros(n_latents)
    if kind == "relu":
        pre = (batches[0][:64] @ D.T).flatten()
        bias -= float(torch.topk(pre, L0 * 64, sorted=False).values.min())
    return batches, D, bias


def our_step(name: str, D: torch.Tensor, bias: torch.Tensor, kind: str) -> Callable[[torch.Tensor], float]:
    """One step of a path; gives the active latents a token."""
    path = NativePath() if name == "native" else PortablePath(getattr(torch, name.removeprefix("portable-")))
    moments = {
        f"{name}_{kind_}": torch.zeros_like(t)
        for name, t in (("E", D), ("D", D), ("b", bias))
        for kind_ in ("avg", "square")
    }
    w = Weights(D.clone(), D, bias, **moments)
    rule = Rule("topk", k=K) if kind == "topk" else Rule("relu")
    steps = iter(range(1, 10**6))

    def step(x: torch.Tensor) -> float:
        codes = path.select(x, w.E, w.b_enc, rule)
        g_y = path.decode(codes, w.D, [len(D)]).sub_(x).mul_(2 / x.numel())
        l1 = 0.0 if kind == "topk" else 8e-5 / len(x)
        path.update(w, x, [Term(codes, g_y, [len(D)], l1=l1)], AdamStep(next(steps), LR), normalise=True)
        return len(codes.value) / len(x)

    return step


def published_step(D: torch.Tensor, bias: torch.Tensor, kind: str) -> Callable[[torch.Tensor], float]:
    """The same step, dense and differentiated automatically."""
    W_enc, W_dec = D.T.contiguous().requires_grad_(), D.clone().requires_grad_()
    b_enc, b_dec = bias.clone().requires_grad_(), torch.zeros(D.shape[1], requires_grad=True)
    adam = torch.optim.Adam([W_enc, b_enc, W_dec, b_dec], lr=LR)

    def step(x: torch.Tensor) -> float:
        with torch.no_grad():
            W_dec.div_(W_dec.norm(dim=1, keepdim=True))
        h = torch.relu((x - b_dec) @ W_enc + b_enc)
        if kind == "topk":
            values, index = torch.topk(h, K, dim=1)
            h = torch.zeros_like(h).scatter(1, index, values)
        loss = (h @ W_dec + b_dec - x).square().mean()
        if kind == "relu":
            loss = loss + 8e-5 * h.sum(1).mean()
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        assert W_dec.grad is not None
        with torch.no_grad():
            W_dec.grad.sub_((W_dec.grad * W_dec).sum(1, keepdim=True) * W_dec)
        adam.step()
        return float((h > 0).sum()) / len(x)

    return step


def run_one(name: str, size: str, kind: str) -> dict[str, float]:
    """Time one configuration in this process: tokens a second after a first step that is not counted."""
    d, n_latents, n = map(int, size.split("x"))
    batches, D, bias = problem(d, n_latents, n, kind)
    step = published_step(D, bias, kind) if name == "published" else our_step(name, D, bias, kind)
    seconds, l0 = [], 0.0
    for x in batches:
        start = time.perf_counter()
        l0 = step(x)
        seconds.append(time.perf_counter() - start)
        if len(seconds) == 2 and seconds[1] > 8:
            break
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"tokens_per_second": n / statistics.mean(seconds[1:]), "peak_gb": peak, "l0": l0}


def main() -> None:
    """Run all, print and write them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--sizes", nargs="+", default=["384x6144x4096", "768x49152x4096"], metavar="DxLATENTSxTOKENS")
    parser.add_argument("--kinds", nargs="+", default=["topk", "relu"], choices=["topk", "relu"])
    parser.add_argument("--paths", nargs="+", default=list(PATHS), choices=PATHS)
    parser.add_argument("--one", nargs=3, metavar=("PATH", "SIZE", "KIND"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "training.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.one:
        print(json.dumps(run_one(*arguments.one)))
        return
    absent = {"native": native_library() is None, "portable-bfloat16": not has_bfloat16("cpu")}
    names = [n for n in arguments.paths if not absent.get(n)]
    results: dict[str, Any] = {}
    for size in arguments.sizes:
        for kind in arguments.kinds:
            rounds: list[dict[str, dict[str, float]]] = []
            for _ in range(arguments.repeats):
                rounds.append({})
                for name in names:
                    command = [sys.executable, __file__, "--threads", str(arguments.threads), "--one", name, size, kind]
                    done = subprocess.run(command, check=True, capture_output=True, text=True)
                    rounds[-1][name] = json.loads(done.stdout.splitlines()[-1])
            results[f"{size} {kind}"] = summary = {
                name: {
                    "tokens_per_second": round(statistics.median(r[name]["tokens_per_second"] for r in rounds)),
                    "times_published": [round(r[name]["tokens_per_second"] / r["published"]["tokens_per_second"], 2) for r in rounds
                                        if "published" in r],
                    "peak_gb": round(max(r[name]["peak_gb"] for r in rounds), 2),
                    "l0": round(rounds[0][name]["l0"], 1),
                }
                for name in names
            }  # fmt: skip
            for name, line in summary.items():
                print(f"{size} {kind:5} {name:18} {line}", flush=True)
            record = {
                "machine": machine(),
                "threads": arguments.threads,
                "repeats": arguments.repeats,
                "results": results,
            }
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", "utf-8")


if __name__ == "__main__":
    main()
