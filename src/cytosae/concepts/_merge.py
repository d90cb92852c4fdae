"""Indices of parts of a table as one: exact, because sums are integers; and only where it means something."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cytosae._errors import CytosaeError, UsageError
from cytosae.cells import Cells
from cytosae.concepts._index import KIND, VERSION, ConceptIndex, indexed_cells, wheres_of, write_tables
from cytosae.concepts._tables import tables
from cytosae.storage import commit_folder


def merge_indices(indices: Sequence[ConceptIndex], cells: Cells, out: Path | str) -> ConceptIndex:
    """One index of several, made over different cells of one table with the same dictionary.

    Parameters
    ----------
    indices
        At least two.
    cells
        Their table. Indices over different tables are not merged: merge the tables, and index the merged table with the
        token stores of all of them.
    out
        Folder of the index.

    Raises
    ------
    CytosaeError
        They differ in dictionary, backbone, preprocessing, precision or settings, or share cells.
    """
    if len(indices) < 2:
        raise UsageError("Merging takes at least two indices.")
    first, out = indices[0], Path(out)
    for other in indices[1:]:
        check_alike(first, other)
    if first.manifest["inputs"]["cells"] != cells.hash:
        raise CytosaeError(f"{first.folder} was not made over the table given; give the table it was made from.")
    ids = [indexed_cells(index, cells)["cell_id"].to_numpy(np.int64) for index in indices]
    whole_ids, times = np.unique(np.concatenate(ids), return_counts=True)
    if (times > 1).any():
        raise CytosaeError(
            f"These indices share cells ({(times > 1).sum()}, among them {whole_ids[times > 1][0]}); they would count twice."
        )
    whole = first.statistics()
    for other in indices[1:]:
        whole.merge(other.statistics())
    frame = cells.frame[cells.frame["cell_id"].isin(whole_ids)].reset_index(drop=True)
    inputs = {**{k: v for k, v in first.manifest["inputs"].items() if not k.startswith("tokens")},
              **{f"index-{i}": index.hash for i, index in enumerate(indices)}}  # fmt: skip
    config = {**first.manifest["config"], "where": [], "wheres": [w for i in indices for w in wheres_of(i)], "cells_matrix": False,
              "merged": [i.hash for i in indices]}  # fmt: skip
    with commit_folder(out, kind=KIND, version=VERSION, inputs=inputs, config=config) as (folder, extra):
        write_tables(folder, tables(whole, frame, first.semantics), inputs, whole)
        kept = ("n_latents", "n_quarantined", "backbone", "layer", "preprocessing", "precision", "token_kinds")
        extra |= {name: first.manifest[name] for name in kept} | {
            "n_cells": whole.n_cells,
            "n_tokens": whole.n_tokens,
            "labels": {n: int(k) for n, k in zip(whole.groups["label"], whole.by["label"].n_cells, strict=True)},
            "groups": {name: list(names) for name, names in whole.groups.items()},
            "encode": {"path": (first.manifest.get("encode") or {}).get("path")},
        }
    return ConceptIndex(out)


def check_alike(a: ConceptIndex, b: ConceptIndex) -> None:
    """Refuse indices whose numbers do not mean the same.

    Raises
    ------
    CytosaeError
        Says in what they differ.
    """
    differ = [what for what, x, y in _compared(a, b) if x != y]
    if differ:
        raise CytosaeError(
            f"{a.folder} and {b.folder} differ in {', '.join(differ)} and cannot be merged; make both with the same."
        )


def _compared(a: ConceptIndex, b: ConceptIndex) -> list[tuple[str, Any, Any]]:
    x, y = a.manifest, b.manifest
    out = [
        ("sae", x["inputs"].get("sae"), y["inputs"].get("sae")),
        ("cells", x["inputs"].get("cells"), y["inputs"].get("cells")),
    ]
    out += [
        (name, x.get(name), y.get(name)) for name in ("backbone", "layer", "preprocessing", "precision", "token_kinds")
    ]
    for name in ("semantics", "thresholds", "n_exemplars", "fixed_point_scale"):
        out.append((name, x["config"].get(name), y["config"].get(name)))
    return [*out, ("way of encoding", (x.get("encode") or {}).get("path"), (y.get("encode") or {}).get("path"))]
