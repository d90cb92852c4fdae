"""Section 2: does the rest of the network still see the same cell when the reconstruction takes the tokens' place?"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cytosae.evaluation._bootstrap import Score, accuracy, as_score, compare, draw_weights, interval
from cytosae.evaluation._context import Context
from cytosae.evaluation._origins import common_labels
from cytosae.evaluation._probe import ridge_scores
from cytosae.evaluation._splices import Readouts, Replace, by_components, by_mean, by_sae, run_spliced

Array = npt.NDArray[Any]
READOUTS = ("class token", "mean patch")
#: Cells at most: scored, and those on which k-NN and the linear probe are fitted.
_SCORED, _FITTED, _SCORED_FAST, _FITTED_FAST = 500, 1_500, 100, 400
_NEIGHBOURS = 20


#: What counts as the original (1) and as mean-ablated (0), and the splice of each side.
Variant = tuple[dict[str, Replace], dict[str, Replace], dict[str, dict[str, Replace]]]


class Fidelity:
    """Loss recovered between mean-ablation and the original, and the accuracy of k-NN and a linear probe, by read-out."""

    name, version = "fidelity", 3
    title = "Fidelity"
    question = (
        "Does the rest of the network still see the same cell when the reconstruction takes the place of the tokens?"
    )

    def missing(self, context: Context) -> str | None:
        """All tokens of a cell, in one store, and the backbone."""
        if not (context.part == "score").any():
            return "no cell is left to score after the split"
        return context.lacks_whole_cells()

    def measure(self, context: Context) -> dict[str, Any]:
        """See `Section`."""
        found = context.backbone()
        assert not isinstance(found, str)
        rows = _some(context, "score", _SCORED_FAST if context.fast else _SCORED)
        weights = draw_weights(context.unit[rows], context.n_draws, context.seed)
        classes, fitted = _labelled(context, _FITTED_FAST if context.fast else _FITTED)
        reference = run_spliced(context, *found, fitted, {}, "original, cells to fit on") if len(fitted) else None
        n_components, variants = _variants(context)
        titles = {"pca": f"{n_components} principal components"}
        titles |= {name: title for name, (title, _) in context.reconstructing.items()}
        comparisons, table, accuracies = [], [], []
        for variant, (whole, baseline, ways) in variants.items():
            original = run_spliced(context, *found, rows, whole, f"{variant}, original")
            ablated = run_spliced(context, *found, rows, baseline, f"{variant}, mean")
            seen = {name: run_spliced(context, *found, rows, way, f"{variant}, {name}") for name, way in ways.items()}
            for readout in READOUTS:
                scores = {name: recovered(original.of(readout), ablated.of(readout), one.of(readout), weights)
                          for name, one in seen.items()}  # fmt: skip
                controls = [(name, titles[name], score) for name, score in scores.items() if name != "dictionary"]
                comparisons.append(compare(f"loss recovered, {readout}; {variant}", scores["dictionary"], controls))
                table.append([f"{readout}; {variant}", 0.0, *(_text(s) for s in scores.values()), 1.0])
            if reference is not None:
                everyone = {"mean-ablated": ablated, **seen, "original": original}
                rows_of, found_scores = _accuracies(context, rows, fitted, classes, reference, everyone, weights)
                accuracies += [[f"{what}; {variant}", *values] for what, values in rows_of]
                for what, of in found_scores.items():
                    controls = [(name, title, of[name]) for name, title in titles.items()]
                    comparisons.append(compare(f"{what}; {variant}", of["dictionary"], controls))
        names = list(ways)
        tables = [{"title": "Loss recovered", "header": ["read-out", "mean-ablated", *names, "original"], "rows": table,
                   "note": "1 - squared distance of the read-out from the original's, over that of the mean-ablated one."}]  # fmt: skip
        if accuracies:
            tables.append({"title": "Cell type, by probes fitted on the original read-out", "rows": accuracies,
                           "header": ["what", "mean-ablated", *names, "original"]})  # fmt: skip
        return {
            "comparisons": comparisons, "tables": tables,
            "chosen": "Means, components and probes come from choosing cells; nothing was chosen on scored ones.",
            "n": {"scored cells": len(rows), "cells to fit on": len(fitted), "principal components": n_components},
            "notes": [
                "Class token and mean patch are read out apart: with the class token left in place, its read-out depends on the patches through the last blocks only.",
                "Where the class token is mean-ablated it is so on both ends of the scale: 1 is the original patches without it.",
                "Mean-ablation puts the mean token of the choosing cells in the place of every token of its kind.",
                "A high value says that the reconstruction keeps what the network uses, not that single concepts mean anything.",
            ],
            "n_configurations": 1,
        }  # fmt: skip


def recovered(original: Array, ablated: Array, spliced: Array, weights: Array) -> Score:
    """1 - |spliced - original|^2 / |ablated - original|^2, the sums over cells: 0 for the ablated read-out, 1 for the original."""
    lost = ((spliced.astype(np.float64) - original) ** 2).sum(1)
    whole = ((ablated.astype(np.float64) - original) ** 2).sum(1)
    return as_score(1 - (weights @ lost) / np.maximum(weights @ whole, 1e-300))


def _variants(context: Context) -> tuple[int, dict[str, Variant]]:
    """Number of components, and what is put back in place of what, by name."""
    kinds = [k for k in (context.sae.info.get("token_kinds") or ["patch"]) if k in ("class", "patch")]
    samples = {"patch": context.sample, "class": context.read(_some(context, "choose", 4_000), "class").flatten(0, 1)}
    means = {kind: by_mean(sample.mean(0)) for kind, sample in samples.items()}
    with torch.inference_mode():
        few = samples[kinds[0]][:: max(1, len(samples[kinds[0]]) // 4_096)]  # of all its cells
        n = max(1, min(round(float((context.sae.encode(few) > 0).sum(1).float().mean())), context.sae.d_in - 1))
    ways: dict[str, dict[str, Replace]] = {
        "dictionary": {k: by_sae(context.sae) for k in kinds},
        "pca": {k: by_components(samples[k], n) for k in kinds},
    }
    ways |= {name: {k: by_sae(control) for k in kinds} for name, (_, control) in context.reconstructing.items()}
    if "class" in kinds and "patch" in kinds:
        return n, {"class and patch tokens replaced": ({}, {k: means[k] for k in kinds}, ways)}
    if kinds == ["class"]:
        return n, {"class token replaced, patches original": ({}, {"class": means["class"]}, ways)}
    ablated = {name: {**way, "class": means["class"]} for name, way in ways.items()}
    return n, {
        "patches replaced, class token original": ({}, {"patch": means["patch"]}, ways),
        "patches replaced, class token mean-ablated": ({"class": means["class"]}, means, ablated),
    }


def _some(context: Context, part: str, limit: int) -> npt.NDArray[np.int64]:
    rows = np.flatnonzero(context.part == part)
    if len(rows) <= limit:
        return rows
    rng = np.random.Generator(np.random.Philox(key=[context.seed, 13]))
    return np.sort(rng.choice(rows, limit, replace=False))


def _labelled(context: Context, limit: int) -> tuple[Array, npt.NDArray[np.int64]]:
    """A class for every cell (its label under a name that data sets share; -1: none), and the choosing cells to fit on."""
    names = common_labels(context.frame)
    rows = _some(context, "choose", limit)
    rows = rows[names[rows] != ""]
    known = sorted(set(names[rows].tolist()))
    classes = np.array([known.index(n) if n in known else -1 for n in names.tolist()], np.int64)
    return classes, rows if len(known) > 1 else rows[:0]


def _accuracies(
    context: Context,
    rows: Array,
    fitted: Array,
    classes: Array,
    reference: Readouts,
    seen: dict[str, Readouts],
    weights: Array,
) -> tuple[list[tuple[str, list[str]]], dict[str, dict[str, Score]]]:
    """k-NN and linear probe by read-out: a table row of each, and the scores by side."""
    scored = np.flatnonzero(classes[rows] >= 0)
    truth, w = classes[rows][scored], weights[:, scored]
    table, scores = [], {}
    for readout in READOUTS:
        train, labels = reference.of(readout), classes[fitted]
        for probe in ("k-NN", "linear probe"):
            values = {}
            for name, one in seen.items():
                X = one.of(readout)[scored]
                guess = (
                    _nearest(train, labels, X) if probe == "k-NN" else _linear(train, labels, X, context.unit[fitted])
                )
                values[name] = as_score(accuracy(guess, truth, w))
            what = f"{probe}, {readout}"
            table.append((what, [_text(v) for v in values.values()]))
            scores[f"accuracy of {what}"] = values
    return table, scores


def _nearest(train: Array, labels: Array, X: Array) -> Array:
    """The class of most of the nearest neighbours by cosine; of equal ones the nearest class."""
    unit = train / np.maximum(np.linalg.norm(train, axis=1, keepdims=True), 1e-12)
    near = (X / np.maximum(np.linalg.norm(X, axis=1, keepdims=True), 1e-12)) @ unit.T
    order = np.argsort(-near, axis=1, kind="stable")[:, :_NEIGHBOURS]
    votes = np.zeros((len(X), int(labels.max()) + 1))
    for place in range(order.shape[1]):
        votes[np.arange(len(X)), labels[order[:, place]]] += 1 + 1e-6 * (order.shape[1] - place)
    return np.asarray(votes.argmax(1))


def _linear(train: Array, labels: Array, X: Array, groups: Array) -> Array:
    both = np.concatenate([train, X])
    choose = np.arange(len(both)) < len(train)
    wanted = np.zeros((len(both), int(labels.max()) + 1), bool)
    wanted[np.arange(len(train)), labels] = True
    group = np.concatenate([groups, np.full(len(X), groups.max() + 1)])
    return np.asarray(ridge_scores(both, wanted, choose, group)[len(train) :].argmax(1))


def _text(score: Score) -> str:
    found = interval(score)
    if found["low"] is None:
        return "not measurable"
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"
