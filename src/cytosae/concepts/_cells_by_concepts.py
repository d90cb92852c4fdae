"""`cells.h5ad`: cells x concepts, sparse; `X` at the chosen pooling, the other poolings as layers.

`max` is the largest code over the patches, `mean` the mean over them, `patch_share` the share of the cell's patches on
which the concept is active. Written row by row, so that memory does not grow with the number of cells.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from cytosae._errors import CytosaeError
from cytosae.concepts._pool import PooledCells
from cytosae.storage import created_by

KIND, VERSION = "cells_by_concepts", 2
#: What a cell's value for a concept can be; the first is the default.
POOLINGS = ("max", "mean", "patch_share")
_OBS = ("label", "patient", "diagnosis", "dataset", "split")


@dataclass(frozen=True)
class CellsByConcepts:
    """Cells x concepts in memory: `obs` the cells, `maximum` and `mean` sparse float32 [n_cells, n_latents].

    `patch_share` (share of active patches, of the same kind) is None in files written before it was kept.
    """

    obs: pd.DataFrame
    maximum: sp.csr_matrix
    mean: sp.csr_matrix
    patch_share: sp.csr_matrix | None = None

    @property
    def cell_ids(self) -> npt.NDArray[np.int64]:
        """Which cell a row is."""
        return np.asarray(self.obs["cell_id"], dtype=np.int64)


def rows_of(cells: PooledCells) -> dict[str, npt.NDArray[Any]]:
    """The rows of some cells: ``indptr``, ``indices``, and the values at every pooling (all have the same places)."""
    matrices = {name: cells.matrix(name) for name in POOLINGS}
    places = matrices["max"]
    values = {name: matrix.data for name, matrix in matrices.items()}
    return {"indptr": places.indptr.astype(np.int64), "indices": places.indices.astype(np.int32), **values}


def write_cells_by_concepts(
    path: Path,
    frame: pd.DataFrame,
    shards: Iterable[dict[str, npt.NDArray[Any]]],
    concepts: pd.DataFrame,
    inputs: dict[str, str],
    pooling: str = POOLINGS[0],
) -> None:
    """Write the AnnData file from the rows (`rows_of`) of consecutive lots of cells."""
    import anndata
    import h5py

    obs = frame[["cell_id", *_OBS]].copy()
    for name in _OBS:
        obs[name] = obs[name].astype(object).where(obs[name].notna(), "").astype("category")
    obs.index = pd.Index([str(i) for i in frame["cell_id"]], name="cell")
    var = concepts[["n_cells_active", "frequency", "max_activation", "label_entropy", "top_label_share"]].copy()
    var.index = pd.Index([str(i) for i in concepts["latent"]], name="concept")
    record = {"kind": KIND, "version": VERSION, "created_by": created_by(), "inputs": inputs, "pooling": pooling}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        anndata.AnnData(obs=obs, var=var, uns={"cytosae": json.dumps(record)}).write_h5ad(path, compression="gzip")
    with h5py.File(path, "a") as file:
        if "X" in file:
            del file["X"]
        places = {name: "X" if name == pooling else f"layers/{name}" for name in POOLINGS}
        shape = (len(obs), len(var))
        groups = {name: _empty(file.require_group(place), shape) for name, place in places.items()}
        row = n = 0
        for part in shards:
            more, height = len(part["indices"]), len(part["indptr"]) - 1
            for name, group in groups.items():
                for key, values in (("data", part[name]), ("indices", part["indices"])):
                    group[key].resize((n + more,))
                    group[key][n:] = values
                group["indptr"][row + 1 : row + 1 + height] = part["indptr"][1:] + n
            n, row = n + more, row + height


def _empty(group: Any, shape: tuple[int, int]) -> Any:
    """A sparse matrix as AnnData writes it, to be filled."""
    group.attrs["encoding-type"], group.attrs["encoding-version"] = "csr_matrix", "0.1.0"
    group.attrs["shape"] = np.array(shape, np.int64)
    options = {"maxshape": (None,), "chunks": (65_536,), "compression": "gzip", "compression_opts": 4}
    group.create_dataset("data", (0,), np.float32, **options)
    group.create_dataset("indices", (0,), np.int32, **options)
    group.create_dataset("indptr", (shape[0] + 1,), np.int64)
    return group


def read_cells_by_concepts(index_folder: Path | str) -> CellsByConcepts:
    """Read `cells.h5ad` of an index.

    Raises
    ------
    CytosaeError
        The index was made without it, or the file is something else.
    """
    import anndata

    path = Path(index_folder) / "cells.h5ad"
    if not path.is_file():
        raise CytosaeError(f"{index_folder} has no cells.h5ad; make the index with --cells-matrix.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = anndata.read_h5ad(path)
    record = json.loads(str(data.uns.get("cytosae", "{}")))
    if record.get("kind") != KIND:
        raise CytosaeError(f"{path} was not written by cytosae index; make the index again.")
    obs = data.obs.reset_index(drop=True)
    for name in _OBS:
        text = obs[name].astype(object)
        obs[name] = text.where(text != "", None)
    in_x = record.get("pooling", POOLINGS[0])
    found = {
        n: sp.csr_matrix(data.X if n == in_x else data.layers[n]) for n in POOLINGS if n == in_x or n in data.layers
    }
    largest = found["max"]
    for name in found:
        found[name] = _of_one_pattern(found[name], largest)
    return CellsByConcepts(obs, largest, found["mean"], found.get("patch_share"))


def _of_one_pattern(matrix: sp.csr_matrix, other: sp.csr_matrix) -> sp.csr_matrix:
    """`matrix`, sharing the indices of `other` in memory where both have values in the same places, in order."""
    if matrix is other or not (matrix.has_canonical_format and other.has_canonical_format):
        return matrix
    if not (np.array_equal(matrix.indptr, other.indptr) and np.array_equal(matrix.indices, other.indices)):
        return matrix
    return sp.csr_matrix((matrix.data, other.indices, other.indptr), shape=matrix.shape, copy=False)
