"""A whole training step on every path against the step as published code writes it, one process per configuration.

Usage: ``python benchmarks/bench_training.py [--threads 2] [--repeats 2] [--sizes 384x6144x4096 ...] [--peers PYTHON]``

A step selects codes, decodes, computes the gradient of the error, and moves the weights by Adam with the decoder projected and
normalised. The published step is dense float32 with automatic differentiation, `torch.optim.Adam`, projection and
renormalisation. With --peers (the Python of an environment that has them, `make bench-peers`) SAELens, dictionary_learning,
overcomplete and sparsify run in the same rounds, each with its own step. ``limit`` is the encoder's product alone, by the fastest
product of this machine. The processes of one size run in turn, `repeats` times over; ratios are of one round, so that a busy
machine slows both sides.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from _steps import KINDS, LR, K, Step, problem, timed
from bench_decode import machine
from cytosae.sae.models import Error, ghost_gradients
from cytosae.sae.ops import AdamStep, Room, Rule, Term, Weights, choose, has_bfloat16
from cytosae.sae.ops.dense import SwitchingPath
from cytosae.sae.ops.native import NativePath, native_library
from cytosae.sae.ops.portable import PortablePath
from peers import PEERS

PATHS = ("native", "portable-bfloat16", "portable-float32", "published", "limit")
_L1 = 8e-5


def our_step(name: str, D: torch.Tensor, bias: torch.Tensor, kind: str) -> Step:
    """One step of a path; gives the active latents a token."""
    path: Any = NativePath() if name == "native" else PortablePath(getattr(torch, name.removeprefix("portable-")))
    if kind != "topk":
        path = SwitchingPath(path, torch.bfloat16 if has_bfloat16("cpu") else torch.float32)
    w = Weights.start(D, D)
    w.b_enc.copy_(bias)
    rule = Rule("topk", k=K) if kind == "topk" else Rule("relu")
    error, dead = Error("norm", 1.0), torch.arange(len(D) // 2, len(D))
    steps, room = iter(range(1, 10**6)), Room()

    def step(x: torch.Tensor) -> float:
        codes = path.select(x, w.E, w.b_enc, rule)
        residual = x - path.decode(codes, w.D, [len(D)])[0]
        extra = None
        if kind == "ghost":
            extra = ghost_gradients(x, x, residual, w, dead, dtype=path.dtype, room=room)[1]
        g_y = residual.mul_(-2 * error.weight(x))[None]
        l1 = 0.0 if kind == "topk" else _L1 / len(x)
        path.update(w, x, [Term(codes, g_y, [len(D)], l1=l1)], AdamStep(next(steps), LR), normalise=True, extra=extra)
        return float(codes.n_codes) / len(x)

    return step


def published_step(D: torch.Tensor, bias: torch.Tensor, kind: str) -> Step:
    """The same step, dense and differentiated automatically."""
    W_enc, W_dec = D.T.contiguous().requires_grad_(), D.clone().requires_grad_()
    b_enc, b_dec = bias.clone().requires_grad_(), torch.zeros(D.shape[1], requires_grad=True)
    adam = torch.optim.Adam([W_enc, b_enc, W_dec, b_dec], lr=LR)
    dead = torch.arange(len(D)) >= len(D) // 2

    def step(x: torch.Tensor) -> float:
        with torch.no_grad():
            W_dec.div_(W_dec.norm(dim=1, keepdim=True))
        pre = (x - b_dec) @ W_enc + b_enc
        h = torch.relu(pre)
        if kind == "topk":
            values, index = torch.topk(h, K, dim=1)
            h = torch.zeros_like(h).scatter(1, index, values)
        y = h @ W_dec + b_dec
        error = (y - x).square() / x.norm(dim=1, keepdim=True)
        loss = error.mean()
        if kind != "topk":
            loss = loss + _L1 * h.sum(1).mean()
        if kind == "ghost":
            residual = (x - y).detach()
            ghost = torch.exp(pre[:, dead]) @ W_dec[dead]
            length = residual.norm(dim=1, keepdim=True)
            factor = (length / (1e-6 + 2 * ghost.norm(dim=1, keepdim=True))).detach()
            its_error = (ghost * factor - residual).square() / length
            loss = loss + (its_error * (error / (its_error + 1e-6)).detach()).mean()
        adam.zero_grad()
        torch.autograd.backward(loss)
        assert W_dec.grad is not None
        with torch.no_grad():
            W_dec.grad.sub_((W_dec.grad * W_dec).sum(1, keepdim=True) * W_dec)
        adam.step()
        return float((h > 0).sum()) / len(x)

    return step


def limit(batches: list[torch.Tensor], D: torch.Tensor) -> dict[str, float]:
    """Tokens a second of the encoder's product alone: float32, bfloat16, and the integers of the compiled path."""
    x, found = batches[0], []
    for dtype in (torch.float32, torch.bfloat16) if has_bfloat16("cpu") else (torch.float32,):
        a, b = x.to(dtype), D.to(dtype)
        out = torch.empty(min(len(x), 2048), len(D), dtype=dtype)
        found.append(
            _rate(lambda a=a, b=b, out=out: [torch.mm(p, b.T, out=out[: len(p)]) for p in a.split(2048)], len(x))
        )
    if native_library() is not None:
        path, never = NativePath(), torch.full((len(D),), -1e6)
        found.append(_rate(lambda: path.select(x, D, never, Rule("relu")), len(x)))
    return {"tokens_per_second": max(found), "peak_gb": 0.0, "l0": 0.0}


def _rate(run: Any, n: int) -> float:
    run()
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return n / min(seconds)


def run_one(name: str, size: str, kind: str) -> dict[str, float]:
    """Time one configuration in this process."""
    d, n_latents, n = map(int, size.split("x"))
    batches, D, bias = problem(d, n_latents, n, kind)
    if name == "limit":
        return limit(batches, D)
    return timed(published_step(D, bias, kind) if name == "published" else our_step(name, D, bias, kind), batches)


def summary(rounds: list[dict[str, dict[str, float]]], name: str) -> dict[str, Any]:
    """Medians over the rounds; ratios round by round."""
    mine = [r[name] for r in rounds]
    line: dict[str, Any] = {"tokens_per_second": round(statistics.median(m["tokens_per_second"] for m in mine))}
    for other in ("published", "limit"):
        if name != other and other in rounds[0]:
            ratios = [r[name]["tokens_per_second"] / r[other]["tokens_per_second"] for r in rounds]
            line["times_published" if other == "published" else "share_of_limit"] = [round(v, 2) for v in ratios]
    peers = [p for p in PEERS if p in rounds[0]]
    if peers and name in PATHS and name != "limit":
        best = [max(r[p]["tokens_per_second"] for p in peers) for r in rounds]
        line["times_best_peer"] = [round(m["tokens_per_second"] / b, 2) for m, b in zip(mine, best, strict=True)]
    line |= {"peak_gb": round(max(m["peak_gb"] for m in mine), 2), "l0": round(mine[0]["l0"], 1)}
    return line | ({"version": mine[0]["version"]} if "version" in mine[0] else {})


def main() -> None:
    """Run all, print and write them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--sizes", nargs="+", default=["384x6144x4096", "768x49152x4096"], metavar="DxLATENTSxTOKENS")
    parser.add_argument("--kinds", nargs="+", default=["topk", "relu"], choices=KINDS)
    parser.add_argument("--paths", nargs="+", default=list(PATHS), choices=PATHS)
    parser.add_argument(
        "--peers", type=Path, metavar="PYTHON", help="Python of an environment with the other libraries."
    )
    parser.add_argument("--one", nargs=3, metavar=("PATH", "SIZE", "KIND"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "training.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.one:
        print(json.dumps(run_one(*arguments.one)))
        return
    absent = {"native": native_library() is None, "portable-bfloat16": not has_bfloat16("cpu")}
    ours = [n for n in arguments.paths if not absent.get(n)]
    results: dict[str, Any] = {}
    for size in arguments.sizes:
        for kind in arguments.kinds:
            names = [*ours, *(p for p, kinds in PEERS.items() if arguments.peers and kind in kinds)]
            rounds: list[dict[str, dict[str, float]]] = []
            for _ in range(arguments.repeats):
                rounds.append({})
                for name in names:
                    command = [sys.executable, __file__, "--threads", str(arguments.threads), "--one", name, size, kind]
                    if name in PEERS:
                        script = str(Path(__file__).with_name("peers.py"))
                        command = [str(arguments.peers), script, name, size, kind, "--threads", str(arguments.threads)]
                    done = subprocess.run(command, capture_output=True, text=True)
                    if done.returncode:
                        sys.exit(f"{name} {size} {kind} failed:\n{done.stderr[-2000:]}")
                    rounds[-1][name] = json.loads(done.stdout.splitlines()[-1])
            results[f"{size} {kind}"] = {name: summary(rounds, name) for name in names}
            for name, line in results[f"{size} {kind}"].items():
                print(f"{size} {kind:10} {name:20} {line}", flush=True)
            record = {"machine": machine(), "threads": arguments.threads, "repeats": arguments.repeats,
                      "path": choose("cpu", 384, 6144).name, "results": results}  # fmt: skip
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", "utf-8")


if __name__ == "__main__":
    main()
