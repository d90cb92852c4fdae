"""What volcano plots and plots of one disease against another show, as tables."""

from __future__ import annotations

import numpy as np
import pandas as pd

from cytosae._errors import UsageError, nearest
from cytosae.patients._differential import REST


def volcano(table: pd.DataFrame, diagnosis: str, against: str = REST, *, fdr: float = 0.05) -> pd.DataFrame:
    """Effects and significance of one comparison.

    Parameters
    ----------
    table
        From `differential`.
    diagnosis, against
        The comparison; a pair may be named the other way round, which turns the effects.

    Returns
    -------
    ``latent``, ``effect``, ``low``, ``high``, ``p``, ``q``, ``height`` (-log10 p), ``ceiling`` (of the smallest attainable p),
    ``hit`` (q below `fdr`), ``where`` (``composition`` or ``within``: which part of a hit has the larger effect; empty where
    unknown), largest height first.

    Raises
    ------
    UsageError
        No such comparison.
    """
    there = (table["diagnosis"] == diagnosis) & (table["against"] == against)
    turned = (table["diagnosis"] == against) & (table["against"] == diagnosis)
    mine = table[there | turned]
    if mine.empty:
        known = [f"{a} against {b}" for a, b in table[["diagnosis", "against"]].drop_duplicates().to_numpy()]
        wanted = f"{diagnosis} against {against}"
        raise UsageError(f"The table does not compare {wanted!r}{nearest(wanted, known)}.")
    sign = -1.0 if turned.any() else 1.0
    ends = mine[["low", "high"]].to_numpy() if sign > 0 else -mine[["high", "low"]].to_numpy()
    out = pd.DataFrame(
        {"latent": mine["latent"], "effect": sign * mine["effect"], "low": ends[:, 0], "high": ends[:, 1]}
    )
    out["p"], out["q"] = mine["p"], mine["q"]
    out["height"], out["ceiling"] = -np.log10(mine["p"]), -np.log10(mine["smallest_p"])
    out["hit"] = mine["q"] < fdr
    parts = mine[["effect_composition", "effect_within"]].abs().to_numpy()
    larger = np.where(parts[:, 0] >= parts[:, 1], "composition", "within")
    out["where"] = np.where(out["hit"] & ~np.isnan(parts).any(1), larger, "")
    return out.sort_values(["height", "latent"], ascending=[False, True], ignore_index=True)


def against_each_other(table: pd.DataFrame, first: str, second: str, *, fdr: float = 0.05) -> pd.DataFrame:
    """Two diagnoses, each against its rest: which concepts set both apart, and which only one.

    Returns
    -------
    ``latent``, ``effect_first``, ``q_first``, ``effect_second``, ``q_second``, and ``shared``: ``both`` (hits of one sign),
    ``opposite``, ``first``, ``second``, or empty.

    Raises
    ------
    UsageError
        One of them is not compared with the rest in the table.
    """
    a, b = volcano(table, first, fdr=fdr), volcano(table, second, fdr=fdr)
    keep = ["latent", "effect", "q", "hit"]
    both = a[keep].merge(b[keep], on="latent", suffixes=("_first", "_second")).sort_values("latent", ignore_index=True)
    one, two = both.pop("hit_first").to_numpy(bool), both.pop("hit_second").to_numpy(bool)
    alike = both["effect_first"] * both["effect_second"] > 0
    both["shared"] = np.select(
        [one & two & alike, one & two, one, two], ["both", "opposite", "first", "second"], default=""
    )
    return both
