"""Section 8: are the same concepts active elsewhere, and do they mean the same there?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, permutations
from typing import Any

import numpy as np
import numpy.typing as npt

from cytosae._progress import say
from cytosae.evaluation._bootstrap import (
    Score,
    as_score,
    by_cell,
    compare,
    draw_weights,
    interval,
    mean_score,
    precision_of_draws,
)
from cytosae.evaluation._candidates import POOLS, Candidates, Pick, random_subsets
from cytosae.evaluation._context import Context
from cytosae.evaluation._origins import common_labels, origins
from cytosae.evaluation._targets import MIN_CELLS, Target

Array = npt.NDArray[Any]
#: Shares of the cells from which on a concept counts as active in a data set.
FREQUENCIES = (0.01, 0.05, 0.2)
#: Random choices of an equal number of candidates, and cells a data set at most for the overlap of active concepts.
_REPEATS, _REPEATS_FAST, _CELLS = 5, 3, 1_000
#: Bootstrap draws at most of an overlap.
_OVERLAP_DRAWS = 200


@dataclass(frozen=True)
class Journey:
    """From one data set to another: the labels they share, as targets on the first and on the second.

    `here` chooses on the first set's choosing cells and scores on its others; `there` is scored on all cells of the second.
    """

    origin: str
    destination: str
    here: list[Target]
    there: list[Target]


class Transfer:
    """Jaccard index and rank correlation of active concepts between data sets; AP of a label's concept on another set."""

    name, version = "transfer", 2
    title = "Transfer"
    question = "Are the same concepts active in another laboratory's cells, and do they still mean the same cell type there?"  # fmt: skip

    def missing(self, context: Context) -> str | None:
        """Two data sets with labels in common."""
        if "patch" not in context.kinds():
            return "the token store holds no patch tokens"
        if len(_sets(context)) < 2:
            return f"two data sets with {2 * MIN_CELLS} cells each are needed"
        if not journeys(context):
            return f"no two data sets share two labels with {MIN_CELLS} cells with and without each"
        return None

    def measure(self, context: Context) -> dict[str, Any]:
        """See `Section`."""
        ways = journeys(context)
        comparisons, rows, chosen, n_tried = [], [], [], 0
        for way, found, picks, n in travels(context, ways):
            n_tried += n
            where = f"{way.origin} to {way.destination}"
            for asked in ("all candidates", "equal candidates"):
                ours = mean_score(found["dictionary"][asked])
                controls = [(u.name, u.title, mean_score(found[u.name][asked])) for u in context.controls]
                comparisons.append(compare(f"{where}: AP there, {asked}", ours, controls))
            base = float(np.mean([t.positive[t.score].mean() for t in way.there]))
            for units in context.units:
                home, away = (mean_score(found[units.name][k]) for k in ("at home", "all candidates"))
                rows.append([where, units.title, len(way.here), _text(home), _text(away), base])
            chosen += [[where, t.value, f"{p.unit} ({p.pool})", p.precision, _text(h), _text(a)]
                       for t, p, h, a in zip(way.here, picks, found["dictionary"]["at home"],
                                             found["dictionary"]["all candidates"], strict=True)]  # fmt: skip
        sets = sorted({name for way in ways for name in (way.origin, way.destination)})
        return {
            "comparisons": comparisons,
            "tables": [
                {"title": "What a label's concept is worth elsewhere", "rows": rows, "note": "Average precision, mean over the labels shared; base rate: of the labels there.",
                 "header": ["way", "units", "labels", "at home (scored cells)", "there", "base rate there"]},
                _overlap(context, sets),
                {"title": "The concept of each label", "rows": chosen, "folded": True,
                 "header": ["way", "label", "concept (over patches)", "AP choosing", "AP at home", "AP there"]},
            ],
            "chosen": "Units and pooling were chosen on choosing cells of the first data set only; no cell of the second was looked at.",
            "n": {"data sets": len(sets), "ways": len(ways)},
            "notes": [
                "Sets differ in stain, magnification, crop and mix of cells at once: a loss cannot be laid to one of these.",
                "A loss may be the backbone's: raw dimensions and principal components travel beside the dictionary.",
                "Raw dimensions and components fire in nearly every cell; their overlap says nothing.",
                "Overlaps are of equal numbers of cells; the two halves of one set, no larger, are what could be reached.",
                "Mature and immature stages go by common names; a set's own borders between them may differ.",
            ],
            "n_configurations": n_tried,
        }  # fmt: skip


def journeys(context: Context) -> list[Journey]:
    """All ordered pairs of data sets that share at least two labels with enough cells on both."""
    label, origin = common_labels(context.frame), origins(context.frame)
    out = []
    for a, b in permutations(_sets(context), 2):
        here = _targets(label, (origin == a) & (label != ""), context.part, a)
        there = _targets(label, (origin == b) & (label != ""), np.full(len(label), "score"), b)
        shared = [t.value for t in here if t.measurable and any(_enough(o) and o.value == t.value for o in there)]
        if len(shared) >= 2:
            out.append(Journey(a, b, *([t for t in side if t.value in shared] for side in (here, there))))
    return out


def travels(
    context: Context, ways: Sequence[Journey]
) -> list[tuple[Journey, dict[str, dict[str, list[Score]]], list[Pick], int]]:
    """Choose at home, score at home and away.

    Returns
    -------
    For each way: units -> ``at home``, ``all candidates`` (away), ``equal candidates`` (away) -> one score a label; the dictionary's
    picks; and how many candidates were tried.
    """
    out = []
    for origin in sorted({way.origin for way in ways}):
        mine = [way for way in ways if way.origin == origin]
        targets = list({t.value: t for way in mine for t in way.here}.values())
        at = {t.value: i for i, t in enumerate(targets)}
        rows = np.flatnonzero(np.logical_or.reduce([t.choose for t in targets]))
        cut = [replace(t, positive=t.positive[rows], choose=t.choose[rows], score=t.score[rows]) for t in targets]
        n_alive = {u.name: int((context.features(u, "max")[rows] > 0).any(0).sum()) for u in context.units}
        draws = [(_Draws(context, way.here[0].score), _Draws(context, way.there[0].score)) for way in mine]
        found: list[dict[str, dict[str, list[Score]]]] = [{} for _ in mine]
        picks: list[list[Pick]] = [[] for _ in mine]
        for units in context.units:
            say(f"transfer: {units.name}, from {origin}")
            whole = {pool: context.features(units, pool) for pool in POOLS}
            candidates = Candidates.of(
                {p: np.asarray(x[rows]) for p, x in whole.items()}, cut, np.ones(len(rows), bool)
            )
            subsets = random_subsets(
                candidates.alive, min(n_alive.values()), _REPEATS_FAST if context.fast else _REPEATS, context.seed
            )
            for w, way in enumerate(mine):
                scores: dict[str, list[Score]] = {"at home": [], "all candidates": [], "equal candidates": []}
                for here, there in zip(way.here, way.there, strict=True):
                    best = candidates.best(at[here.value])
                    equal = [candidates.best(at[here.value], subset) for subset in subsets]
                    away = {p: draws[w][1].precision(whole[p.pool][:, p.unit], there.positive) for p in {best, *equal}}
                    scores["at home"].append(draws[w][0].precision(whole[best.pool][:, best.unit], here.positive))
                    scores["all candidates"].append(away[best])
                    scores["equal candidates"].append(mean_score([away[p] for p in equal]))
                    if units.kind == "dictionary":
                        picks[w].append(best)
                found[w][units.name] = scores
        n = sum(n_alive.values()) * len(POOLS)
        out += [(way, f, p, n * len(way.here)) for way, f, p in zip(mine, found, picks, strict=True)]
    return out


class _Draws:
    """Average precision over some cells (bool [n]), whose groups are drawn."""

    def __init__(self, context: Context, scored: Array) -> None:
        self.rows = np.flatnonzero(scored)
        self.drawn = by_cell(draw_weights(context.unit[self.rows], context.n_draws, context.seed))

    def precision(self, values: Array, positive: Array) -> Score:
        at = np.arange(len(self.rows))
        return as_score(precision_of_draws(np.asarray(values[self.rows]), positive[self.rows], self.drawn, at))


def _overlap(context: Context, sets: list[str]) -> dict[str, Any]:
    """Jaccard index at each frequency and rank correlation of frequencies, of equal numbers of cells."""
    origin = origins(context.frame)
    halves = {}
    n = min(_CELLS, *(int((origin == s).sum()) for s in sets)) // 2
    for i, name in enumerate(sets):
        rng = np.random.Generator(np.random.Philox(key=[context.seed, 61 + i]))
        rows = rng.permutation(np.flatnonzero(origin == name))
        halves[name] = (np.sort(rows[:n]), np.sort(rows[n : 2 * n]))
    n_draws = min(context.n_draws, _OVERLAP_DRAWS)
    weights = {
        name: [draw_weights(context.unit[h], n_draws, context.seed) for h in both] for name, both in halves.items()
    }
    rows_out: list[list[Any]] = []
    for units in context.units:
        X = context.features(units, "max")
        frequency = {name: [_frequencies(X[h] > 0, w) for h, w in zip(both, weights[name], strict=True)]
                     for name, both in halves.items()}  # fmt: skip
        pairs = [(f"{a}, {b}", frequency[a][0], frequency[b][1]) for a, b in combinations(sets, 2)]
        pairs += [(f"{a}, its two halves", frequency[a][0], frequency[a][1]) for a in sets]
        for what, f, g in pairs:
            found = [[jaccard(u, v, at) for u, v in zip(f, g, strict=True)] for at in FREQUENCIES]
            found.append([rank_correlation(u, v) for u, v in zip(f, g, strict=True)])
            rows_out.append([what, units.title, *(_about(np.array(row, np.float64)) for row in found)])
    header = ["data sets", "units", *(f"Jaccard, active in {f:.0%} of the cells" for f in FREQUENCIES), "rank correlation of frequencies"]  # fmt: skip
    return {"title": "Concepts active in both", "header": header, "rows": sorted(rows_out, key=lambda r: str(r[0])),
            "note": f"{n:,} cells of each side; 95% intervals: 1.96 standard deviations of {n_draws} draws of the cells' groups to either side (the draws themselves repeat cells, so they see fewer rare concepts and lie lower). Rank correlation over the units that fire on either."}  # fmt: skip


def _about(rows: npt.NDArray[np.float64]) -> str:
    """The first value, and 1.96 standard deviations of the others to either side of it."""
    if np.isnan(rows[0]) or np.isnan(rows[1:]).mean() > 0.5:
        return "not measurable"
    off = 1.96 * float(np.nanstd(rows[1:]))
    return f"{rows[0]:.3f} ({max(rows[0] - off, -1):.3f} to {min(rows[0] + off, 1):.3f})"


def _frequencies(fires: Array, weights: Array) -> npt.NDArray[np.float64]:
    """Share of the drawn cells in which each unit fires, [1 + n_draws, n_units], from bool [n, n_units]."""
    drawn = weights.astype(np.float32)
    return np.asarray((drawn @ fires.astype(np.float32)) / drawn.sum(1, keepdims=True), np.float64)


def jaccard(f: Array, g: Array, at: float) -> float | None:
    """Concepts whose frequency is at least `at` in both sets, over those in either; None where there are none."""
    a, b = f >= at, g >= at
    return float((a & b).sum() / (a | b).sum()) if (a | b).any() else None


def rank_correlation(f: Array, g: Array) -> float | None:
    """Spearman's correlation of two frequencies over the concepts active in either; None where it is not defined."""
    from scipy.stats import rankdata

    either = (f > 0) | (g > 0)
    a, b = rankdata(f[either]), rankdata(g[either])
    if either.sum() < 3 or a.std() == 0 or b.std() == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


def _sets(context: Context) -> list[str]:
    names, counts = np.unique(origins(context.frame), return_counts=True)
    return [str(name) for name, n in zip(names, counts, strict=True) if name and n >= 2 * MIN_CELLS]


def _targets(label: Array, among: Array, part: Array, group: str) -> list[Target]:
    return [Target(group, str(v), "", among & (label == v), among & (part == "choose"), among & (part == "score"))
            for v in np.unique(label[among])]  # fmt: skip


def _enough(target: Target) -> bool:
    return min(target.counts[2:]) >= MIN_CELLS


def _text(score: Score) -> str:
    found = interval(score)
    if found["value"] is None or found["low"] is None:
        return "not measurable"
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"
