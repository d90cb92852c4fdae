"""Volcano plots: what every concept differs by in a diagnosis, against how surely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cytosae.patients import volcano
from cytosae.patients._differential import REST
from cytosae.reports._axis import LinearAxis

#: Panels at most; names of concepts in each.
MOST, _NAMED = 6, 6
_SIDE, _BOX = (380, 310), (46.0, 12.0, 370.0, 262.0)
#: Pixels that a name needs, across and down.
_ROOM = (34.0, 11.0)


@dataclass(frozen=True)
class Volcano:
    """One comparison; every panel of a page has the same axes.

    Attributes
    ----------
    dots
        (x, y, kind, title) of what is a hit (``composition``, ``within`` or ``hit`` where the parts are unknown).
    grey
        (x, y) of the others, whole pixels, each once.
    names
        (x, y, anchor, latent) of the surest hits.
    line
        Height from which on concepts are hits; None without any.
    ceiling
        Height of the smallest p that was attainable.
    """

    title: str
    n_hits: int
    width: int
    height: int
    box: tuple[float, float, float, float]
    dots: list[tuple[float, float, str, str]]
    grey: list[tuple[int, int]]
    names: list[tuple[float, float, str, int]]
    line: float | None
    ceiling: float
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


def volcanoes(table: pd.DataFrame, fdr: float) -> tuple[list[Volcano], int]:
    """The panels of a differential table, those against the rest first, and how many comparisons are not shown."""
    pairs = list(table[["diagnosis", "against"]].drop_duplicates().itertuples(index=False, name=None))
    pairs.sort(key=lambda pair: pair[1] != REST)
    known = [(pair, volcano(table, *pair, fdr=fdr).dropna(subset=["effect", "height"])) for pair in pairs]
    known = [(pair, rows) for pair, rows in known if len(rows)]
    shown = known[:MOST]
    if not shown:
        return [], 0
    widest = max(float(rows["effect"].abs().max()) for _, rows in shown) or 0.01
    highest = max(float(rows[["height", "ceiling"]].to_numpy().max()) for _, rows in shown)
    across = LinearAxis(-100 * widest * 1.06, 100 * widest * 1.06, _BOX[0], _BOX[2])
    up = LinearAxis(0.0, highest * 1.05, _BOX[3], _BOX[1])
    return [_panel(pair, rows, across, up) for pair, rows in shown], len(known) - len(shown)


def _panel(pair: tuple[str, str], rows: pd.DataFrame, across: LinearAxis, up: LinearAxis) -> Volcano:
    hits = rows[rows["hit"]]
    others = rows[~rows["hit"]]
    dots = [
        (across.at(100 * r.effect), up.at(r.height), r.where or "hit",
         f"Concept {r.latent}: {100 * r.effect:+.1f} points ({100 * r.low:+.1f} to {100 * r.high:+.1f}), p {r.p:.1g}, q {r.q:.2g}")
        for r in hits.itertuples()
    ]  # fmt: skip
    grey = {(round(across.at(100 * e)), round(up.at(h))) for e, h in others[["effect", "height"]].to_numpy()}
    surest = hits.iloc[np.lexsort((-hits["effect"].abs(), -hits["height"]))]
    points = [(across.at(100 * float(r.effect)), up.at(float(r.height)), int(r.latent)) for r in surest.itertuples()]
    title = pair[0] if pair[1] == REST else f"{pair[0]} against {pair[1]}"
    return Volcano(
        title, len(hits), *_SIDE, _BOX, dots, sorted(grey), names_beside(points, _BOX),
        up.at(float(hits["height"].min())) if len(hits) else None, up.at(float(rows["ceiling"].max())),
        across.ticks(), up.ticks(),
    )  # fmt: skip


def names_beside(
    points: Sequence[tuple[float, float, int]], box: tuple[float, float, float, float], n: int = _NAMED
) -> list[tuple[float, float, str, int]]:
    """(x, y, anchor, latent) of numbers beside the first `n` of (x, y, latent) that have room: on no other number or dot."""
    out: list[tuple[float, float, str, int]] = []
    taken = [(x, y) for x, y, _ in points]
    for x, y, latent in points:
        for side in (1, -1):
            middle = x + side * (8 + _ROOM[0] / 2)
            inside = box[0] < middle - _ROOM[0] / 2 and middle + _ROOM[0] / 2 < box[2]
            if inside and all(abs(middle - at) > _ROOM[0] / 2 + 5 or abs(y - up) > _ROOM[1] for at, up in taken):
                out.append((x + side * 8, y + 4, "start" if side > 0 else "end", latent))
                taken += [(middle - _ROOM[0] / 2, y), (middle, y), (middle + _ROOM[0] / 2, y)]
                break
        if len(out) == n:
            break
    return out
