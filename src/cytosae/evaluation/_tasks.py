"""Many targets, the dictionary and every control: from the context to comparisons and tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cytosae._progress import say
from cytosae.evaluation._bootstrap import Score, compare, draw_weights, interval
from cytosae.evaluation._candidates import POOLS, Candidates
from cytosae.evaluation._context import Context
from cytosae.evaluation._readout import EQUAL_SIZE, SIZES, Cells, Readout, by_group, full_probe, overall, read_out
from cytosae.evaluation._targets import Target, type_shares

Array = npt.NDArray[Any]
#: How what was asked is called in tables.
ASKED = {
    "single": "best single concept, AP", "single equal": "best single concept, equal candidates, AP", "f1": "best single concept, F1",
    f"probe {EQUAL_SIZE}": f"probe of {EQUAL_SIZE} concepts, AP",
    f"probe {EQUAL_SIZE} equal": f"probe of {EQUAL_SIZE}, equal candidates, AP", "probe 20": "probe of 20 concepts, AP", "full": "full probe, AP",
}  # fmt: skip


@dataclass(frozen=True)
class Answers:
    """Everything measured: `sides` name -> (title, readout), the dictionary first; `floors` score of each target from the cell type alone."""

    cells: Cells
    rows: Array
    sides: dict[str, tuple[str, Readout]]
    floors: list[Score] | None
    floor_values: Array | None
    shuffled: list[Score]
    size: int
    n_repeats: int

    @property
    def n_configurations(self) -> int:
        """Units times poolings times targets, and the probes."""
        units = sum(r.n_candidates for _, r in self.sides.values() if r.n_candidates) * len(POOLS)
        probes = sum(bool(r.n_candidates) for _, r in self.sides.values()) * (len(SIZES) + self.n_repeats)
        return (units + probes) * len(self.cells.targets)


def answer(context: Context, targets: Sequence[Target], *, floor: bool) -> Answers | None:
    """Read every measurable target out of the dictionary and its controls; None where nothing is measurable."""
    measurable = [t for t in targets if t.measurable]
    if not measurable:
        return None
    taking_part = np.zeros(len(context.frame), bool)
    for t in measurable:
        taking_part |= t.choose | t.score
    rows = np.flatnonzero(taking_part)
    cut = [replace(t, positive=t.positive[rows], choose=t.choose[rows], score=t.score[rows]) for t in measurable]
    choosing = np.logical_or.reduce([t.choose for t in cut])
    group = context.unit[rows]
    scored = np.logical_or.reduce([t.score for t in cut])
    weights = np.zeros((1 + context.n_draws, len(rows)), np.int16)
    weights[:, scored] = draw_weights(group[scored], context.n_draws, context.seed)
    cells = Cells(cut, choosing, group, weights)
    n_alive = {u.name: _n_alive(context, u, rows[choosing]) for u in context.units}
    size = min(n_alive.values())
    sides: dict[str, tuple[str, Readout]] = {}
    shuffled: list[Score] = []
    for units in context.units:
        X = {pool: np.asarray(context.features(units, pool)[rows]) for pool in POOLS}
        say(f"{units.name}: {len(cut)} targets, {n_alive[units.name]:,} candidates")
        candidates = Candidates.of(X, cut, choosing)
        sides[units.name] = (
            units.title,
            read_out(cells, candidates, size, context.n_repeats, context.seed, full=units.name not in ("raw", "pca")),
        )
        if units.kind == "dictionary":
            shuffled = _shuffled(cells, X, context.seed)
    for name, title, features in _token_features(context, rows):
        say(f"{name}: full probe")
        values = full_probe(cells, features)
        scores = [cells.precision(t, values[:, i]) for i, t in enumerate(cut)]
        sides[name] = (title, Readout(scores={"full": scores}, predictions={"full": values}))
    shares = np.stack([type_shares(context.frame, t)[rows] for t in measurable], axis=1) if floor else None
    floors = None if shares is None else [cells.precision(t, shares[:, i]) for i, t in enumerate(cut)]
    return Answers(cells, rows, sides, floors, shares, shuffled, size, context.n_repeats)


def comparisons(answers: Answers, *, within: bool, where: str) -> list[dict[str, Any]]:
    """The dictionary beside its controls for all that is asked, averaged over the groups of targets."""
    out = []
    for asked, title in ASKED.items():
        ours = overall(answers.cells, answers.sides["dictionary"][1].scores[asked], within=within)
        if ours is None:
            continue
        controls = [(name, title_of, score) for name, (title_of, readout) in answers.sides.items() if name != "dictionary"
                    if asked in readout.scores and (score := overall(answers.cells, readout.scores[asked], within=within))]  # fmt: skip
        if asked == "single" and (by_chance := overall(answers.cells, answers.shuffled, within=within)):
            controls.append(("shuffled", "shuffled labels", by_chance))
        if (
            answers.floors is not None
            and not within
            and asked not in ("f1", "single equal", f"probe {EQUAL_SIZE} equal")
        ):
            floor = overall(answers.cells, answers.floors, within=False)
            if floor is not None:
                controls.append(("floor", "cell type alone", floor))
        out.append(compare(f"{title}, {where}", ours, controls))
    return out


def probe_series(answers: Answers, *, within: bool, where: str) -> dict[str, Any]:
    """Average precision against the number of units of a probe, one line a side."""
    lines = []
    for title, readout in answers.sides.values():
        if "probe 1" in readout.scores:
            found = [(k, overall(answers.cells, readout.scores[f"probe {k}"], within=within)) for k in SIZES]
            lines.append({"name": title, "points": [[k, s.value] for k, s in found if s is not None]})
    return {
        "title": f"Probes of a few units, {where}",
        "x": "units",
        "y": "average precision",
        "log_x": True,
        "lines": lines,
    }


def group_table(answers: Answers, *, within: bool, title: str, first: str) -> dict[str, Any]:
    """One row a group of targets: the best single unit of each side, with what lies below any of them."""
    names = [n for n, (_, r) in answers.sides.items() if "single" in r.scores]
    scores = {n: by_group(answers.cells, answers.sides[n][1].scores["single"], within=within) for n in names}
    five = by_group(answers.cells, answers.sides["dictionary"][1].scores[f"probe {EQUAL_SIZE}"], within=within)
    floors = by_group(answers.cells, answers.floors, within=within) if answers.floors is not None else {}
    rates = [Score(float(t.positive[t.score].mean()), np.zeros(1)) for t in answers.cells.targets]
    base = by_group(answers.cells, rates, within=within)
    header = [first, "base rate", *(["cell type alone"] if floors and not within else []),
              "dictionary", *names[1:], f"probe of {EQUAL_SIZE} concepts"]  # fmt: skip
    rows = []
    for group in scores["dictionary"]:
        floor = [floors[group].value] if floors and not within else []
        rows.append([group, base[group].value, *floor, _text(scores["dictionary"][group]),
                     *(scores[n][group].value for n in names[1:]), _text(five[group])])  # fmt: skip
    return {
        "title": title,
        "header": header,
        "rows": rows,
        "note": "Average precision of the best single unit, mean over the values; 95% interval.",
    }


def chosen_table(answers: Answers) -> dict[str, Any]:
    """Which concept was chosen for each target, and what it scored where."""
    readout = answers.sides["dictionary"][1]
    rows = []
    for target, pick, score, kappa in zip(
        answers.cells.targets, readout.picks, readout.scores["single"], readout.scores["kappa"], strict=True
    ):
        name = f"{target.group} = {target.value}" + (f", within {target.stratum}" if target.stratum else "")
        yes, no, yes_scored, no_scored = target.counts
        rows.append([name, f"{pick.unit} ({pick.pool})", f"{yes} / {no}", f"{yes_scored} / {no_scored}", pick.precision,
                     _text(score), kappa.value])  # fmt: skip
    header = [
        "target",
        "concept (over patches)",
        "with / without, choosing",
        "with / without, scored",
        "AP choosing",
        "AP scored",
        "kappa",
    ]
    return {"title": "The concept chosen for each target", "header": header, "rows": rows, "folded": True}


def not_measurable(targets: Sequence[Target]) -> dict[str, Any] | None:
    """The targets with too few cells, by group and stratum."""
    found: dict[tuple[str, str], list[str]] = {}
    for t in targets:
        if not t.measurable and t.counts[0] + t.counts[2] > 0:
            found.setdefault((t.group, t.stratum or "all cells"), []).append(
                f"{t.value} ({t.counts[0]} / {t.counts[2]})"
            )
    rows = [[group, stratum, ", ".join(values)] for (group, stratum), values in sorted(found.items())]
    note = "Fewer than 20 with or 20 without on a side. In brackets: how many have it among choosing and scored cells."
    return (
        {"title": "Not measurable", "header": ["what", "among", "values"], "rows": rows, "note": note, "folded": True}
        if rows
        else None
    )


def _text(score: Score) -> str:
    found = interval(score)
    if found["value"] is None:
        return "not measurable"
    if found["low"] is None:
        return f"{found['value']:.3f}"
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def _n_alive(context: Context, units: Any, rows: Array) -> int:
    return int((context.features(units, "max")[rows] > 0).any(0).sum())


def _token_features(context: Context, rows: Array) -> list[tuple[str, str, Array]]:
    """The tokens themselves, for the full probe: the mean patch, and the class token where there is one."""
    mean = np.concatenate([context.read(rows[i : i + 64], "patch").mean(1).numpy() for i in range(0, len(rows), 64)])
    out = [("mean-token", "mean patch token", mean)]
    if "class" in context.kinds():
        first = np.concatenate(
            [context.read(rows[i : i + 512], "class")[:, 0].numpy() for i in range(0, len(rows), 512)]
        )
        out.append(("class-token", "class token", first))
    return out


def _shuffled(cells: Cells, X: dict[str, Array], seed: int) -> list[Score]:
    """The same search for labels swapped at random within each side's cells: what the best of so many candidates has by chance."""
    rng = np.random.Generator(np.random.Philox(key=[seed, 31]))
    targets = []
    for t in cells.targets:
        positive = t.positive.copy()
        for side in (t.choose, t.score):
            positive[side] = rng.permutation(positive[side])
        targets.append(replace(t, positive=positive))
    candidates = Candidates.of(X, targets, cells.choosing)
    return [cells.precision(t, candidates.values(candidates.best(i))) for i, t in enumerate(targets)]
