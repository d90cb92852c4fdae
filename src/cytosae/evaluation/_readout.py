"""What the units of one kind say about many targets: chosen and fitted on choosing cells, scored on the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from cytosae.evaluation._bootstrap import Score, as_score, by_cell, cohen_kappa, f1, mean_score, precision_of_draws
from cytosae.evaluation._candidates import Candidates, Pick, best_threshold, random_subsets
from cytosae.evaluation._probe import logistic, ridge_scores
from cytosae.evaluation._targets import Target

Array = npt.NDArray[Any]
#: Sizes of the small probes, and the one that is also tried with equal numbers of candidates.
SIZES, EQUAL_SIZE = (1, 2, 5, 10, 20, 50), 5


@dataclass(frozen=True)
class Cells:
    """The cells that take part in any target: rows of all arrays here.

    Attributes
    ----------
    targets
        Measurable ones, their arrays cut to these cells.
    choosing
        bool [n]: cells on which any target chooses.
    group
        int [n]: cells that belong together.
    weights
        int16 [1 + n_draws, n]: see `draw_weights`; 0 for cells that are not scored.
    """

    targets: Sequence[Target]
    choosing: Array
    group: Array
    weights: Array

    def precision(self, target: Target, values: Array) -> Score:
        """Average precision of `values` [n] on the target's scored cells."""
        at = np.flatnonzero(target.score)
        return as_score(precision_of_draws(values[at], target.positive[at], self._drawn, at))

    @cached_property
    def _drawn(self) -> npt.NDArray[np.float32]:
        return by_cell(self.weights)


@dataclass
class Readout:
    """Scores by what was asked, one a target, in order: ``single``, ``single equal``, ``f1``, ``kappa``, ``probe K``, ``probe 5 equal``, ``full``.

    `predictions`: what was asked -> scores of every cell for each target, float64 [n, n_targets], for choosing among values.
    """

    scores: dict[str, list[Score]] = field(default_factory=dict)
    picks: list[Pick] = field(default_factory=list)
    predictions: dict[str, Array] = field(default_factory=dict)
    n_candidates: int = 0


def read_out(cells: Cells, candidates: Candidates, size: int, n_repeats: int, seed: int, *, full: bool) -> Readout:
    """Everything that is asked of one kind of units.

    Parameters
    ----------
    size
        Number of candidates at which sides of different width are compared: units beyond it are left out at random,
        `n_repeats` times, and the scores averaged.
    full
        Whether to fit the probe on all units too.
    """
    out = Readout(n_candidates=len(candidates.alive))
    subsets = random_subsets(candidates.alive, size, n_repeats, seed)
    names = ["single", "single equal", "f1", "kappa", *(f"probe {k}" for k in SIZES), f"probe {EQUAL_SIZE} equal"]
    out.scores = {name: [] for name in names}
    for k in SIZES:
        out.predictions[f"probe {k}"] = np.empty((len(cells.group), len(cells.targets)))
    for i, target in enumerate(cells.targets):
        pick = candidates.best(i)
        out.picks.append(pick)
        values = candidates.values(pick)
        out.scores["single"].append(cells.precision(target, values))
        for name, score in _yes_or_no(cells, target, values).items():
            out.scores[name].append(score)
        found = {candidates.best(i, subset) for subset in subsets}
        scored = {p: cells.precision(target, candidates.values(p)) for p in found}
        out.scores["single equal"].append(mean_score([scored[candidates.best(i, subset)] for subset in subsets]))
        for k in SIZES:
            logits = _probe(candidates.first(i, k), target)
            out.predictions[f"probe {k}"][:, i] = logits
            out.scores[f"probe {k}"].append(cells.precision(target, logits))
        equal = [_probe(candidates.first(i, EQUAL_SIZE, s), target) for s in subsets]
        out.scores[f"probe {EQUAL_SIZE} equal"].append(mean_score([cells.precision(target, v) for v in equal]))
    if full:
        out.predictions["full"] = full_probe(cells, candidates.X["max"])
        out.scores["full"] = [cells.precision(t, out.predictions["full"][:, i]) for i, t in enumerate(cells.targets)]
    return out


def full_probe(cells: Cells, X: Array) -> Array:
    """Scores of a linear probe on all features, fitted apart for each set of choosing cells: float64 [n, n_targets]."""
    out = np.empty((len(cells.group), len(cells.targets)))
    done: dict[bytes, list[int]] = {}
    for i, target in enumerate(cells.targets):
        done.setdefault(np.packbits(target.choose).tobytes(), []).append(i)
    for same in done.values():
        first = cells.targets[same[0]]
        rows = np.flatnonzero(first.choose | first.score)
        positive = np.stack([cells.targets[i].positive[rows] for i in same], axis=1)
        out[rows[:, None], same] = ridge_scores(X[rows], positive, first.choose[rows], cells.group[rows])
    return out


def _probe(few: Array, target: Target) -> Array:
    few = np.asarray(few, np.float64)
    w, b, mean, scale = logistic(few[target.choose], target.positive[target.choose])
    return np.asarray(((few - mean) / scale) @ w + b)


def _yes_or_no(cells: Cells, target: Target, values: Array) -> dict[str, Score]:
    """F1 and kappa of a yes or no at the threshold of the best F1 on the choosing cells."""
    threshold = best_threshold(values[target.choose], target.positive[target.choose])
    at = target.score
    yes, truth, weights = values[at] >= threshold, target.positive[at], cells.weights[:, at]
    return {
        "f1": as_score(f1(yes, truth, weights)),
        "kappa": as_score(cohen_kappa(yes.astype(int), truth.astype(int), 2, weights)),
    }


def surest(cells: Cells, values: Array, at: Sequence[int], scored: Array) -> Array:
    """The value of each scored cell whose probe is furthest above its threshold: int [n scored], positions in `at`.

    A value's threshold lets it be said of as many choosing cells as have it: a regression on yes and no would never say
    rare ones.
    """
    choose = cells.targets[at[0]].choose
    thresholds = [np.quantile(values[choose, i], 1 - cells.targets[i].positive[choose].mean()) for i in at]
    return np.asarray((values[scored][:, list(at)] - thresholds).argmax(1))


def by_group(cells: Cells, scores: Sequence[Score], *, within: bool) -> dict[str, Score]:
    """Mean score of each group of targets: over its values, then (`within`) over the strata where it is measurable."""
    found: dict[str, dict[str, list[Score]]] = {}
    for target, score in zip(cells.targets, scores, strict=True):
        if bool(target.stratum) == within:
            found.setdefault(target.group, {}).setdefault(target.stratum, []).append(score)
    return {group: mean_score([mean_score(s) for s in strata.values()]) for group, strata in found.items()}


def overall(cells: Cells, scores: Sequence[Score], *, within: bool) -> Score | None:
    """Mean over the groups; None where none is measurable."""
    groups = by_group(cells, scores, within=within)
    return mean_score(list(groups.values())) if groups else None
