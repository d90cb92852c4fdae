"""Differential concepts: a diagnosis against the rest or against another, the patient as the unit.

A permutation test of the difference of mean profiles (exact where few enough), intervals by drawing patients again, and
Benjamini-Hochberg over every test of the table. Thresholds and the filter of concepts never look at the diagnosis, so
that diagnoses are exchangeable under the null hypothesis. Where a batch or another covariate is blocked, diagnoses are
exchanged within its values only, and the effect is the mean of the effects within them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cytosae._errors import CytosaeError, UsageError, nearest
from cytosae.patients._blocks import blocks_of, informative
from cytosae.patients._cohort import Cohort, Floats, Ints
from cytosae.patients._effects import benjamini_hochberg, blocked_interval, effect, effect_interval
from cytosae.patients._permute import Part, permutation_p
from cytosae.patients._within import TypeRates

#: What stands in ``against`` where a diagnosis is compared with all others.
REST = "rest"


@dataclass(frozen=True)
class DifferentialConfig:
    """How diagnoses are compared."""

    exact_limit: int = 100_000
    """Up to this many ways to choose the patients of a diagnosis, all are enumerated."""
    n_permutations: int = 99_999
    """Random permutations where there are more ways; p = (1 + as large) / (1 + permutations)."""
    n_bootstrap: int = 2_000
    """Draws of patients for the intervals."""
    seed: int = 0
    """Of permutations and draws."""
    pairwise: bool = False
    """Compare every diagnosis with every other instead of with the rest."""
    block: tuple[str, ...] = ()
    """Columns of the patients (a batch, a centre, sex, age ...) within whose values alone diagnoses are exchanged."""
    n_bins: int = 3
    """A blocked column of numbers is cut into so many parts of equal size."""
    stop_after: int | None = None
    """Random permutations of a concept end when so many were as large; 0: never; None: 500 for the parts of effects, and for
    effects above 50,000 patients x concepts."""

    layer: str | None = None
    """What is compared: None: the share of cells that carry the concept; or a layer of the profiles (``max`` for rare cells)."""

    def __post_init__(self) -> None:
        if self.n_permutations < 1 or self.n_bootstrap < 100:
            raise UsageError("n_permutations must be 1 or more, n_bootstrap 100 or more.")
        if self.n_bins < 2:
            raise UsageError(f"n_bins {self.n_bins} must be 2 or more.")
        if self.stop_after is not None and self.stop_after < 0:
            raise UsageError(f"stop_after {self.stop_after} must be 0 or more.")


COLUMNS = (
    "diagnosis", "against", "latent", "effect", "low", "high", "p", "q", "smallest_p", "mean_in", "mean_out", "n_in",
    "n_out", "n_blocks", "exact", "n_permutations", "effect_composition", "effect_within", "p_composition",
    "q_composition", "p_within", "q_within", "simulated",
)  # fmt: skip


@dataclass(frozen=True)
class _Design:
    """Comparisons among the same patients: their rows, each side's name, and bool [n_comparisons, n_patients] inside."""

    rows: Ints
    sides: list[tuple[str, str]]
    member: npt.NDArray[np.bool_]


def differential(
    profiles: Any, config: DifferentialConfig | None = None, *, cohort: Cohort | None = None
) -> pd.DataFrame:
    """Compare every diagnosis with the rest (or with every other), concept by concept.

    Parameters
    ----------
    profiles
        AnnData from `profile_patients`; patients without cells or diagnosis take no part, concepts not ``tested`` neither.
    config
        How.
    cohort
        Where given and every cell has a label, each effect is split into the part that follows from another composition
        of cell types and the part within types, and both are tested.

    Returns
    -------
    One row a comparison and tested concept, sorted by both: ``diagnosis``, ``against`` (``rest`` or another diagnosis),
    ``latent``, ``effect`` (difference of mean profiles, in - out; with blocks the mean of the differences within them,
    weighted by n_in n_out / n), ``low``, ``high`` (95%), ``p`` (two-sided), ``q`` (Benjamini-Hochberg over all rows),
    ``smallest_p`` (attainable by the permutations), ``mean_in``, ``mean_out``, ``n_in``, ``n_out``, ``n_blocks`` (in which
    both sides have patients), ``exact``, ``n_permutations``, ``effect_composition``, ``effect_within``,
    ``p_composition``, ``q_composition``, ``p_within``, ``q_within`` (NaN where labels are not all known), ``simulated``.
    A diagnosis that shares no block with its other side cannot be told from the batch: its effect and p are NaN.

    Raises
    ------
    CytosaeError
        Fewer than two diagnoses, or every comparison is confounded with the blocks.
    UsageError
        No such column to block or layer, or a cohort given with what is not a plain share.
    """
    config = config or DifferentialConfig()
    record = json.loads(str(profiles.uns["cytosae"]))
    target = record["target"]
    if cohort is not None and (record.get("adjusted") or config.layer is not None):
        raise UsageError(
            "Only plain shares are split by cell types, no layers, rarefied or shrunken profiles; leave out cohort=."
        )
    if config.layer is not None and config.layer not in profiles.layers:
        raise UsageError(f"The profiles have no layer {config.layer!r}{nearest(config.layer, list(profiles.layers))}.")
    values = profiles.X if config.layer is None else profiles.layers[config.layer]
    obs, tested = profiles.obs, np.flatnonzero(profiles.var["tested"].to_numpy(bool))
    names = obs[target].astype(object).to_numpy(object)
    known = np.array([v not in (None, "") for v in names], bool) & ~np.isnan(np.asarray(values)[:, :1]).any(1)
    judged = np.flatnonzero((obs["n_cells"].to_numpy() > 0) & known)
    judged = judged[np.argsort(obs["patient"].astype(str).to_numpy()[judged])]  # whatever the order of the rows
    classes = sorted(set(names[judged]))
    if len(classes) < 2:
        raise CytosaeError(f"Only one {target} has patients with usable cells; a comparison wants two or more.")
    X = np.asarray(values, np.float64)[np.ix_(judged, tested)]
    block = blocks_of(obs.iloc[judged], config.block, config.n_bins)
    rates = None if cohort is None else TypeRates.of(cohort, profiles, judged, tested)
    designs = list(_designs(names[judged], classes, config.pairwise))
    if not any(informative(block[d.rows], inside).any() for d in designs for inside in d.member):
        raise CytosaeError(
            f"No value of {' and '.join(config.block)} has patients of two diagnoses: diagnosis and batch cannot be "
            "told apart; block another column, or none."
        )
    table = pd.concat([_compare(X, block, d, config, rates) for d in designs], ignore_index=True)
    table["latent"] = np.tile(profiles.var["latent"].to_numpy(np.int64)[tested], sum(len(d.sides) for d in designs))
    table["simulated"] = bool(obs["simulated"].any())
    for name in ("", "_composition", "_within"):
        table[f"q{name}"] = benjamini_hochberg(table[f"p{name}"].to_numpy())
    return table[list(COLUMNS)]


def _designs(names: npt.NDArray[Any], classes: list[Any], pairwise: bool) -> Iterator[_Design]:
    if not pairwise:
        sides = [(str(name), REST) for name in classes]
        yield _Design(np.arange(len(names)), sides, np.array([names == name for name in classes]))
        return
    for name, other in combinations(classes, 2):
        rows = np.flatnonzero((names == name) | (names == other))
        yield _Design(rows, [(str(name), str(other))], (names[rows] == name)[None])


def _compare(
    X: Floats, block: Ints, design: _Design, config: DifferentialConfig, rates: TypeRates | None
) -> pd.DataFrame:
    X, block = X[design.rows], block[design.rows]
    m = X.shape[1]
    parts = {"": Part(X)}
    if rates is not None:
        composition = rates.composition(design.rows, block)
        # types rare on one side make its rates noisier: the spread of the sides differs even where their means do not
        parts |= {"_composition": Part(composition), "_within": Part(X - composition, studentised=True)}
    found = dict(zip(parts, permutation_p(list(parts.values()), design.member, config, block), strict=True))
    tested = found[""]
    tables = []
    for g, (name, against) in enumerate(design.sides):
        inside = design.member[g]
        useful = informative(block, inside)
        mean_in, mean_out = X[inside].mean(0), X[~inside].mean(0)
        if len(useful) > 1 or not useful.all():
            low, high = blocked_interval(X, inside, block)
        else:
            low, high = effect_interval(X[inside], X[~inside], config.n_bootstrap, config.seed)
        columns: dict[str, Any] = {
            "diagnosis": name, "against": against, "low": low, "high": high, "smallest_p": tested.smallest[g],
            "mean_in": mean_in, "mean_out": mean_out, "n_in": int(inside.sum()), "n_out": int((~inside).sum()),
            "n_blocks": int(useful.sum()), "exact": bool(tested.exact[g]), "n_permutations": tested.n[g],
        }  # fmt: skip
        for part in ("", "_composition", "_within"):
            columns[f"effect{part}"] = effect(parts[part].values, inside, block) if part in parts else np.nan
            columns[f"p{part}"] = found[part].p[g] if part in parts else np.nan
        tables.append(pd.DataFrame(columns, index=np.arange(m)))
    return pd.concat(tables, ignore_index=True)
