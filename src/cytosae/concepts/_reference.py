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
from cytosae.cells import decode_image
from cytosae.concepts._unusual import KnownCells
from cytosae.storage import Manifest, commit_folder, read_manifest, read_table, write_table

KIND, VERSION = "reference", 1
#: Columns of a reference cell; `thumb` holds a JPEG file.
COLUMNS = ("cell_id", "dataset", "label", "credit", "thumb")
#: Concepts kept of each cell, the strongest.
KEPT = 128

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
        float32 [n_cells, n_latents], sparse: the largest code over the patches, for the `KEPT` largest of each cell.
    centre
        float32 [n_latents]: mean of the largest codes over the cells indexed; what lies at it makes no two cells alike.
    known
        How unusual an image is.
    manifest
        How it was made.
    """

    cells: pd.DataFrame
    exemplars: pd.DataFrame
    vectors: sp.csr_matrix
    centre: Array
    known: KnownCells
    manifest: Manifest

    def similar(self, maximum: Array, n: int = 6) -> pd.DataFrame:
        """The cells most similar to one whose largest codes are `maximum` [n_latents]: the cosine of both, less `centre`.

        Returns
        -------
        ``row, cell_id, dataset, label, credit, similarity``, best first
        """
        query = np.asarray(shorten(sp.csr_matrix(maximum.astype(np.float32))).todense()).ravel() - self.centre
        towards = self.vectors @ query - self.centre @ query
        cosine = towards / np.maximum(self._lengths * np.linalg.norm(query), 1e-12)
        order = np.argsort(-cosine, kind="stable")[:n]
        found = self.cells.iloc[order][["cell_id", "dataset", "label", "credit"]].reset_index(drop=True)
        return pd.concat([pd.DataFrame({"row": order}), found.assign(similarity=cosine[order])], axis=1)

    @cached_property
    def _lengths(self) -> Array:
        """Length of each cell's vector less `centre`."""
        squares = np.asarray(self.vectors.multiply(self.vectors).sum(1)).ravel() - 2 * (self.vectors @ self.centre)
        return np.asarray(np.sqrt(np.maximum(squares + self.centre @ self.centre, 0)))

    def thumb(self, row: int) -> Array:
        """Pixels of a reference cell's small picture."""
        return np.asarray(decode_image(self.cells["thumb"].iloc[row]).pixels)

    def exemplars_of(self, latent: int) -> pd.DataFrame:
        """Reference cells of a concept, strongest first; none where no cell of the set has it."""
        first, last = np.searchsorted(self._latents, [latent, latent + 1])
        return self.exemplars.iloc[first:last]

    @cached_property
    def _latents(self) -> Array:
        return np.asarray(self.exemplars["latent"])


def shorten(matrix: sp.csr_matrix, kept: int = KEPT) -> sp.csr_matrix:
    """The `kept` largest positive entries of each row; of equal ones the first."""
    matrix = matrix.tocsr()
    rows: list[Array] = []
    for start, stop in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True):
        values = matrix.data[start:stop]
        best = np.sort(np.argsort(-values, kind="stable")[:kept])
        rows.append(start + best[values[best] > 0])
    at = np.concatenate([np.zeros(0, np.int64), *rows])
    indptr = np.cumsum([0, *map(len, rows)])
    return sp.csr_matrix((matrix.data[at].astype(np.float32), matrix.indices[at], indptr), shape=matrix.shape)


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
        "values": vectors.data.astype(np.float16), "centre": reference.centre.astype(np.float32),
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
            shape=(len(cells), len(arrays["centre"])),
        )
        known = KnownCells.from_arrays(
            {k.removeprefix("known."): v for k, v in arrays.items() if k.startswith("known.")}
        )
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CytosaeError(f"{folder} is not a whole reference set ({error}); make it again.") from error
    return Reference(cells, exemplars, vectors, arrays["centre"], known, manifest)
