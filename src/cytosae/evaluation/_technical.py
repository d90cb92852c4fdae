"""Section 9: concepts of the picture rather than of the cell; kept in a side artifact, so that later stages can leave them out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cytosae._errors import CytosaeError
from cytosae._progress import say
from cytosae.evaluation._context import Context
from cytosae.evaluation._masks import cell_shares
from cytosae.evaluation._measurements import MEASURED, Question, areas, measure_images, questions_of
from cytosae.evaluation._places import Places, places, rim
from cytosae.storage import artifact_hash, write_table

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

KIND, VERSION = "technical", 1
#: Cells at most: measured, and looked at patch by patch.
_CELLS, _PLACED, _CELLS_FAST, _PLACED_FAST = 2_000, 400, 400, 60
#: From when on a concept is flagged: AUROC in both halves; AUROC of the place alone; share of the activation along the rim.
TELLS, FIXED, RIM = 0.8, 0.95, 0.8
#: Families of questions, in the order of the columns.
FAMILIES = ("data set", "slide", *MEASURED, "size")
FLAGS = {
    "off the cell": "lies on the cell less than half as much as a patch drawn blindly would",
    "position": f"its place alone says where it fires (AUROC of {FIXED} or more)",
    "rim": f"{RIM:.0%} or more of it lies in the outermost ring of patches",
    **{f: f"tells {f} within a cell type (AUROC of {TELLS} or more in both halves)" for f in FAMILIES},
}


@dataclass
class Judged:
    """One kind of units: places, the AUROC of each family (second half) with the value it tells, and the flags of each unit."""

    places: Places
    auroc: dict[str, Floats] = field(default_factory=dict)
    value: dict[str, list[str]] = field(default_factory=dict)
    flags: dict[str, Array] = field(default_factory=dict)
    alive: Array = field(default_factory=lambda: np.zeros(0, bool))


class Technical:
    """On-cell share, a test of position, and what tells data set, slide, focus, cast, border or crop size within a type."""

    name, version = "technical", 2
    title = "Technical concepts"
    question = "Which concepts speak of the picture (its place, focus, colour, border, slide or source) rather than of the cell?"  # fmt: skip

    def missing(self, context: Context) -> str | None:
        """All patches."""
        if "patch" not in context.kinds() or any(s.sampled for s in context.tokens.stores):
            return "the token store does not hold all patches"
        return None

    def measure(self, context: Context) -> dict[str, Any]:
        """See `Section`; writes ``technical.parquet`` beside the scorecard."""
        rows = _drawn(context, _CELLS_FAST if context.fast else _CELLS)
        placed = rows[np.argsort(_order(context, rows, 47), kind="stable")[: _PLACED_FAST if context.fast else _PLACED]]
        placed = np.sort(placed)
        half = _halves(context, rows)
        say("technical: measuring images")
        share, measured, why = _images(context, rows, placed)
        questions = questions_of(context.frame.iloc[rows], measured, half)
        area = float(share.mean()) if share is not None else None
        judged = {}
        for units in context.units:
            X = np.asarray(context.features(units, "max")[rows])
            judged[units.name] = judge(
                places(context, units, placed, _halves(context, placed), share), X, questions, half, area,
                context.tokens.stores[0].grid,
            )  # fmt: skip
        chance = _by_chance(context, questions, half, rows)
        self._write(context, judged["dictionary"])
        titles = {u.name: u.title for u in context.units}
        families = sorted({q.family for q in questions})
        notes = [
            "Flags are hints, not verdicts: a concept of red cells or of platelets lies off the cell and may still be biology, and one laboratory's patients may differ from another's.",
            "Within a type only: what tells data sets apart is asked among cells of one common label, all else within one label of one data set.",
            "A concept that fires in few cells cannot reach a high AUROC; it is not cleared by that.",
            "Without a mask the cell is estimated from colour (the bluest part nearest the middle and what is stained around it).",
        ]
        if why:
            notes.append(f"Focus, colour, border and on-cell share were left out: {why}.")
        lacking = [f for f in FAMILIES if f not in families]
        if lacking:
            notes.append(
                f"Not measurable with 20 cells on each side within a type in both halves: {', '.join(lacking)}."
            )
        return {
            "tables": [_shares(judged, titles, chance), _flagged(judged["dictionary"])],
            "chosen": "Cells were halved at random. Which data set or slide, and which direction, was chosen on one half; the AUROC is that of the other; a flag wants both.",
            "n": {"cells measured": len(rows), "cells looked at patch by patch": len(placed), "questions": len(questions),
                  "concepts that fire": int(judged["dictionary"].alive.sum()),
                  "concepts flagged": int(_any(judged["dictionary"]).sum())},
            "notes": notes, "n_configurations": len(questions) * int(judged["dictionary"].alive.sum()),
            "files": ["technical.parquet"],
        }  # fmt: skip

    @staticmethod
    def _write(context: Context, judged: Judged) -> None:
        n = len(judged.alive)
        columns: dict[str, Any] = {"latent": np.arange(n, dtype=np.int32), "n_tokens": judged.places.n_tokens}
        on = judged.places.on_cell_share
        columns["on_cell_share"] = np.full(n, np.nan) if on is None else on
        columns |= {"position_auroc": judged.places.position_auroc, "border_share": judged.places.border_share}
        for family in FAMILIES:
            name = family.replace(" ", "_")
            columns[f"{name}_auroc"] = judged.auroc.get(family, np.full(n, np.nan))
            if family in ("data set", "slide"):
                columns[name] = judged.value.get(family, [""] * n)
        columns["flags"] = [", ".join(f for f in FLAGS if f in judged.flags and judged.flags[f][i]) for i in range(n)]
        inputs = dict(context.inputs)
        if "index" in context.paths:
            inputs["index"] = artifact_hash(context.paths["index"])
        arrays = {k: pa.array(v, from_pandas=True) for k, v in columns.items()}
        write_table(context.out / "technical.parquet", pa.table(arrays), kind=KIND, version=VERSION, inputs=inputs,
                    config={**context.config, "tells": TELLS, "fixed": FIXED, "rim": RIM})  # fmt: skip


def judge(
    found: Places, X: Array, questions: list[Question], half: Array, area: float | None, grid: tuple[int, int]
) -> Judged:
    """Flags of every unit.

    Parameters
    ----------
    X
        A cell's value of every unit, [n, n_units].
    half
        bool [n]: the second half.
    area
        Mean share of a patch that the cell covers.
    """
    out = Judged(found, alive=np.asarray((X > 0).any(0)))
    with np.errstate(invalid="ignore"):
        if found.on_cell_share is not None and area is not None:
            out.flags["off the cell"] = found.on_cell_share < area / 2
        out.flags["position"] = found.position_auroc >= FIXED
        if rim(grid).mean() <= 0.5:
            out.flags["rim"] = found.border_share >= RIM
    every = areas(X, questions, half)
    for family in FAMILIES:
        which = [i for i, q in enumerate(questions) if q.family == family]
        if not which:
            continue
        asked = [questions[i] for i in which]
        first, second = (a[which] for a in every)
        if asked[0].both_ways:
            turned = first < 0.5
            first, second = np.where(turned, 1 - first, first), np.where(turned, 1 - second, second)
        best = first.argmax(0)
        at = np.arange(X.shape[1])
        out.auroc[family] = np.where(out.alive, second[best, at], np.nan)
        out.value[family] = [asked[b].value if a else "" for b, a in zip(best, out.alive, strict=True)]
        out.flags[family] = out.alive & (first[best, at] >= TELLS) & (second[best, at] >= TELLS)
    return out


def _by_chance(context: Context, questions: list[Question], half: Array, rows: Array) -> dict[str, float]:
    """Share of concepts flagged when the answers are swapped at random within their strata and halves."""
    rng = np.random.Generator(np.random.Philox(key=[context.seed, 43]))
    X = np.asarray(context.features(context.dictionary, "max")[rows])
    alive = np.asarray((X > 0).any(0))
    swapped = []
    for q in questions:
        positive = q.positive.copy()
        for stratum in np.unique(q.stratum[q.stratum >= 0]):
            for side in (False, True):
                at = np.flatnonzero((q.stratum == stratum) & (half == side))
                positive[at] = rng.permutation(positive[at])
        swapped.append(Question(q.family, q.value, positive, q.stratum, q.both_ways))
    hit: dict[str, Array] = {}
    for q, first, second in zip(swapped, *areas(X, swapped, half), strict=True):
        found = (first >= TELLS) & (second >= TELLS)
        if q.both_ways:
            found |= (first <= 1 - TELLS) & (second <= 1 - TELLS)
        hit[q.family] = hit.get(q.family, np.zeros(len(alive), bool)) | found
    return {family: float(found[alive].mean()) if alive.any() else 0.0 for family, found in hit.items()}


def _images(context: Context, rows: Array, placed: Array) -> tuple[Floats | None, dict[str, Floats], str]:
    """Shares of patches on the cell (of `placed`), measurements (of `rows`), and why there are none."""
    frame, root = context.frame, context.cells.root
    try:
        return (cell_shares(frame.iloc[placed], root, context.tokens.stores[0].grid),
                measure_images(frame.iloc[rows], root), "")  # fmt: skip
    except CytosaeError:  # its message names a file of this machine, the scorecard may travel
        return None, {}, "the images cannot be read where the table says they lie"


def _order(context: Context, rows: Array, salt: int) -> list[bytes]:
    ids = context.frame["cell_id"].to_numpy(np.int64)[rows]
    return [hashlib.sha256(f"{context.seed}:{salt}:{i}".encode()).digest() for i in ids]


def _drawn(context: Context, limit: int) -> npt.NDArray[np.int64]:
    """At most so many cells, the same ones whatever the order of the table."""
    every = np.arange(len(context.frame))
    order = np.array(_order(context, every, 37), dtype=object)
    return np.sort(np.argsort(order, kind="stable")[:limit])


def _halves(context: Context, rows: Array) -> Array:
    return np.array([d[0] % 2 == 1 for d in _order(context, rows, 53)], bool)


def _any(judged: Judged) -> Array:
    return np.asarray(np.logical_or.reduce(list(judged.flags.values())) & judged.alive)


def _shares(judged: dict[str, Judged], titles: dict[str, str], chance: dict[str, float]) -> dict[str, Any]:
    """Share of the units that fire, flag by flag."""
    rows: list[list[Any]] = []
    for flag in [*FLAGS, "any of these"]:
        if flag != "any of these" and flag not in judged["dictionary"].flags:
            continue
        cells: list[Any] = []
        for one in judged.values():
            hit = _any(one) if flag == "any of these" else one.flags[flag] & one.alive
            share = float(hit.sum() / max(one.alive.sum(), 1))
            cells += [int(hit.sum()), share] if one is judged["dictionary"] else [share]
        rows.append([flag, FLAGS.get(flag, ""), *cells, chance.get(flag, "")])
    header = ["flag", "meaning", "concepts", "dictionary", *(titles[n] for n in judged if n != "dictionary"), "by chance"]  # fmt: skip
    return {"title": "Flagged, as a share of the units that fire", "header": header, "rows": rows,
            "note": "By chance: the same search of the dictionary with answers swapped at random within their strata."}  # fmt: skip


def _flagged(judged: Judged) -> dict[str, Any]:
    """The concepts with a flag, those that fire most often first."""
    hit = np.flatnonzero(_any(judged))
    hit = hit[np.argsort(-judged.places.n_tokens[hit], kind="stable")][:60]
    on = judged.places.on_cell_share
    rows = []
    for i in hit:
        names = [f + (f" ({judged.value[f][i]})" if judged.value.get(f, [""])[i if f in judged.value else 0] else "")
                 for f in FLAGS if f in judged.flags and judged.flags[f][i]]  # fmt: skip
        rows.append([int(i), ", ".join(names), None if on is None else float(on[i]), float(judged.places.position_auroc[i]),
                     float(judged.places.border_share[i])])  # fmt: skip
    return {"title": "Flagged concepts", "header": ["concept", "flags", "on-cell share", "AUROC of the place", "share along the rim"],
            "rows": rows, "folded": True, "note": "At most 60, the most frequent first; all of them stand in technical.parquet."}  # fmt: skip
