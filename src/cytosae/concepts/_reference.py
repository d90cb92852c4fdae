"""A reference set: cells with their small pictures and what a dictionary says of them, to find those similar to a new one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import scipy.sparse as sp

from cytosae._errors import CytosaeError
from cytosae.concepts._unusual import KnownCells
from cytosae.storage import Manifest, commit_folder, read_manifest, read_table, write_table

KIND, VERSION = "reference", 1
#: Columns of a reference cell; `thumb` holds a JPEG file.
COLUMNS = ("cell_id", "dataset", "label", "credit", "thumb")
#: Concepts kept of each cell, the strongest by weight.
KEPT = 96

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Reference:
    """Reference cells.

    Attributes
    ----------
    cells
        One row a cell: ``cell_id``, ``dataset``, ``label``, ``credit`` (author and licence), ``thumb`` (a JPEG file).
    exemplars
        ``latent, rank, row, value, patch``: for each concept the cells of this set on which it is strongest.
    vectors
        float32 [n_cells, n_latents], sparse: the largest code over the patches times `weight`, of length one.
    weight
        float32 [n_latents]: ``-ln(frequency)``, so that what every cell has makes no two alike.
    known
        How unusual an image is.
    manifest
        How it was made.
    """

    cells: pd.DataFrame
    exemplars: pd.DataFrame
    vectors: sp.csr_matrix
    weight: Array
    known: KnownCells
    manifest: Manifest

    def similar(self, maximum: Array, n: int = 6) -> pd.DataFrame:
        """The cells most similar to one whose largest codes are `maximum` [n_latents], by the cosine of weighted concepts.

        Returns
        -------
        ``row, cell_id, dataset, label, credit, similarity``, best first
        """
        vector = shorten(sp.csr_matrix((maximum * self.weight).astype(np.float32)))
        cosine = np.asarray((self.vectors @ vector.T).todense()).ravel()
        order = np.argsort(-cosine, kind="stable")[:n]
        found = self.cells.iloc[order][["cell_id", "dataset", "label", "credit"]].reset_index(drop=True)
        return found.assign(row=order, similarity=cosine[order])[
            ["row", "cell_id", "dataset", "label", "credit", "similarity"]
        ]

    def thumb(self, row: int) -> Array:
        """Pixels of a reference cell's small picture."""
        from cytosae.cells import decode_image

        return decode_image(self.cells["thumb"].iloc[row]).pixels

    def exemplars_of(self, latent: int) -> pd.DataFrame:
        """Reference cells of a concept, strongest first; none where no cell of the set has it."""
        first, last = np.searchsorted(self._latents, [latent, latent + 1])
        return self.exemplars.iloc[first:last]

    @cached_property
    def _latents(self) -> Array:
        return self.exemplars["latent"].to_numpy()


def shorten(matrix: sp.csr_matrix, kept: int = KEPT) -> sp.csr_matrix:
    """The `kept` largest entries of each row, made of length one."""
    matrix = matrix.tocsr()
    rows = []
    for start, stop in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True):
        values, places = matrix.data[start:stop], matrix.indices[start:stop]
        best = np.sort(np.argsort(-values, kind="stable")[:kept])
        best = best[values[best] > 0]
        length = max(float(np.linalg.norm(values[best])), 1e-12)
        rows.append((places[best], values[best] / length))
    indptr = np.cumsum([0, *(len(p) for p, _ in rows)])
    places = np.concatenate([p for p, _ in rows]) if rows else np.zeros(0, np.int32)
    values = np.concatenate([v for _, v in rows]) if rows else np.zeros(0, np.float32)
    return sp.csr_matrix((values.astype(np.float32), places.astype(np.int32), indptr), shape=matrix.shape)


def write_reference(
    out: Path, reference: Reference, inputs: Mapping[str, str], config: Mapping[str, Any], extra_keys: Mapping[str, Any]
) -> None:
    """Write a reference set as a folder."""
    from safetensors.numpy import save_file

    vectors = reference.vectors
    if vectors.shape[1] > 65_535:
        raise CytosaeError(f"A reference set holds at most 65,535 concepts, not {vectors.shape[1]:,}.")
    arrays = {
        "indptr": vectors.indptr.astype(np.int32), "indices": vectors.indices.astype(np.uint16),
        "values": vectors.data.astype(np.float16), "weight": reference.weight.astype(np.float32),
        **{f"known.{k}": v for k, v in reference.known.to_arrays().items()},
    }  # fmt: skip
    with commit_folder(out, kind=KIND, version=VERSION, inputs=dict(inputs), config=dict(config)) as (folder, extra):
        for name, table in (("cells", reference.cells), ("exemplars", reference.exemplars)):
            arrow = pa.Table.from_pandas(table, preserve_index=False).replace_schema_metadata(None)
            write_table(folder / f"{name}.parquet", arrow, kind=f"reference {name}", version=VERSION, inputs=dict(inputs),
                        atomic=False)  # fmt: skip
        save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, folder / "reference.safetensors")
        extra |= {"n_cells": len(reference.cells), **extra_keys}


def read_reference(folder: Path | str) -> Reference:
    """Read a reference set.

    Raises
    ------
    CytosaeError
        Missing, or changed since it was written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    folder = Path(folder)
    manifest = read_manifest(folder, KIND, VERSION)
    cells, exemplars = (
        read_table(folder / f"{name}.parquet", f"reference {name}", VERSION)[0].to_pandas() for name in ("cells", "exemplars")
    )  # fmt: skip
    try:
        arrays = load_file(folder / "reference.safetensors")
        vectors = sp.csr_matrix(
            (arrays["values"].astype(np.float32), arrays["indices"].astype(np.int32), arrays["indptr"]),
            shape=(len(cells), len(arrays["weight"])),
        )
        known = KnownCells.from_arrays(
            {k.removeprefix("known."): v for k, v in arrays.items() if k.startswith("known.")}
        )
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CytosaeError(f"{folder} is not a whole reference set ({error}); make it again.") from error
    return Reference(cells, exemplars, vectors, arrays["weight"], known, manifest)
