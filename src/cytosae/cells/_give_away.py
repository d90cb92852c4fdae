"""Shortcuts: how well the size of an image or the header of its file alone tells the class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt
import pandas as pd

from cytosae.cells._facts import Facts

Values = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

#: Fewer cells or classes than this make no statement.
_MIN_CELLS = 20

#: Ties of classes with fewer cells than this are chance, and count as wrong.
_TIED = 5

#: A shortcut is serious when it removes this share of the errors that always guessing the commonest class makes.
SERIOUS = 0.05


@dataclass(frozen=True)
class GiveAway:
    """How well one property predicts the label, each cell being left out of the count that predicts it.

    Attributes
    ----------
    what
        The property.
    target
        ``label`` or ``dataset``.
    accuracy, guess
        Share of cells predicted by the property, and by the commonest class alone.
    examples
        Value, number of cells with it, its commonest class, that class's share among them, and among all cells.
    """

    what: str
    target: str
    accuracy: float
    guess: float
    examples: list[tuple[str, int, str, float, float]]

    @property
    def gain(self) -> float:
        """Share of the guess's errors that the property removes."""
        return (self.accuracy - self.guess) / (1 - self.guess) if self.guess < 1 else 0.0

    @property
    def serious(self) -> bool:
        """Whether a model could profit from it: over all cells, or over those of one value.

        The length of a file also follows what the picture shows, so it counts only where it tells data sets apart.
        """
        if self.what == "file length" and self.target == "label":
            return False
        return self.gain >= SERIOUS or bool(self.telling)

    @property
    def telling(self) -> list[tuple[str, int, str, float, float]]:
        """The examples that by themselves give a class away."""
        return [e for e in self.examples if e[1] >= _MIN_CELLS and e[3] >= max(0.5, 2 * e[4])]

    def sentence(self) -> str:
        """The finding in words."""
        if self.gain < SERIOUS and self.telling:
            value, n, label, share, prior = self.telling[0]
            return (
                f"the {self.what} {value} gives the {self.target} away: "
                f"{share:.0%} of {n:,} cells are {label}, {prior:.0%} of all"
            )
        value, n, label, share, _ = self.examples[0] if self.examples else ("", 0, "", 0.0, 0.0)
        example = f" ({value}: {share:.0%} of {n:,} cells are {label})" if self.examples else ""
        return (
            f"the {self.what} alone tells the {self.target} of {self.accuracy:.0%} of the cells, "
            f"guessing {self.guess:.0%}{example}"
        )


def give_aways(facts: Facts) -> list[GiveAway]:
    """The shortcuts of a table, the strongest first."""
    n = facts.one("SELECT COUNT(*) FROM ok")
    n_sizes = facts.one("SELECT COUNT(*) FROM (SELECT 1 FROM ok GROUP BY width, height)")
    properties = {"image size": "width || ' x ' || height", "file header": "file_header", "colour mode": "mode"}
    tenths = {}
    if n >= _MIN_CELLS and facts.one("SELECT COUNT(file_bytes) FROM ok") == n:
        properties["file length"] = "file_bytes"
        tenths["file length"] = _Tenths(facts, "file_bytes", n, "bytes", lambda v: v)
    if n >= _MIN_CELLS and n_sizes > n / 10:
        properties["image size"] = "width * height"
        tenths["image size"] = _Tenths(facts, "width * height", n, "px wide", np.sqrt)
    found = []
    for target in ("label", "dataset"):
        known = f"FROM ok WHERE {target} IS NOT NULL"
        if (
            facts.one(f"SELECT COUNT(*) {known}") < _MIN_CELLS
            or facts.one(f"SELECT COUNT(DISTINCT {target}) {known}") < 2
        ):
            continue
        for what, value in properties.items():
            table = _table(facts, value, target, tenths.get(what))
            if len(table[0]) > 1:
                found.append(_measure(what, target, *table))
    return sorted(found, key=lambda g: -g.gain)


class _Tenths:
    """Values in ten classes of equal frequency, as ``pandas.qcut`` makes them."""

    def __init__(self, facts: Facts, value: str, n: int, unit: str, scale: Callable[[Values], Values]) -> None:
        self._unit, self._scale = unit, scale
        edges = []
        for tenth in np.linspace(0, 1, 11):
            place = (n - 1) * tenth
            query = f"SELECT {value} FROM ok ORDER BY 1 LIMIT 2 OFFSET {int(place)}"
            near = scale(np.array([v for (v,) in facts.rows(query)], float))
            edges.append(float(np.quantile(near, place - int(place))) if len(near) > 1 else float(near[0]))
        self._edges = np.unique(edges)

    def names(self, values: list[int]) -> list[str | None]:
        """The class of each value."""
        if len(self._edges) < 2:
            return [f"{self._edges[0]:,.0f} {self._unit}"] * len(values)
        scaled = self._scale(np.array(values, float))
        bins = pd.cut(scaled, self._edges, precision=3, include_lowest=True)
        names = [f"{max(b.left, 0):,.0f} to {b.right:,.0f} {self._unit}" for b in bins.categories]
        return [names[code] if code >= 0 else None for code in bins.codes]


def _table(facts: Facts, value: str, target: str, tenths: _Tenths | None) -> tuple[list[str], list[str], Counts]:
    """Values, classes and how often they meet; in the order of their appearance (tenths: of their names)."""
    columns = [
        c
        for (c,) in facts.rows(f"SELECT {target} FROM cells WHERE {target} IS NOT NULL GROUP BY 1 ORDER BY MIN(rowid)")
    ]
    place = {name: i for i, name in enumerate(columns)}
    found: dict[str, Counts] = {}
    query = (
        f"SELECT {value}, {target}, COUNT(*) FROM ok WHERE {value} IS NOT NULL AND {target} IS NOT NULL GROUP BY 1, 2"
    )
    rows = iter(facts.rows(query))
    while part := list(islice(rows, 1024)):
        names = [row[0] for row in part] if tenths is None else tenths.names([row[0] for row in part])
        for name, (_, label, n) in zip(names, part, strict=True):
            if name is not None:
                if name not in found:
                    found[name] = np.zeros(len(columns), np.int64)
                found[name][place[label]] += n
    if tenths is not None:
        order = sorted(found)
    else:
        source = "ok" if "width" in value else "cells"  # sizes are those of usable cells
        first = "row" if "width" in value else "rowid"
        appeared = facts.rows(
            f"SELECT {value} FROM {source} WHERE {value} IS NOT NULL GROUP BY 1 ORDER BY MIN({first})"
        )
        order = [name for (name,) in appeared if name in found]
    counts = np.array([found[name] for name in order]).reshape(len(order), len(columns))
    used = np.flatnonzero(counts.any(axis=0))
    return order, [columns[i] for i in used], counts[:, used]


def _at_ties(counts: Counts) -> int:
    """Cells of a value's commonest classes where several are equally common: by chance one class's cells are right.

    Leaving a cell out would always make its own class the rarer one, and so a property that tells nothing worse than a guess.
    """
    top = counts.max(axis=1, keepdims=True)
    tied = ((counts == top).sum(axis=1) > 1) & (top[:, 0] >= _TIED)
    return int(top[tied].sum())


def _measure(what: str, target: str, values: list[str], classes: list[str], counts: Counts) -> GiveAway:
    n = int(counts.sum())
    total = counts.sum(axis=0)
    # Leave one out: a cell of class c counts as right only if c stays the commonest of its value without it.
    right = _at_ties(counts)
    for k in range(counts.shape[1]):
        rest = np.delete(counts, k, axis=1).max(axis=1)
        right += int(counts[counts[:, k] - 1 > rest, k].sum())
    guess = int(total.max()) / n
    best = counts.argmax(axis=1)
    shares = counts.max(axis=1) / counts.sum(axis=1)
    excess = (shares - total[best] / n) * counts.sum(axis=1)
    order = [i for i in np.argsort(-excess, kind="stable")[:5] if counts[i].sum() >= 5 and excess[i] > 0]
    examples = [
        (
            str(values[i]),
            int(counts[i].sum()),
            str(classes[best[i]]),
            float(shares[i]),
            float(total[best[i]] / n),
        )
        for i in order
    ]
    return GiveAway(what, target, right / n, guess, examples)
