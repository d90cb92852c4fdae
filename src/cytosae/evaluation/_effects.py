"""Interventions on scored cells and what they do to probes: units removed, kept, and added."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cytosae.evaluation._bootstrap import Score, compare, interval, mean_score
from cytosae.evaluation._context import Context
from cytosae.evaluation._interventions import (
    READOUTS,
    Bench,
    Change,
    Codes,
    Probes,
    along,
    equally_active,
    read_all,
    without_components,
)
from cytosae.evaluation._targets import Target
from cytosae.evaluation._units import Units, pca_units

Array = npt.NDArray[Any]

#: Concepts taken away together; sizes of PatchSAE's curve; steering, in typical codes of the concept.
REMOVED, CURVE, STEPS = (1, 5, 20), (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000), (0.5, 1.0, 2.0, 4.0)
SIDES = {
    "matched": "equally active random concepts",
    "random": "random directions, fitted decoder",
    "pca": "principal components",
}


@dataclass(frozen=True)
class Task:
    """A target with its cells on the bench (numbers): with and without it."""

    target: Target
    yes: Array
    no: Array


class Lab:
    """Interventions on one bench and their effects on probes."""

    def __init__(
        self, context: Context, bench: Bench, codes: dict[str, Codes], ranked: dict[str, list[Array]],
        probes: dict[str, Probes], spreads: dict[str, Array], base: dict[str, Array], weights: Array,
    ) -> None:  # fmt: skip
        self.context, self.bench, self.codes, self.ranked = context, bench, codes, ranked
        self.probes, self.spreads, self.base, self.weights = probes, spreads, base, weights
        self.pca = pca_units(context.sample)
        W = {name: c.sae.W_dec.norm(dim=1).numpy() for name, c in codes.items()}
        self.energy = np.asarray(_mean_codes(context, context.dictionary)) * W["dictionary"]

    def among(self, subsets: dict[str, Array]) -> Lab:
        """The same bench and probes, with only some units of each side to choose from: side -> int [n]."""
        out = copy(self)
        out.ranked = {s: [r[np.isin(r, subsets[s])] for r in ranked] for s, ranked in self.ranked.items()}
        kept = np.isin(np.arange(len(self.energy)), subsets["dictionary"])
        out.energy = np.where(kept, self.energy, 0.0)
        return out

    def removed(self, side: str, j: int, task: Task, k: int) -> dict[str, tuple[Score, Score]]:
        """By read-out: the selective drop of target `j`, and the same per size of change, when `k` units of a side go."""
        cells = np.concatenate([task.yes, task.no])
        after, size = self.bench.run(cells, self._removal(side, j, k))
        return {r: self._selective(r, j, task, cells, after[r], size, -1.0) for r in READOUTS}

    def _removal(self, side: str, j: int, k: int) -> Change:
        if side == "pca":
            axes = self.pca.axes
            assert axes is not None
            n = axes.shape[1]
            return without_components(self.bench, self.pca.mean, axes[:, torch.from_numpy(_distinct(self.ranked["pca"][j], n, k))])  # fmt: skip
        if side == "random":
            return self.codes["random"].removal(self.ranked["random"][j][:k])
        chosen = self.ranked["dictionary"][j][:k]
        if side == "matched":
            chosen = equally_active(chosen, self.energy, self.ranked["dictionary"][j][: max(REMOVED)], [self.context.seed, 1000 * j + k])  # fmt: skip
        return self.codes["dictionary"].removal(chosen)

    def _selective(
        self, readout: str, j: int, task: Task, cells: Array, after: Array, size: Array, sign: float
    ) -> tuple[Score, Score]:
        """Change of the score (times `sign`) with the target less without it, in standard deviations; and over the size of change."""
        moved = sign * (self.probes[readout].scores(after)[:, j] - self.base[readout][cells, j]) / self.spreads[readout][j]  # fmt: skip
        n_yes = len(task.yes)
        yes, no = (self.weights[:, at].astype(np.float64) for at in (task.yes, task.no))
        with np.errstate(divide="ignore", invalid="ignore"):
            drop = yes @ moved[:n_yes] / yes.sum(1) - no @ moved[n_yes:] / no.sum(1)
            root = np.sqrt((yes @ size[:n_yes] / yes.sum(1) + no @ size[n_yes:] / no.sum(1)) / 2)
        per = drop / np.maximum(root, 1e-3)
        return Score(float(drop[0]), drop[1:]), Score(float(per[0]), per[1:])

    def steering(
        self, tasks: Sequence[Task], steps: Sequence[float] = STEPS, where: str = ""
    ) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
        """Add the first concept's decoder direction to cells that lack the target, and other directions of equal length; `where` ends the titles of comparisons."""
        titles = {"dictionary": "dictionary", "matched": SIDES["matched"], "random": SIDES["random"],
                  "difference": "difference of the two means"}  # fmt: skip
        found: dict[tuple[str, float, str], list[Score]] = {}
        for j, task in enumerate(tasks):
            directions = self._directions(j, task)
            for side, direction in directions.items():
                for step in steps:
                    after, _ = self.bench.run(task.no, along(step * direction, len(self.bench.patches)))
                    for r in READOUTS:
                        moved = (self.probes[r].scores(after[r])[:, j] - self.base[r][task.no, j]) / self.spreads[r][j]
                        w = self.weights[:, task.no].astype(np.float64)
                        with np.errstate(divide="ignore", invalid="ignore"):
                            rise = w @ moved / w.sum(1)
                        found.setdefault((r, step, side), []).append(Score(float(rise[0]), rise[1:]))
        mean = {key: mean_score(scores) for key, scores in found.items()}
        rows = [[r, title, *(text(mean[r, step, side]) for step in steps)] for r in READOUTS for side, title in titles.items()]  # fmt: skip
        table = {"title": "Steering", "header": ["read-out", "direction", *(f"{s:g} typical codes" for s in steps)], "rows": rows,
                 "note": "Rise of the probe's score in cells that lack the target, in standard deviations; all directions of the length of the concept's."}  # fmt: skip
        lines = [{"title": f"Steering, {r}", "x": "typical codes added", "y": "rise of the score (standard deviations)",
                  "lines": [{"name": t, "points": [[s, mean[r, s, side].value] for s in steps]} for side, t in titles.items()]}
                 for r in READOUTS]  # fmt: skip
        comparisons = [
            compare(f"steering, {r}: rise at one typical code{where}", mean[r, 1.0, "dictionary"],
                    [(side, t, mean[r, 1.0, side]) for side, t in titles.items() if side != "dictionary"])
            for r in READOUTS
        ]  # fmt: skip
        return table, lines, comparisons

    def _directions(self, j: int, task: Task) -> dict[str, torch.Tensor]:
        first = self.ranked["dictionary"][j][:1]
        other = equally_active(first, self.energy, self.ranked["dictionary"][j][: max(REMOVED)], [self.context.seed, j])
        W = self.context.sae.W_dec
        ours = _typical(self.context, int(first[0]), task.target) * W[int(first[0])]
        length = ours.norm()
        yes, no = (_mean_token(self.context, task.target, has) for has in (True, False))
        others = {"matched": W[int(other[0])] if len(other) else torch.zeros_like(ours),
                  "random": self.context.random_dictionary.W_dec[int(self.ranked["random"][j][0])], "difference": yes - no}  # fmt: skip
        return {"dictionary": ours, **{n: length * v / v.norm().clamp(min=1e-9) for n, v in others.items()}}

    def curve(self, tasks: Sequence[Task]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """PatchSAE's curve: accuracy among the cell types with only the k most active concepts of a cell's own type, or without them."""
        at = [j for j, t in enumerate(tasks) if t.target.group == "label"]
        if len(at) < 2:
            return [], []
        sizes = sorted({min(k, self.context.sae.n_latents) for k in CURVE})
        found: dict[tuple[str, str], list[tuple[int, float]]] = {}
        means = {j: _mean_codes(self.context, self.context.dictionary, tasks[j].target) for j in at}
        rng = np.random.Generator(np.random.Philox(key=[self.context.seed, 73]))
        alive = np.flatnonzero(self.energy > 0)
        for k in sizes:
            for how in ("only these (on)", "without these (off)", "without as many random ones"):
                right: dict[str, list[float]] = {r: [] for r in READOUTS}
                for j in at:
                    chosen = np.argsort(-means[j], kind="stable")[:k]
                    if how.endswith("random ones"):
                        chosen = rng.choice(alive, min(k, len(alive)), replace=False)
                    change = self.codes["dictionary"].removal(chosen, keep=how.endswith("(on)"))
                    after, _ = self.bench.run(tasks[j].yes, change)
                    for r in READOUTS:
                        guess = np.array(at)[self.probes[r].scores(after[r])[:, at].argmax(1)]
                        right[r].append(float((guess == j).mean()))
                for r in READOUTS:
                    found.setdefault((r, how), []).append((k, float(np.mean(right[r]))))
        rows = [[r, how, *(v for _, v in points)] for (r, how), points in found.items()]
        untouched = {r: float(np.mean([(np.array(at)[self.base[r][tasks[j].yes][:, at].argmax(1)] == j).mean() for j in at])) for r in READOUTS}  # fmt: skip
        rows += [[r, "nothing changed", *[untouched[r]] * len(sizes)] for r in READOUTS]
        table = {"title": "Class-wise removal (as in PatchSAE): mean accuracy over the types", "header": ["read-out", "concepts", *map(str, sizes)],
                 "rows": rows, "note": "The k concepts most active in choosing cells of the cell's own type; the dictionary's error stays."}  # fmt: skip
        series = [{"title": f"Class-wise removal, {r}", "x": "k", "y": "accuracy", "log_x": True,
                   "lines": [{"name": how, "points": [list(p) for p in points]} for (one, how), points in found.items() if one == r]}
                  for r in READOUTS]  # fmt: skip
        return [table], series


def _distinct(ranked: Array, n: int, k: int) -> npt.NDArray[np.int64]:
    """The first `k` axes of a ranking of both signs."""
    axes = ranked % n
    _, first = np.unique(axes, return_index=True)
    return np.asarray(axes[np.sort(first)][:k], np.int64)


def _mean_codes(context: Context, units: Units, target: Target | None = None) -> Array:
    rows = target.choose & target.positive if target is not None else context.part == "choose"
    return np.asarray(np.asarray(context.features(units, "mean")[np.flatnonzero(rows)]).mean(0, dtype=np.float64))


def _typical(context: Context, latent: int, target: Target) -> float:
    """The mean over choosing cells with the target of the concept's largest code, of those in which it fires."""
    values = np.asarray(context.features(context.dictionary, "max")[:, latent])[target.choose & target.positive]
    return float(values[values > 0].mean()) if (values > 0).any() else 1.0


#: Choosing cells, of those with a target and of those without, whose patches make the mean tokens.
_MEAN_CELLS = 200


def _mean_token(context: Context, target: Target, has: bool) -> torch.Tensor:
    rows = np.flatnonzero(target.choose & (target.positive == has))
    if len(rows) > _MEAN_CELLS:  # drawn: the first ones of a table are of one data set
        rng = np.random.Generator(np.random.Philox(key=[context.seed, 19 + has]))
        rows = np.sort(rng.choice(rows, _MEAN_CELLS, replace=False))
    return read_all(context, rows)[:, [k == "patch" for k in context.tokens.stores[0].token_kinds]].flatten(0, 1).mean(0)  # fmt: skip


def text(score: Score) -> str:
    found = interval(score)
    if found["value"] is None or found["low"] is None:
        return "not measurable"
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"
