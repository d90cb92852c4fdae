"""Profiles, differential concepts and the nested L2 classification of a large cohort: seconds of each stage, on the clock and of
the processor (all threads), and peak memory.

Usage: ``python benchmarks/bench_patients.py [--patients 2000] [--cells 500] [--latents 6144] [--active 100] [--threads 2]
[--repeats 5] [--width 384] [--part profiles|differential|l2|table] [--room FOLDER] [--out benchmarks/results/patients.json]``

``table`` is the whole classification: every model on every fold, with made-up tokens of `--width` numbers (attention MIL only where
torchmil is installed; the record says what is absent). Tokens are made where the program would read them, five a cell, and
pooled into files of `--room` as `cytosae patients` does beside its result; mapped pages of these count as memory. Each model has a
lap of its own, what it needs being made in the lap ``before`` it.

Cells are made up: each has about `--active` active concepts, whose frequencies fall as a power of their rank (from one half
of the cells down); five diagnoses of unequal size, 40 concepts commoner in one of them, ten cell types. Matrices are kept
as the program reads them (largest code, mean and patch share, sharing their indices). Each part runs in a process of
its own, whose peak resident size is recorded with the data in it; making the data is not timed.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from bench_decode import machine
from cytosae._progress import Meter
from cytosae.patients import (
    ClassifyConfig,
    Cohort,
    DifferentialConfig,
    Extras,
    ProfileRule,
    _classify,
    _pooled,
    classify,
    differential,
    pool_tokens,
    profile_patients,
)
from cytosae.patients._profiles import CellValues, build_profiles

PARTS = ("profiles", "differential", "l2", "table")
SHARES = (0.35, 0.25, 0.2, 0.12, 0.08)


def made_up(n_patients: int, n_cells: int, n_latents: int, active: float) -> Cohort:
    """The cohort."""
    rng = np.random.default_rng(0)
    n = n_patients * n_cells
    weight = np.arange(1, n_latents + 1) ** -0.8
    frequency = weight * active / weight.sum()
    for _ in range(20):
        frequency = np.minimum(frequency, 0.5)
        frequency *= active / frequency.sum()
    frequency = np.minimum(frequency, 0.5)
    owner = np.repeat(np.arange(n_patients), n_cells)
    classes = rng.permutation(np.repeat(np.arange(5), np.rint(np.array(SHARES) * n_patients).astype(int))[:n_patients])
    ends, indices, data = [0], [], []
    for j, f in enumerate(frequency):
        gaps = rng.geometric(f, int(n * f + 10 * (n * f) ** 0.5 + 10))
        rows = np.cumsum(gaps, dtype=np.int64) - 1
        rows = rows[rows < n].astype(np.int32)
        if j % 150 == 7:  # commoner in one diagnosis: elsewhere a quarter is taken away
            rows = rows[(classes[owner[rows]] == j % 5) | (rng.random(len(rows)) > 0.25)]
        indices.append(rows)
        data.append(rng.gamma(2.0, 1.0, len(rows)).astype(np.float32))
        ends.append(ends[-1] + len(rows))
    columns = sp.csc_matrix((np.concatenate(data), np.concatenate(indices), np.array(ends)), shape=(n, n_latents))
    del data, indices
    maximum = columns.tocsr()
    del columns
    mean, share = (sp.csr_matrix((values, maximum.indices, maximum.indptr), shape=maximum.shape, copy=False)
                   for values in (maximum.data * np.float32(0.25), np.full_like(maximum.data, 1 / 16)))  # fmt: skip
    patients = pd.DataFrame({"patient": [f"p{i:05d}" for i in range(n_patients)], "diagnosis": [f"d{c}" for c in classes],
                             "n_cells": n_cells, "simulated": True})  # fmt: skip
    labels = rng.choice([f"type {i}" for i in range(10)], n).astype(object)
    concepts = pd.DataFrame({"latent": np.arange(n_latents)})
    return Cohort(patients, "diagnosis", owner, maximum, mean, share, labels, concepts, None, {"simulated": True})


def profiles_part(cohort: Cohort, timed: Callable[..., Any]) -> dict[str, Any]:
    made = timed("profiles", lambda: profile_patients(cohort))
    values = timed(
        "sorted values for cross-validation", lambda: CellValues(cohort.maximum, cohort.owner, len(cohort.patients))
    )
    train = np.arange(0, len(cohort.patients), 2)
    thresholds = timed("thresholds of one fold", lambda: values.thresholds(0.9, train))
    timed("profiles of one fold", lambda: values.shares(thresholds))
    return {"nonzeros": int(cohort.maximum.nnz), "concepts_tested": int(made.var["tested"].sum()),
            "thresholds_above_0": int((made.var["threshold"] > 0).sum())}  # fmt: skip


def quick_profiles(cohort: Cohort) -> Any:
    values = CellValues(cohort.maximum, cohort.owner, len(cohort.patients))
    rule = ProfileRule()
    thresholds = values.thresholds(rule.quantile)
    return build_profiles(cohort, rule, values.shares(thresholds), thresholds, {})


def differential_part(cohort: Cohort, timed: Callable[..., Any]) -> dict[str, Any]:
    profiles = quick_profiles(cohort)
    table = timed("differential, one against rest", lambda: differential(profiles, DifferentialConfig(), cohort=cohort))
    hits = table[table["q"] < 0.05]
    return {"tests": len(table), "hits": len(hits), "planted_hit": int((hits["latent"] % 150 == 7).sum()),
            "hits_within": int((table["q_within"] < 0.05).sum()), "hits_composition": int((table["q_composition"] < 0.05).sum()),
            "median_permutations": float(table["n_permutations"].median())}  # fmt: skip


def l2_part(cohort: Cohort, timed: Callable[..., Any], repeats: int) -> dict[str, Any]:
    config = ClassifyConfig(models=("concept_profile",), n_repeats=repeats)
    done = timed(
        f"L2, {config.n_folds} folds x {repeats}, every choice nested, and the curve of concepts",
        lambda: classify(cohort, config),
    )
    model = done.record["models"]["concept_profile"]
    return {"features": model["n_features"][0], "macro_f1": model["metrics"]["macro_f1"],
            "C_chosen": sorted(set(model["C_chosen"]))}  # fmt: skip


class MadeUpStore:
    """A store of class token and four patches a cell (float16), a little apart by diagnosis, made where it is read."""

    dtype, token_kinds = "float16", ("class", *["patch"] * 4)

    def __init__(self, cohort: Cohort, width: int) -> None:
        self.d_in, self._rng = width, np.random.default_rng(1)
        self._shift = 0.1 * self._rng.standard_normal((5, width), np.float32)
        self._kind = cohort.patients["diagnosis"].str[1:].astype(int).to_numpy()[cohort.owner]

    def part(self, kind: str) -> slice:
        return slice(0, 1) if kind == "class" else slice(1, 5)

    def rows_of(self, cell_ids: Any) -> Any:
        return cell_ids

    def chunks(self, rows: Any, size: int) -> Iterator[torch.Tensor]:
        for start in range(0, len(rows), size):
            kind = self._kind[rows[start : start + size]]
            some = self._rng.standard_normal((len(kind), 5, self.d_in), np.float32) + self._shift[kind, None]
            yield torch.from_numpy(some).half().float()


class Laps:
    """Seconds on the clock, of the processor and peak memory so far, at every beginning and end of a `Meter`."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, float]] = {}
        self._last = time.perf_counter(), time.process_time()

    def lap(self, name: str) -> None:
        now = time.perf_counter(), time.process_time()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        clock, processor = (round(b - a, 1) for a, b in zip(self._last, now, strict=True))
        self.found[name] = {"seconds": clock, "processor_seconds": processor, "peak_gb_so_far": round(peak, 2)}
        print(f"{name}: {self.found[name]}", file=sys.stderr, flush=True)
        self._last = now

    def meter(self) -> type[Meter]:
        laps = self

        class Timed(Meter):
            def __init__(self, total: int, what: str, unit: str) -> None:
                laps.lap(f"before {what}")
                super().__init__(total, what, unit)

            def close(self) -> None:
                laps.lap(self.what)
                super().close()

        return Timed


def table_part(cohort: Cohort, options: argparse.Namespace) -> dict[str, Any]:
    n, config = len(cohort.owner), ClassifyConfig(n_repeats=options.repeats)
    files = pd.DataFrame({"file_header": np.resize(["a", "b"], n), "file_bytes": 1000})
    store, laps = MadeUpStore(cohort, options.width), Laps()
    meters = (patch.object(module, "Meter", laps.meter()) for module in (_classify, _pooled))
    with TemporaryDirectory(dir=options.room) as room, next(meters), next(meters):
        extras = Extras(lambda: pool_tokens(store, np.arange(n), Path(room)), files)  # type: ignore[arg-type]
        done = classify(cohort, config, extras=extras)
    laps.lap("scores, intervals and curve")
    together = {key: {"the whole table": round(sum(lap[key] for lap in laps.found.values()), 1)}
                for key in ("seconds", "processor_seconds")}  # fmt: skip
    return {"width": options.width, "folds": config.n_folds * config.n_repeats, "absent": done.record["absent"],
            "macro_f1": {name: model["metrics"]["macro_f1"]["value"] for name, model in done.record["models"].items()},
            "laps": laps.found, **together}  # fmt: skip


def run_part(options: argparse.Namespace) -> dict[str, Any]:
    seconds: dict[str, float] = {}
    processor: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        start, used = time.perf_counter(), time.process_time()
        out = work()
        seconds[name], processor[name] = round(time.perf_counter() - start, 2), round(time.process_time() - used, 2)
        print(f"{name}: {seconds[name]} s ({processor[name]} s of the processor)", file=sys.stderr)
        return out

    found: dict[str, Any]
    torch.set_num_threads(options.threads)  # also how many folds are fitted beside one another
    with threadpool_limits(options.threads):
        cohort = made_up(options.patients, options.cells, options.latents, options.active)
        print(f"{options.part}: data made, {cohort.maximum.nnz:,} nonzeros", file=sys.stderr)
        if options.part == "table":
            found = table_part(cohort, options)
        elif options.part == "l2":
            found = l2_part(cohort, timed, options.repeats)
        else:
            found = {"profiles": profiles_part, "differential": differential_part}[options.part](cohort, timed)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {"seconds": seconds, "processor_seconds": processor, "peak_gb": round(peak, 2), **found}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--patients", type=int, default=2000)
    parser.add_argument("--cells", type=int, default=500)
    parser.add_argument("--latents", type=int, default=6144)
    parser.add_argument("--active", type=float, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--room", type=Path, help="Where pooled tokens are kept meanwhile. [default: the system's]")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/patients.json"))
    options = parser.parse_args()
    if options.part:
        print(json.dumps(run_part(options)))
        return
    head = [
        f"--{k}={getattr(options, k)}"
        for k in ("patients", "cells", "latents", "active", "threads", "repeats", "width")
    ]
    parts = {}
    for part in PARTS:
        done = subprocess.run(
            [sys.executable, __file__, f"--part={part}", *head], stdout=subprocess.PIPE, text=True, check=True
        )
        parts[part] = json.loads(done.stdout)
    record = {"machine": machine(), "options": {k: v for k, v in vars(options).items() if k not in ("out", "part", "room")},
              "parts": parts}  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", "utf-8")
    print(f"Wrote {options.out}")


if __name__ == "__main__":
    main()
