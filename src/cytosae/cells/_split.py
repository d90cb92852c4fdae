"""Splits by group: whole patients, slides, fields and near-duplicate clusters go to one part, or none."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from cytosae._errors import CytosaeError, UsageError, nearest
from cytosae.cells._table import Cells, read_cells, write_cells

#: Columns whose values must never lie in two parts, where a table has them.
GROUPS = ("patient", "slide", "source_field", "near_duplicate_group")


def split_cells(
    cells: Path | str,
    out: Path | str,
    *,
    parts: dict[str, float],
    by: Sequence[str] = (),
    stratify: str | None = "label",
    seed: int = 0,
    keep: bool = False,
) -> Cells:
    """Write a copy of a table with the column ``split`` filled.

    Cells that share a value in any column of `by` go to the same part, also where they are linked over several
    columns (a patient whose cell is a near duplicate of another patient's). ``near_duplicate_group`` is always one of
    them. Groups are handed out from the largest to the smallest, each to the part that then lies closest to the wanted
    shares of every stratum; ties go by a hash of `seed` and the group's lowest cell_id.

    Parameters
    ----------
    cells, out
        The table, and where to write the new one.
    parts
        Name and share of every part; the shares must add up to 1.
    by
        Columns that hold groups; none: those of `GROUPS` that the table has with values.
    stratify
        Column whose mix every part should have; None: only sizes count.
    seed
        Seed of the ties.
    keep
        Keep the split that cells already have, and hand out only the rest.

    Raises
    ------
    UsageError
        Parts that do not add up, or an unknown column.
    CytosaeError
        Fewer groups than parts, or (``keep``) a group that already lies in two parts.
    """
    table = read_cells(cells)
    if (
        not parts
        or any(not 0 < s <= 1 for s in parts.values())
        or not math.isclose(sum(parts.values()), 1, abs_tol=1e-6)
    ):
        raise UsageError(
            f"--parts {_named(parts)} does not add up to 1; give shares such as train=0.8,val=0.1,test=0.1."
        )
    frame, columns = table.frame.copy(), _columns(table, by)
    ok = (frame["status"] == "ok").to_numpy()
    unit = linked(frame, columns)
    stratum = _strata(frame, stratify)
    fixed = frame["split"].where(ok) if keep else pd.Series([None] * len(frame), dtype=object)
    if keep:
        check_leaks(frame, columns, path=Path(cells))
    part = _hand_out(unit, stratum, ok, fixed.to_numpy(dtype=object), parts, frame["cell_id"].to_numpy(), seed)
    frame["split"] = part
    check_leaks(frame, columns, path=Path(cells))
    config = {"split": {"by": columns, "parts": parts, "stratify": stratify, "seed": seed, "keep": keep}}
    write_cells(Path(out), frame, root=table.root, inputs={"cells": table.hash}, config=config)
    return read_cells(out)


def check_leaks(frame: pd.DataFrame, columns: Sequence[str], *, path: Path) -> None:
    """Refuse a table in which a group, or a chain of linked groups, lies in two parts.

    Raises
    ------
    CytosaeError
        Naming the first such group.
    """
    used = frame[(frame["status"] == "ok") & frame["split"].notna()]
    for column in columns:
        values = used[used[column].notna()]
        n_parts = values.groupby(column, sort=True, observed=True)["split"].nunique()
        torn = n_parts[n_parts > 1]
        if len(torn):
            names = sorted(values[values[column] == torn.index[0]]["split"].unique())
            raise CytosaeError(
                f"{path} has the {column} {torn.index[0]!r} in the parts {' and '.join(names)} "
                f"({len(torn):,} such values); split it anew without --keep."
            )


def linked(frame: pd.DataFrame, columns: Sequence[str]) -> npt.NDArray[np.int64]:
    """Number of the unit of every cell: cells that share a value in any column, and what hangs on them."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    n = len(frame)
    rows, nodes, start = [], [], n
    for column in columns:
        codes, values = pd.factorize(frame[column])
        rows.append(np.flatnonzero(codes >= 0))
        nodes.append(start + codes[codes >= 0])
        start += len(values)
    if not rows:
        return np.arange(n)
    i, j = np.concatenate(rows), np.concatenate(nodes)
    unit: npt.NDArray[np.int64] = connected_components(coo_matrix((np.ones(len(i)), (i, j)), (start, start)), False)[1][
        :n
    ]
    return unit


def parse_parts(text: str) -> dict[str, float]:
    """``train=0.8,test=0.2`` as a dictionary.

    Raises
    ------
    UsageError
        Another form, or a name twice.
    """
    parts: dict[str, float] = {}
    for item in text.split(","):
        name, sign, share = item.partition("=")
        try:
            value = float(share)
        except ValueError:
            value = math.nan
        if not sign or not name.strip() or math.isnan(value) or name.strip() in parts:
            raise UsageError(f"--parts {text!r} is not of the form train=0.8,val=0.1,test=0.1.")
        parts[name.strip()] = value
    return parts


def _columns(table: Cells, by: Sequence[str]) -> list[str]:
    for name in by:
        if name not in table.frame.columns:
            raise UsageError(f"The cells have no column {name!r}{nearest(name, table.frame.columns)}.")
        if name in ("split", "label", "cell_id", "image", "status", "reason"):
            raise UsageError(f"--by {name} is no group of cells; give patient, slide, source_field or the like.")
        if table.ok[name].isna().all():
            raise CytosaeError(
                f"The column {name!r} is empty, so no group can be kept together by it; leave it out of --by."
            )
    chosen = list(by) or [c for c in GROUPS if c in table.frame.columns and table.ok[c].notna().any()]
    if "near_duplicate_group" in table.frame.columns and "near_duplicate_group" not in chosen:
        chosen.append("near_duplicate_group")
    return chosen


def _strata(frame: pd.DataFrame, stratify: str | None) -> npt.NDArray[np.int64]:
    if stratify is None:
        return np.zeros(len(frame), np.int64)
    if stratify not in frame.columns:
        raise UsageError(f"The cells have no column {stratify!r}{nearest(stratify, frame.columns)}.")
    codes: npt.NDArray[np.int64] = pd.factorize(frame[stratify].astype("string"), sort=True, use_na_sentinel=False)[0]
    return codes


def _hand_out(
    unit: npt.NDArray[np.int64],
    stratum: npt.NDArray[np.int64],
    ok: npt.NDArray[np.bool_],
    fixed: npt.NDArray[np.object_],
    parts: dict[str, float],
    cell_ids: npt.NDArray[np.int64],
    seed: int,
) -> npt.NDArray[np.object_]:
    """The part of every usable cell; None for the others."""
    names, shares = list(parts), np.array(list(parts.values()))
    pairs, sizes = np.unique(np.stack([unit[ok], stratum[ok]], axis=1), axis=0, return_counts=True)
    n_strata = int(stratum.max()) + 1 if len(stratum) else 1
    members: dict[int, list[tuple[int, int]]] = {}
    for (u, k), n in zip(pairs.tolist(), sizes.tolist(), strict=True):
        members.setdefault(u, []).append((k, n))
    lowest = pd.Series(cell_ids[ok]).groupby(unit[ok]).min()
    given = {int(u): str(p) for u, p in zip(unit, fixed, strict=True) if isinstance(p, str)}
    for name in given.values():
        if name not in parts:
            raise UsageError(
                f"Cells already have the split {name!r}, which --parts does not name; add it or drop --keep."
            )
    if len(members) < len(parts):
        raise CytosaeError(
            f"There are {len(members)} groups for {len(parts)} parts; give fewer parts or fewer columns in --by."
        )
    total = np.zeros(n_strata)
    for items in members.values():
        for k, n in items:
            total[k] += n
    wanted, held = shares[:, None] * total[None], np.zeros((len(names), n_strata))
    weight = 1.0 / np.maximum(total, 1)  # a rare class counts as much as a frequent one

    def tie(u: int) -> str:
        return hashlib.sha256(f"{seed}:{lowest[u]}".encode()).hexdigest()

    chosen: dict[int, int] = {}
    order = sorted(members, key=lambda u: (u not in given, -sum(n for _, n in members[u]), tie(u)))
    for u in order:
        strata, amounts = (np.array(v) for v in zip(*members[u], strict=True))
        if u in given:
            best = names.index(given[u])
        else:
            before, after = wanted[:, strata] - held[:, strata], wanted[:, strata] - held[:, strata] - amounts
            cost = ((after**2 - before**2) * weight[strata]).sum(axis=1) / np.maximum(shares, 1e-9) ** 0.5
            best = int(np.argmin(np.round(cost, 9)))
        held[best, strata] += amounts
        chosen[u] = best
    result = np.full(len(unit), None, dtype=object)
    result[ok] = [names[chosen[int(u)]] for u in unit[ok]]
    empty = [name for i, name in enumerate(names) if held[i].sum() == 0]
    if empty:
        raise CytosaeError(f"The part {empty[0]!r} would stay empty, the groups are too large; change --parts or --by.")
    return result


def _named(parts: dict[str, float]) -> str:
    return ",".join(f"{name}={share:g}" for name, share in parts.items()) or "(empty)"
