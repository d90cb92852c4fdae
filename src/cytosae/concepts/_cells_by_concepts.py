"""`cells.h5ad`: cells x concepts, sparse; `X` the largest code over the patches, layer `mean` the mean over them.

Layer `patch_share` is the share of the cell's patches on which the concept is active.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy.sparse as sp

from cytosae._errors import CytosaeError
from cytosae.storage import created_by

KIND, VERSION = "cells_by_concepts", 1
#: Layers beside `X`, in the order in which blocks of pooled codes bring them.
LAYERS = ("mean", "patch_share")


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


def write_cells_by_concepts(
    path: Path, frame: pd.DataFrame, pooled: list[tuple[Any, ...]], concepts: pd.DataFrame, inputs: dict[str, str]
) -> None:
    """Write the AnnData file from the pooled codes (maximum, then `LAYERS`) of consecutive blocks of cells."""
    import anndata

    obs = frame[["cell_id", "label", "patient", "diagnosis", "dataset", "split"]].copy()
    for name in ("label", "patient", "diagnosis", "dataset", "split"):
        obs[name] = obs[name].astype(object).where(obs[name].notna(), "").astype("category")
    obs.index = pd.Index([str(i) for i in frame["cell_id"]], name="cell")
    var = concepts[["n_cells_active", "frequency", "max_activation", "label_entropy", "top_label_share"]].copy()
    var.index = pd.Index([str(i) for i in concepts["latent"]], name="concept")
    maximum, *rest = (
        sp.vstack([sp.csr_matrix(p[i].astype(np.float32)) for p in pooled], format="csr")
        for i in range(1 + len(LAYERS))
    )
    layers = dict(zip(LAYERS, rest, strict=True))
    record = {"kind": KIND, "version": VERSION, "created_by": created_by(), "inputs": inputs}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = anndata.AnnData(X=maximum, obs=obs, var=var, layers=layers, uns={"cytosae": json.dumps(record)})
        data.write_h5ad(path, compression="gzip")


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
    if json.loads(str(data.uns.get("cytosae", "{}"))).get("kind") != KIND:
        raise CytosaeError(f"{path} was not written by cytosae index; make the index again.")
    obs = data.obs.reset_index(drop=True)
    for name in ("label", "patient", "diagnosis", "dataset", "split"):
        text = obs[name].astype(object)
        obs[name] = text.where(text != "", None)
    share = sp.csr_matrix(data.layers["patch_share"]) if "patch_share" in data.layers else None
    return CellsByConcepts(obs, sp.csr_matrix(data.X), sp.csr_matrix(data.layers["mean"]), share)
