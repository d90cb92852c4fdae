"""Section 1: how much of the tokens the dictionary gives back, from how few codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cytosae._progress import Meter
from cytosae.evaluation._bootstrap import Score, as_score, compare, draw_weights
from cytosae.evaluation._context import Context
from cytosae.sae import ReconstructionSums, SparseAutoencoder

_CHUNK = 16
#: Scored cells at most: their tokens are enough to see latents that fire on 1 in 10^5.
_CELLS, _CELLS_FAST = 1_000, 200


@dataclass(frozen=True)
class Measured:
    """One reconstruction of the tokens of one kind: `metrics` as `ReconstructionSums` gives them, and each cell's squared error."""

    metrics: dict[str, float]
    error: npt.NDArray[np.float64]
    histogram: dict[str, list[float]] | None = None


class Reconstruction:
    """Explained variance, FVU, cosine, L0 and dead share by kind of token, principal components beside them."""

    name, version = "reconstruction", 1
    title = "Reconstruction and sparsity"
    question = "How much of the tokens does the dictionary give back, and from how few active concepts?"

    def missing(self, context: Context) -> str | None:
        """Cells to score."""
        return None if (context.part == "score").any() else "no cell is left to score after the split"

    def measure(self, context: Context) -> dict[str, Any]:
        """See `Section`."""
        rows = np.flatnonzero(context.part == "score")
        limit = _CELLS_FAST if context.fast else _CELLS
        if len(rows) > limit:
            rng = np.random.Generator(np.random.Philox(key=[context.seed, 5]))
            rows = np.sort(rng.choice(rows, limit, replace=False))
        weights = draw_weights(context.unit[rows], context.n_draws, context.seed)
        trained = context.sae.info.get("token_kinds") or ["patch"]
        saes = {"dictionary": context.sae, **context.saes}
        saes |= {name: control for name, (_, control) in context.reconstructing.items()}
        table: list[list[Any]] = []
        comparisons, front, pca_front = [], [], []
        histogram: dict[str, list[float]] = {}
        n_tokens = {}
        for kind in sorted(context.kinds()):
            mean, basis = _components(context, kind)
            spread = _squared_distance(context, rows, kind)
            found = {name: _measure(context, rows, kind, sae, name) for name, sae in saes.items()}
            n_tokens[f"{kind} tokens"] = int(found["dictionary"].metrics["n_tokens"])
            for name, one in found.items():
                k = max(1, min(round(one.metrics["l0"]), basis.shape[1] - 1))
                pca = _pca_error(context, rows, kind, mean, basis[:, :k])
                m = one.metrics
                ours, theirs = _explained(one.error, spread, weights), _explained(pca, spread, weights)
                note = "" if kind in trained else " (not trained on)"
                table.append([f"{name}, {kind}{note}", m["explained_variance"], m["fvu"], m["cosine"], m["l0"],
                              m["dead_share"], f"{1 - theirs.value:.4f} ({k})"])  # fmt: skip
                if kind == "patch":
                    front.append((m["l0"], m["fvu"], name))
                    pca_front.append((m["l0"], 1 - theirs.value))
                if name == "dictionary" and kind in trained:
                    others = [("pca", f"{k} principal components", theirs)]
                    others += [
                        (c, title, _explained(found[c].error, spread, weights))
                        for c, (title, _) in context.reconstructing.items()
                    ]
                    comparisons.append(compare(f"explained variance, {kind} tokens", ours, others))
                    if kind == "patch":
                        histogram = one.histogram or {}
        return {
            "tables": [{"title": "By kind of token", "rows": table, "header": [
                "what", "explained variance", "FVU", "cosine", "L0", "dead share", "FVU of as many components"]}],
            "comparisons": comparisons,
            "series": [{"title": "The front over sparsity (patch tokens)", "x": "active latents a token (L0)", "y": "FVU",
                        "log_x": True, "log_y": True, "lines": [
                            {"name": name, "points": [[l0, fvu]]} for l0, fvu, name in front
                        ] + [{"name": "principal components", "points": [list(p) for p in sorted(pca_front)], "dashed": True}]}],
            "frequency_histogram": histogram,
            "chosen": "Nothing was chosen; principal components come from choosing cells, everything is measured on scored cells.",
            "n": {"cells": len(rows), "fields, patients or single cells": len(np.unique(context.unit[rows])), **n_tokens},
            "notes": [
                "Tokens are low rank: a small FVU alone says little, so the line of as many principal components stands beside it.",
                "Dead: fires on fewer than 1 in 100,000 of these tokens of its kind; with fewer tokens than that, it means never.",
            ],
            "n_configurations": 1,
        }  # fmt: skip


def _measure(context: Context, rows: npt.NDArray[np.int64], kind: str, sae: SparseAutoencoder, name: str) -> Measured:
    sums = ReconstructionSums(sae.d_in, sae.n_latents)
    error = np.empty(len(rows))
    with Meter(len(rows), f"{name}: {kind} tokens", "cells") as meter, torch.inference_mode():
        for start in range(0, len(rows), _CHUNK):
            x = context.read(rows[start : start + _CHUNK], kind)
            flat = x.flatten(0, 1)
            codes = sae.encode(flat)
            y = sae.decode(codes)
            sums.update(flat, y, codes)
            error[start : start + len(x)] = (flat.double() - y.double()).square().sum(1).view(len(x), -1).sum(1).numpy()
            meter.add(len(x))
    return Measured(sums.finish(), error, sums.frequency_histogram())


def _components(context: Context, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean [d] and principal components [d, d] (largest first) of choosing cells' tokens."""
    if kind == "patch":
        sample = context.sample
    else:
        sample = context.read(np.flatnonzero(context.part == "choose")[:4_000], kind).flatten(0, 1)
    mean = sample.double().mean(0)
    centred = sample.double() - mean
    return mean, torch.linalg.eigh(centred.T @ centred)[1].flip(1)


def _squared_distance(context: Context, rows: npt.NDArray[np.int64], kind: str) -> npt.NDArray[np.float64]:
    """For each cell the summed squared distance of its tokens from the mean of all of them."""
    total, n = torch.zeros(context.sae.d_in, dtype=torch.float64), 0
    for start in range(0, len(rows), _CHUNK):
        x = context.read(rows[start : start + _CHUNK], kind).double().flatten(0, 1)
        total += x.sum(0)
        n += len(x)
    out = np.empty(len(rows))
    for start in range(0, len(rows), _CHUNK):
        x = context.read(rows[start : start + _CHUNK], kind).double()
        out[start : start + len(x)] = (x - total / n).square().sum((1, 2)).numpy()
    return out


def _pca_error(
    context: Context, rows: npt.NDArray[np.int64], kind: str, mean: torch.Tensor, basis: torch.Tensor
) -> npt.NDArray[np.float64]:
    out = np.empty(len(rows))
    for start in range(0, len(rows), _CHUNK):
        x = context.read(rows[start : start + _CHUNK], kind).double() - mean
        out[start : start + len(x)] = (x - (x @ basis) @ basis.T).square().sum((1, 2)).numpy()
    return out


def _explained(error: npt.NDArray[np.float64], spread: npt.NDArray[np.float64], weights: npt.NDArray[Any]) -> Score:
    return as_score(1 - (weights @ error) / (weights @ spread))
