"""Whether the dictionary was trained on cells of the cohort: if so, every score on it is transductive, and says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from cytosae._errors import CytosaeError
from cytosae.cells import Cells, select
from cytosae.concepts import ConceptIndex
from cytosae.storage import Manifest, read_manifest


def cells_seen(
    cells: Cells,
    index: ConceptIndex,
    sae: Path | str | None,
    sae_cells: Cells | None = None,
    patients: set[str] | None = None,
) -> dict[str, Any]:
    """What is known of the cells the dictionary was trained on.

    Parameters
    ----------
    cells, index
        The cohort's table and its index.
    sae
        The SAE folder, which says how its training cells were chosen; without it nothing is known.
    sae_cells
        The table the dictionary was trained on, where that is neither `cells` nor the table `cells` was drawn from; then
        images are compared by their hash.
    patients
        Only cells of these count: the tested ones, where folds are fixed; all where None.

    Returns
    -------
    ``n_seen`` (cells of the cohort in training; None where unknown), ``n_cells``, ``setting``: ``inductive`` (none seen),
    ``transductive`` or ``unknown``, and ``how`` it is known.

    Raises
    ------
    CytosaeError
        `sae` is not the dictionary of the index, or `sae_cells` not the table it was trained on.
    """
    usable = cells.ok[cells.ok["patient"].notna()]
    if patients is not None:
        usable = usable[usable["patient"].astype(str).isin(patients)]
    unknown = {"n_seen": None, "n_cells": len(usable), "setting": "unknown"}
    if sae is None:
        return {**unknown, "how": "no --sae was given"}
    manifest = read_manifest(sae, "sae", 1)
    if manifest.hash != index.manifest["inputs"].get("sae"):
        raise CytosaeError(f"{sae} is not the dictionary {index.folder} was made with; give that one.")
    where = [str(w) for w in manifest.get("config", {}).get("where", [])]
    if sae_cells is not None:
        if sae_cells.hash != manifest["inputs"].get("cells"):
            raise CytosaeError("The table given with --sae-cells is not the one the dictionary was trained on.")
        pictures = usable["rendered_from"].fillna(usable["sha256"]) if "rendered_from" in usable else usable["sha256"]
        seen = pictures.isin(_chosen(sae_cells, where)["sha256"].dropna())
        return _answer(seen, "images compared by sha256")
    known, how = trained_among(usable, cells, index, manifest)
    return {**unknown, "how": how} if known is None else _answer(known, how)


def trained_among(
    frame: pd.DataFrame, cells: Cells, index: ConceptIndex, manifest: Manifest
) -> tuple[pd.Series[bool] | None, str]:
    """Which cells of a table trained a dictionary, as far as its record tells.

    Parameters
    ----------
    frame
        Rows of `cells`.
    index, manifest
        An index of these cells by that dictionary, and the dictionary's manifest.

    Returns
    -------
    bool for each row, None where it is not known; and how it is known.
    """
    if not _same_cells(cells, index, manifest):
        return None, "trained on another table; give it with --sae-cells"
    where = [str(w) for w in manifest.get("config", {}).get("where", [])]
    before = frame.assign(**{n: frame[f"source_{n}"] for n in ("patient", "diagnosis") if f"source_{n}" in frame})
    if "true_label" in before:
        before["label"] = before["true_label"]
    columns = [w.partition("=")[0].removesuffix("!").strip() for w in where]
    if not all(name in before.columns for name in columns):
        return None, "the cohort lacks a column by which training cells were chosen"
    chosen = _chosen(Cells(before, cells.root), where)
    return frame["cell_id"].isin(chosen["cell_id"]), f"training took {' and '.join(where) or 'all cells'}"


def _same_cells(cells: Cells, index: ConceptIndex, manifest: Manifest) -> bool:
    """Whether a cell_id means the same in the cohort and in training: one table, or one token store."""
    inputs, mine = manifest["inputs"], index.manifest["inputs"]
    return inputs.get("cells") == cells.hash or (
        inputs.get("tokens") is not None and inputs["tokens"] == mine.get("tokens")
    )


def _chosen(cells: Cells, where: list[str]) -> pd.DataFrame:
    """The cells a selection takes, none where nothing fulfils it."""
    try:
        return select(cells, where)
    except CytosaeError:
        return cells.frame.iloc[:0]


def _answer(seen: pd.Series[Any], how: str) -> dict[str, Any]:
    n = int(seen.sum())
    return {"n_seen": n, "n_cells": len(seen), "setting": "transductive" if n else "inductive", "how": how}
