"""Section 4: the cell types of every data set present."""

from __future__ import annotations

from typing import Any

import numpy as np

from cytosae.evaluation._bootstrap import accuracy, as_score, interval
from cytosae.evaluation._context import Context
from cytosae.evaluation._targets import MIN_CELLS, Target, targets_of
from cytosae.evaluation._tasks import (
    Answers,
    answer,
    chosen_table,
    comparisons,
    group_table,
    not_measurable,
    probe_series,
)


class CellTypes:
    """The labels of every data set: best single concepts, small probes, full probe."""

    name, version = "cell-types", 2
    title = "Cell types"
    question = "Do single concepts, or a few of them, say which type a cell is?"

    def missing(self, context: Context) -> str | None:
        """Labels, at least two with enough cells."""
        if "patch" not in context.kinds():
            return "the token store holds no patch tokens"
        if not any(t.measurable for t in _targets(context)):
            return f"no label has {MIN_CELLS} cells with and without it both to choose on and to score"
        return None

    def measure(self, context: Context) -> dict[str, Any]:
        """See `Section`."""
        targets = _targets(context)
        answers = answer(context, targets, floor=False)
        assert answers is not None
        tables = [
            group_table(answers, within=False, title="By data set", first="data set"),
            _accuracies(answers),
            chosen_table(answers),
        ]
        if (left := not_measurable(targets)) is not None:
            tables.append(left)
        sets = sorted({t.group for t in answers.cells.targets})
        notes = [
            "A wider dictionary offers more candidates. In the equal comparison every side has the same number, drawn at random from its units that fire.",
            "Image size, compression and colour leak the class or the slide in some sets; a unit may read these and not the cell.",
        ]
        if any("acevedo" in s for s in sets):
            notes.append(
                "Acevedo has no patient identifiers: cells of one person stand on both sides, so scores and intervals are optimistic."
            )
        if any("chula" in s for s in sets):
            notes.append("Six of the twenty Chula slides hold basophils only: the slide gives the type away.")
        return {
            "comparisons": comparisons(answers, within=False, where="mean over data sets"),
            "tables": tables,
            "series": [probe_series(answers, within=False, where="mean over data sets")],
            "chosen": "Units, pooling, thresholds and penalties were chosen, and probes fitted, on choosing cells; whole fields, patients and near "
            "duplicates lie on one side; where WBCAtt's split is known it decides (train chooses, val is scored).",
            "n": {"data sets": len(sets), "choosing cells": int(answers.cells.choosing.sum()),
                  "scored cells": int(np.logical_or.reduce([t.score for t in answers.cells.targets]).sum()),
                  "types measurable": len(answers.cells.targets), "candidates in the equal comparison": answers.size,
                  "random choices of them": answers.n_repeats},
            "notes": notes,
            "n_configurations": answers.n_configurations,
        }  # fmt: skip


def _targets(context: Context) -> list[Target]:
    names = context.frame["dataset"].astype("string").fillna("unnamed").to_numpy(str)
    out = []
    for name in np.unique(names):
        out += targets_of(context.frame, context.part, "label", group=str(name), among=names == name)
    return out


def _accuracies(answers: Answers) -> dict[str, Any]:
    """Share of cells whose type is right when the type is taken whose probe is surest."""
    columns = [("dictionary", f"probe {k}") for k in (1, 5, 50)] + [("raw", "probe 5"), ("raw", "probe 50")]
    columns += [(name, "full") for name, (_, r) in answers.sides.items() if "full" in r.predictions]
    rows = []
    targets = answers.cells.targets
    for name in sorted({t.group for t in targets}):
        at = [i for i, t in enumerate(targets) if t.group == name]
        scored = targets[at[0]].score & np.logical_or.reduce([targets[i].positive for i in at])
        truth = np.stack([targets[i].positive[scored] for i in at], axis=1).argmax(1)
        weights = answers.cells.weights[:, scored]
        row: list[Any] = [name, len(at), int(scored.sum()), float(np.bincount(truth).max() / len(truth))]
        for side, asked in columns:
            values = answers.sides[side][1].predictions[asked]
            found = interval(as_score(accuracy(values[scored][:, at].argmax(1), truth, weights)))
            row.append(f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})")
        rows.append(row)
    header = ["data set", "types", "scored cells", "largest type", *(f"{side}, {asked}" for side, asked in columns)]
    return {"title": "Accuracy", "header": header, "rows": rows, "note": "Types that are not measurable are left out."}
