"""Shortcuts: how well the size of an image or the header of its file alone tells the class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

#: Fewer cells or classes than this make no statement.
_MIN_CELLS = 20

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


def give_aways(ok: pd.DataFrame) -> list[GiveAway]:
    """The shortcuts of a table, the strongest first.

    Parameters
    ----------
    ok
        Usable cells with ``width``, ``height``, ``mode``, ``label``, and where known ``file_header``, ``file_bytes``.
    """
    properties = {"image size": sizes(ok)}
    if "file_header" in ok:
        properties["file header"] = ok["file_header"]
    properties["colour mode"] = ok["mode"]
    if "file_bytes" in ok and ok["file_bytes"].notna().all() and len(ok) >= _MIN_CELLS:
        properties["file length"] = _tenths(ok["file_bytes"], "bytes")
    area = (ok["width"].astype(float) * ok["height"].astype(float)) ** 0.5
    if len(ok) >= _MIN_CELLS and properties["image size"].nunique() > len(ok) / 10:
        properties["image size"] = _tenths(area, "px wide")
    found = []
    for target in ("label", "dataset"):
        labels = ok[target]
        known = labels.notna().to_numpy()
        if known.sum() < _MIN_CELLS or labels[known].nunique() < 2:
            continue
        for what, values in properties.items():
            if values[known].nunique() > 1:
                found.append(_measure(what, target, values[known], labels[known]))
    return sorted(found, key=lambda g: -g.gain)


def sizes(ok: pd.DataFrame) -> pd.Series:
    """``width x height`` of every cell, each distinct text held once."""
    codes, pairs = pd.factorize(ok["width"].to_numpy() * 2**24 + ok["height"].to_numpy())
    names = pd.Index([f"{int(p) >> 24} x {int(p) % 2**24}" for p in pairs])
    return pd.Series(pd.Categorical.from_codes(codes, names), index=ok.index)


def _measure(what: str, target: str, values: pd.Series, labels: pd.Series) -> GiveAway:
    table = pd.crosstab(values, labels)
    counts, n = table.to_numpy(), int(table.to_numpy().sum())
    total = counts.sum(axis=0)
    # Leave one out: a cell of class c counts as right only if c stays the commonest of its value without it.
    right = guessed = 0
    for k in range(counts.shape[1]):
        rest = np.delete(counts, k, axis=1).max(axis=1)
        right += int(counts[counts[:, k] - 1 > rest, k].sum())
        guessed += int(total[k]) if total[k] - 1 > np.delete(total, k).max() else 0
    guess = max(guessed, int(total.max())) / n
    best = counts.argmax(axis=1)
    shares = counts.max(axis=1) / counts.sum(axis=1)
    excess = (shares - total[best] / n) * counts.sum(axis=1)
    order = [i for i in np.argsort(-excess, kind="stable")[:5] if counts[i].sum() >= 5 and excess[i] > 0]
    examples = [
        (
            str(table.index[i]),
            int(counts[i].sum()),
            str(table.columns[best[i]]),
            float(shares[i]),
            float(total[best[i]] / n),
        )
        for i in order
    ]
    return GiveAway(what, target, right / n, guess, examples)


def _tenths(values: pd.Series, unit: str) -> pd.Series:
    """Values in ten classes of equal frequency."""
    binned = pd.qcut(values.astype(float), 10, duplicates="drop")
    return binned.map(lambda b: f"{max(b.left, 0):,.0f} to {b.right:,.0f} {unit}").astype("string")
