"""Section 3: the morphological attributes that pathologists gave, overall and within a cell type."""

from __future__ import annotations

from typing import Any

import numpy as np

from cytosae.evaluation._bootstrap import as_score, cohen_kappa, interval
from cytosae.evaluation._context import Context
from cytosae.evaluation._readout import surest
from cytosae.evaluation._targets import ATTRIBUTES, MIN_CELLS, Target, targets_of
from cytosae.evaluation._tasks import (
    Answers,
    answer,
    chosen_table,
    comparisons,
    group_table,
    not_measurable,
    probe_series,
)

#: What chooses among the values of an attribute, for kappa: name in `Readout.predictions` -> column.
_KAPPAS = {"probe 1": "one concept a value", "probe 5": "five a value", "full": "all concepts"}


class Attributes:
    """WBCAtt's eleven attributes: best single concepts, small probes, full probe; floor and annotators beside them."""

    name, version = "attributes", 2
    title = "Morphological attributes"
    question = (
        "Do single concepts, or a few of them, say what pathologists see: size, shape, chromatin, vacuoles, granules?"
    )

    def missing(self, context: Context) -> str | None:
        """Columns of attributes, with enough cells."""
        if not any(name in context.frame and context.frame[name].notna().any() for name in ATTRIBUTES):
            return f"the table has none of the attribute columns ({', '.join(list(ATTRIBUTES)[:3])} ...)"
        if "patch" not in context.kinds():
            return "the token store holds no patch tokens"
        if not any(t.measurable for t in _targets(context)):
            return f"no attribute has {MIN_CELLS} cells with and without it both to choose on and to score"
        return None

    def measure(self, context: Context) -> dict[str, Any]:
        """See `Section`."""
        targets = _targets(context)
        answers = answer(context, targets, floor=True)
        assert answers is not None
        lists = [
            comparisons(answers, within=False, where="overall"),
            comparisons(answers, within=True, where="within type"),
        ]
        tables = [
            _kappas(context, answers),
            group_table(answers, within=False, title="By attribute, overall", first="attribute"),
        ]
        within = group_table(answers, within=True, title="By attribute, within a cell type", first="attribute")
        measurable = {row[0] for row in within["rows"]}
        within["rows"] += [[name, *["not measurable"] * (len(within["header"]) - 1)] for name in ATTRIBUTES
                           if name in context.frame and name not in measurable]  # fmt: skip
        tables += [within, chosen_table(answers)]
        if (left := not_measurable(targets)) is not None:
            tables.append(left)
        scored = np.logical_or.reduce([t.score for t in answers.cells.targets])
        return {
            "comparisons": [c for found in lists for c in found],
            "tables": tables,
            "series": [probe_series(answers, within=False, where="overall"), probe_series(answers, within=True, where="within type")],
            "chosen": "Units, their pooling over the patches, thresholds and penalties were chosen, and probes fitted, on WBCAtt's train "
            f"split; scored on its {'test' if context.open_test else 'val'} split. Probes take the units of the largest standardised difference of means on train.",
            "n": {"choosing cells": int(answers.cells.choosing.sum()), "scored cells": int(scored.sum()),
                  "targets measurable": len(answers.cells.targets), "targets in all": len(targets),
                  "candidates in the equal comparison": answers.size, "random choices of them": answers.n_repeats},
            "notes": [
                "Most attributes follow from the cell type: the floor is the score of knowing the type alone. Only within a type does a concept say more than that.",
                f"Within a type a score needs {MIN_CELLS} cells with and {MIN_CELLS} without on both sides. Granule type, granule colour and granularity hardly vary within a type.",
                "A wider dictionary offers more candidates. In the equal comparison every side has the same number, drawn at random from its units that fire.",
                "Acevedo has no patient identifiers: cells of one person stand on both sides, so scores and intervals are optimistic.",
                "Image size leaks the class in Acevedo (it is lost here only where images were resized before).",
            ],
            "n_configurations": answers.n_configurations,
        }  # fmt: skip


def _targets(context: Context) -> list[Target]:
    out = []
    for name in ATTRIBUTES:
        if name in context.frame:
            out += targets_of(context.frame, context.part, name)
            out += targets_of(context.frame, context.part, name, strata="label")
    return out


def _kappas(context: Context, answers: Answers) -> dict[str, Any]:
    """Agreement with the annotation when the value is chosen whose probe is surest, beside the annotators' own."""
    rows = []
    targets = answers.cells.targets
    for name, annotators in ATTRIBUTES.items():
        at = [i for i, t in enumerate(targets) if t.group == name and not t.stratum]
        if len(at) < 2:
            continue
        scored = targets[at[0]].score & np.logical_or.reduce([targets[i].positive for i in at])
        truth = np.stack([targets[i].positive[scored] for i in at], axis=1).argmax(1)
        weights = answers.cells.weights[:, scored]

        def kappa(guess: Any, truth: Any = truth, n: int = len(at), weights: Any = weights) -> str:
            found = interval(as_score(cohen_kappa(guess, truth, n, weights)))
            if found["low"] is None:
                return "not measurable"
            return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"

        assert answers.floor_values is not None
        asked = [("dictionary", k) for k in _KAPPAS] + [("raw", "probe 5"), ("mean-token", "full")]
        said = [surest(answers.cells, answers.sides[side][1].predictions[k], at, scored) for side, k in asked]
        floor = answers.floor_values[scored][:, at].argmax(1)
        rows.append([name, annotators, kappa(floor), *(kappa(guess) for guess in said)])
    return {
        "title": "Agreement with the annotation (Cohen's kappa)", "rows": rows,
        "header": ["attribute", "annotators among themselves", "cell type alone", *_KAPPAS.values(), "five raw dimensions", "mean patch token, all"],
        "note": "The value whose probe is furthest above its threshold is taken; thresholds let each value be said of as many choosing cells as have it. Values that are not measurable are left out on both sides.",
    }  # fmt: skip
