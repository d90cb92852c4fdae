"""Section 10: does the rest of the network listen to the concepts? Removed, kept, and steered along."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cytosae._progress import say
from cytosae.evaluation._bootstrap import Score, compare, draw_weights, mean_score
from cytosae.evaluation._candidates import random_subsets
from cytosae.evaluation._context import Context
from cytosae.evaluation._effects import REMOVED, SIDES, Lab, Task, text
from cytosae.evaluation._interventions import READOUTS, Bench, Codes, Probes
from cytosae.evaluation._probe import standardised_differences
from cytosae.evaluation._targets import ATTRIBUTES, Target, targets_of
from cytosae.evaluation._units import Units, pca_units

Array = npt.NDArray[Any]
#: (read-out, units removed, side) -> the drop of each target, and the same per size of change.
Effects = dict[tuple[str, int, str], list[tuple[Score, Score]]]
#: Ends the names of what is compared with as many candidates on every side.
EQUAL = ", equal candidates"

#: Cells to fit probes on; targets at most (types, attributes); cells with and without a target.
_FITTED, _TYPES, _ATTRIBUTES, _WITH, _WITHOUT = 800, 6, 3, 16, 12
_FITTED_FAST, _TYPES_FAST, _ATTRIBUTES_FAST, _WITH_FAST, _WITHOUT_FAST = 200, 3, 1, 6, 4


class Causal:
    """Removing, keeping and steering concepts with the dictionary's error left in place; PatchSAE's class-wise curve."""

    name, version = "causal", 3
    title = "Causal effect"
    question = "Does what the network says of a cell change when a concept is taken away or added, and only in that respect?"  # fmt: skip

    def missing(self, context: Context) -> str | None:
        """All tokens, the backbone, a dictionary of patches, and a target."""
        if "patch" not in (context.sae.info.get("token_kinds") or ["patch"]):
            return "the dictionary was not trained on patches"
        if not _targets(context):
            return "no label or attribute has enough cells with and without it on both sides"
        return context.lacks_whole_cells()

    def measure(self, context: Context) -> dict[str, Any]:
        """See `Section`."""
        found = context.backbone()
        assert not isinstance(found, str)
        targets = _targets(context)
        rows = _bench_rows(context, targets)
        bench = Bench(context, *found, rows)
        tasks = [_task(context, t, rows) for t in targets]
        probes, spreads, base = _probes(context, targets, bench)
        weights = draw_weights(context.unit[rows], context.n_draws, context.seed)
        codes = {"dictionary": Codes(context.sae, bench), "random": Codes(context.random_dictionary, bench)}
        ranked, alive = _ranked(context, targets)
        lab = Lab(context, bench, codes, ranked, probes, spreads, base, weights)
        size = min(len(a) for a in alive.values())
        subsets = {s: random_subsets(a, size, 1, context.seed)[0] for s, a in alive.items()}
        fewer = lab.among({s: subsets[s] if len(alive[s]) > size else np.arange(len(ranked[s][0])) for s in alive})
        effects, fewer_effects = _removed(lab, tasks), {}
        changed = [s for s in ("dictionary", *SIDES) if len(alive["dictionary" if s == "matched" else s]) > size]
        if changed:
            fewer_effects = _removed(fewer, tasks, changed)
        comparisons, table = _compared(effects, "")
        equal, equal_table = _compared(effects | fewer_effects, EQUAL)
        comparisons, table = comparisons + equal, table + equal_table
        steered, lines, steering_comparisons = lab.steering(tasks)
        steering_comparisons += fewer.steering(tasks, (1.0,), EQUAL)[2]
        curve, series = lab.curve(tasks)
        names = ["dictionary", *SIDES]
        return {
            "comparisons": comparisons + steering_comparisons,
            "tables": [
                {"title": "Concepts of a type or attribute removed", "rows": table,
                 "header": ["what", *(f"{n}: drop" for n in names), *(f"{n}: drop per change" for n in names)],
                 "note": "Drop of the probe's score in cells that have it less that in cells that lack it, in standard deviations of the score; per change: over the root of the mean squared change of a patch (1: as large as patches vary)."},
                steered, *curve,
                _by_target(tasks, effects),
            ],
            "series": [*lines, *series],
            "chosen": "Concepts were ranked by the standardised difference of their mean codes, probes fitted and typical codes measured on choosing cells; effects are of scored cells.",
            "n": {"targets": len(tasks), "candidates in the equal comparison": size, "random choices of them": 1, "scored cells": len(rows), "cells to fit on": len(_fitted(context))},
            "notes": [
                "x becomes x + (y after - y before): the dictionary's own error stays, so that removing nothing changes nothing.",
                "A large change always does something: drops are compared at equal size of change, and beside equally active random concepts of the same dictionary.",
                f"A wider dictionary offers more candidates. In the equal comparison every side chooses among {size:,} of its units that fire, drawn once at random, and equally active concepts are drawn from the same ones.",
                *([] if "dictionary" in changed else ["The dictionary has no more units that fire than the smallest control: its equal comparison is that at full width."]),
                "Class-wise removal compares with random concepts of the same dictionary and stands at full width only.",
                "The class token is read out apart from the patches: it is not changed itself and hears of the change only through the blocks that follow.",
                "Steering pushes tokens to places no cell may reach; the difference of the two means, a direction made for the purpose, stands beside it.",
                "What a probe says is not what a person sees.",
            ],
            "n_configurations": int(sum(len(r) for at in ([lab, fewer] if changed else [lab]) for r in at.ranked["dictionary"])),
        }  # fmt: skip


def _targets(context: Context) -> list[Target]:
    """The cell types with the most cells, and the most even value of some attributes."""
    n_types, n_attributes = (_TYPES_FAST, _ATTRIBUTES_FAST) if context.fast else (_TYPES, _ATTRIBUTES)
    types = [t for t in targets_of(context.frame, context.part, "label") if t.measurable]
    types = sorted(sorted(types, key=lambda t: (-t.counts[0], t.value))[:n_types], key=lambda t: t.value)
    out = []
    for name in ATTRIBUTES:
        found = (
            [t for t in targets_of(context.frame, context.part, name) if t.measurable] if name in context.frame else []
        )
        if found:
            out.append(min(found, key=lambda t: (abs(t.counts[0] - t.counts[1]), t.value)))
    wanted = ("cytoplasm_vacuole", "nucleus_shape", "chromatin_density")
    out.sort(key=lambda t: wanted.index(t.group) if t.group in wanted else len(wanted))
    return types + out[:n_attributes]


def _bench_rows(context: Context, targets: Sequence[Target]) -> npt.NDArray[np.int64]:
    n_yes, n_no = (_WITH_FAST, _WITHOUT_FAST) if context.fast else (_WITH, _WITHOUT)
    rng = np.random.Generator(np.random.Philox(key=[context.seed, 79]))
    chosen = [rng.permutation(np.flatnonzero(t.score & (t.positive == has)))[:n]
              for t in targets for has, n in ((True, n_yes), (False, n_no))]  # fmt: skip
    return np.unique(np.concatenate(chosen))


def _task(context: Context, target: Target, rows: Array) -> Task:
    n_yes, n_no = (_WITH_FAST, _WITHOUT_FAST) if context.fast else (_WITH, _WITHOUT)
    yes, no = (np.flatnonzero(target.score[rows] & (target.positive[rows] == has)) for has in (True, False))
    rng = np.random.Generator(np.random.Philox(key=[context.seed, 83]))
    return Task(target, *(np.sort(rng.permutation(a)[:n]) for a, n in ((yes, n_yes), (no, n_no))))


def _fitted(context: Context) -> npt.NDArray[np.int64]:
    rows = np.flatnonzero(context.part == "choose")
    limit = _FITTED_FAST if context.fast else _FITTED
    rng = np.random.Generator(np.random.Philox(key=[context.seed, 89]))
    return rows if len(rows) <= limit else np.sort(rng.choice(rows, limit, replace=False))


def _probes(
    context: Context, targets: Sequence[Target], bench: Bench
) -> tuple[dict[str, Probes], dict[str, Array], dict[str, Array]]:
    """By read-out: the probes, the standard deviation of their scores, and the scores of the bench's cells unchanged."""
    rows = _fitted(context)
    fitted = Bench(context, bench.backbone, bench.layer, rows).run(np.arange(len(rows)))[0]
    here = bench.run(np.arange(len(bench.rows)))[0]
    positive, known = (np.stack([a[rows] for a in arrays], axis=1) for arrays in
                       ([t.positive for t in targets], [t.choose for t in targets]))  # fmt: skip
    probes = {r: Probes.fitted(fitted[r], positive, known) for r in READOUTS}
    spreads = {r: np.maximum(p.scores(fitted[r]).std(0), 1e-9) for r, p in probes.items()}
    return probes, spreads, {r: p.scores(here[r]) for r, p in probes.items()}


def _removed(lab: Lab, tasks: Sequence[Task], sides: Sequence[str] = ("dictionary", *SIDES)) -> Effects:
    """The selective drop of each target, and the same per size of change, by read-out, number of units and side."""
    out: Effects = {}
    for j, task in enumerate(tasks):
        say(f"causal: {task.target.group} = {task.target.value}")
        for k in REMOVED:
            for side in sides:
                for readout, pair in lab.removed(side, j, task, k).items():
                    out.setdefault((readout, k, side), []).append(pair)
    return out


def _compared(effects: Effects, where: str) -> tuple[list[dict[str, Any]], list[list[Any]]]:
    """Comparisons and rows of the table, means over the targets; `where` ends what they are called."""
    comparisons, table = [], []
    for readout in READOUTS:
        for k in REMOVED:
            raw, per_change = ({s: mean_score([p[i] for p in effects[readout, k, s]]) for s in ("dictionary", *SIDES)} for i in (0, 1))  # fmt: skip
            controls = [(s, title, per_change[s]) for s, title in SIDES.items()]
            what = f"{k} concept{'s' * (k > 1)} removed, {readout}"
            comparisons.append(compare(f"{what}: selective drop per change{where}", per_change["dictionary"], controls))
            table.append([what + where, *(text(raw[s]) for s in raw), *(text(per_change[s]) for s in per_change)])
    return comparisons, table


def _ranked(context: Context, targets: Sequence[Target]) -> tuple[dict[str, list[Array]], dict[str, Array]]:
    """Units by falling standardised difference of their mean over the patches, for each target, and those that fire: dictionary, random, components."""
    sides: dict[str, Units] = {"dictionary": context.dictionary, "random": context.random[0],
                               "pca": pca_units(context.sample)}  # fmt: skip
    rows = np.flatnonzero(np.logical_or.reduce([t.choose for t in targets]))
    positive = np.stack([t.positive[rows] & t.choose[rows] for t in targets], axis=1)
    counted = np.stack([t.choose[rows] for t in targets], axis=1)
    out, alive = {}, {}
    for name, units in sides.items():
        values = np.asarray(context.features(units, "mean")[rows])
        gap = standardised_differences(values, positive, counted)
        alive[name] = np.flatnonzero((values > 0).any(0))
        out[name] = [np.argsort(-gap[:, j], kind="stable") for j in range(len(targets))]
    return out, alive


def _by_target(tasks: Sequence[Task], effects: Effects) -> dict[str, Any]:
    rows = [[f"{t.target.group} = {t.target.value}", r, *(text(effects[r, 5, s][j][0]) for s in ("dictionary", *SIDES))]
            for j, t in enumerate(tasks) for r in READOUTS]  # fmt: skip
    return {"title": "Five concepts removed, by target: drop", "rows": rows, "folded": True,
            "header": ["target", "read-out", "dictionary", *SIDES.values()]}  # fmt: skip
