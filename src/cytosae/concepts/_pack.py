"""Packing a bundle: a small index, reference cells that show as many concepts as they can, and suggested captions."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import scipy.sparse as sp
from PIL import Image

from cytosae._errors import CytosaeError
from cytosae.cells import Cells, ImageReader, decode_image
from cytosae.concepts._atlas import MIN_CELLS, captions
from cytosae.concepts._bundle import VERSION
from cytosae.concepts._cells_by_concepts import read_cells_by_concepts
from cytosae.concepts._index import KIND as INDEX_KIND
from cytosae.concepts._index import VERSION as INDEX_VERSION
from cytosae.concepts._index import ConceptIndex, indexed_cells, write_tables
from cytosae.concepts._reference import Reference, shorten, write_reference
from cytosae.concepts._unusual import KnownCells
from cytosae.sae import SparseAutoencoder
from cytosae.storage import commit_folder, write_table

Array = npt.NDArray[Any]

#: Side and JPEG quality of a reference cell's picture; exemplars a concept; captions a concept.
SIDE, QUALITY, SHOWN, CAPTIONS = 64, 80, 3, 3
#: A concept's cells are looked for among so many of its exemplars; a label gets at least so many cells.
_AMONG, _PER_LABEL = 8, 80


def pack_index(index: ConceptIndex, sae: SparseAutoencoder, out: Path) -> None:
    """Write an index again without its exact sums, and of its groups the data sets only: what is needed to explain.

    Raises
    ------
    CytosaeError
        It is no index of this dictionary.
    """
    if index.manifest["inputs"].get("sae") != sae.hash:
        raise CytosaeError(f"{index.folder} is not an index of the dictionary given; index with that one.")
    data = index.manifest.data
    inputs = {k: data["inputs"][k] for k in ("sae", "cells") if k in data["inputs"]} | {"index": index.hash}
    own = ("kind", "version", "created_by", "inputs", "config", "files")
    kept = index.groups[index.groups["grouping"] == "dataset"]
    tables = {"concepts": index.concepts, "exemplars": index.exemplars, "labels": index.labels, "groups": kept}
    with commit_folder(out, kind=INDEX_KIND, version=INDEX_VERSION, inputs=inputs, config=dict(data["config"])) as (
        folder,
        extra,
    ):
        write_tables(folder, tables, inputs)
        extra |= {k: v for k, v in data.items() if k not in own}
        extra["groups"] = {"dataset": data.get("groups", {}).get("dataset", [])}


def pack_captions(index: ConceptIndex, cells: Cells, out: Path) -> pd.DataFrame:
    """Write what is more frequent among a concept's exemplars than among all cells: at most `CAPTIONS` suggestions each."""
    alive = np.flatnonzero(index.concepts["n_cells_active"].to_numpy() >= MIN_CELLS)
    found = captions(index, cells, alive, alive).rename(columns={"cluster": "latent"})
    best = found.groupby("latent", sort=True).head(CAPTIONS).drop(columns="p").reset_index(drop=True)
    arrow = pa.Table.from_pandas(best, preserve_index=False).replace_schema_metadata(None)
    write_table(out, arrow, kind="bundle captions", version=VERSION, inputs={"index": index.hash})
    return best


def pack_technical(table: pd.DataFrame | None, index: ConceptIndex, out: Path) -> pd.DataFrame:
    """Write the concepts with a flag, from the side artifact ``technical.parquet`` of a scorecard; none where there is none."""
    empty = pd.DataFrame({"latent": np.zeros(0, np.int64), "flags": np.zeros(0, object)})
    found = empty if table is None else table.loc[table["flags"] != "", ["latent", "flags"]].reset_index(drop=True)
    arrow = pa.table({"latent": pa.array(found["latent"], pa.int64()), "flags": pa.array(found["flags"], pa.string())})
    write_table(out, arrow, kind="bundle technical", version=VERSION, inputs={"index": index.hash})
    return found


def pack_reference(
    index: ConceptIndex,
    cells: Cells,
    out: Path,
    *,
    known: KnownCells,
    credits: Mapping[str, str],
    n_cells: int = 1500,
    limit_from: str = "",
    unusual_block: int | None = None,
) -> Reference:
    """Choose and write the reference cells of an index made with ``cells_matrix``.

    Parameters
    ----------
    index, cells
        The index and its table, whose images are read.
    out
        The folder.
    known
        How unusual an image is.
    credits
        For every data set its authors and licence.
    n_cells
        How many cells at most.
    limit_from
        What the limit of `known` was set on, for the record.
    unusual_block
        The block of the backbone whose class tokens `known` is about; None: the last one that the dictionary reads.

    Raises
    ------
    CytosaeError
        A data set without credit.
    """
    frame = indexed_cells(index, cells).set_index("cell_id")
    lacking = sorted(set(frame["dataset"].astype(str)) - set(credits))
    if lacking:
        raise CytosaeError(f"The cells of {lacking[0]} have no credit; say whose they are and under which licence.")
    chosen = choose_cells(index, frame, n_cells)
    row_of = {int(c): i for i, c in enumerate(chosen)}
    shown = index.exemplars[index.exemplars["shown"].astype(bool) & index.exemplars["cell_id"].isin(chosen)]
    shown = shown.sort_values(["latent", "rank"]).groupby("latent").head(SHOWN)
    exemplars = pd.DataFrame({
        "latent": shown["latent"].to_numpy(np.int32), "rank": shown.groupby("latent").cumcount().to_numpy(np.int16),
        "row": shown["cell_id"].map(row_of).to_numpy(np.int32), "value": shown["value"].to_numpy(np.float32),
        "patch": shown["patch"].to_numpy(np.int16),
    })  # fmt: skip
    matrix = read_cells_by_concepts(index.folder)
    at = pd.Series(np.arange(len(matrix.cell_ids)), index=matrix.cell_ids).loc[chosen].to_numpy()
    vectors = shorten(sp.csr_matrix(matrix.maximum[at]))
    centre = np.asarray(matrix.maximum.mean(0)).ravel().astype(np.float32)
    reader, rows = ImageReader(cells.root), frame.loc[chosen]
    thumbs = [small_jpeg(decode_image(reader.read(r.image, r.sha256)).pixels) for r in rows.itertuples()]
    table = pd.DataFrame({
        "cell_id": chosen, "dataset": rows["dataset"].to_numpy(), "label": rows["label"].to_numpy(),
        "credit": rows["dataset"].map(credits).to_numpy(), "thumb": thumbs,
    })  # fmt: skip
    made = Reference(table, exemplars, vectors, centre, known, index.manifest)
    inputs = {"sae": index.manifest["inputs"]["sae"], "index": index.hash, "cells": cells.hash}
    write_reference(out, made, inputs, {"n_cells": n_cells}, {
        "credits": dict(credits), "limit_from": limit_from, "unusual_block": unusual_block, "backbone": index.manifest.get("backbone"),
        "layer": index.manifest.get("layer"), "n_concepts_shown": int(exemplars["latent"].nunique()),
    })  # fmt: skip
    return made


def choose_cells(index: ConceptIndex, frame: pd.DataFrame, n: int) -> Array:
    """Cell ids, sorted: of every label some at random, then those that show most concepts not yet shown `SHOWN` times.

    Parameters
    ----------
    index
        Its shown exemplars are what can be shown.
    frame
        The cells indexed, by ``cell_id``, with ``dataset`` and ``label``.
    n
        How many.
    """
    ids = frame.index.to_numpy(np.int64)
    rng = np.random.Generator(np.random.Philox(0))
    taken = np.zeros(len(ids), bool)
    groups = frame[["dataset", "label"]].astype(str).agg("/".join, axis=1).to_numpy()
    names = np.unique(groups)
    for name in names:
        mine = np.flatnonzero(groups == name)
        taken[rng.permutation(mine)[: min(_PER_LABEL, max(1, 2 * n // (3 * len(names))))]] = True
    shown = index.exemplars[index.exemplars["shown"].astype(bool)].sort_values(["latent", "rank"])
    shown = shown.groupby("latent").head(_AMONG)
    at = np.searchsorted(ids, shown["cell_id"].to_numpy(np.int64))
    ones = np.ones(len(shown), np.float32)
    shows = sp.csr_matrix((ones, (at, shown["latent"].to_numpy())), shape=(len(ids), len(index.concepts)))
    wanted = np.minimum(np.asarray(shows.sum(0)).ravel(), SHOWN) - np.asarray(shows[taken].sum(0)).ravel()
    while taken.sum() < min(n, len(ids)):
        gain = np.where(taken, -1.0, shows @ (wanted > 0).astype(np.float32))
        best = int(gain.argmax())
        if gain[best] <= 0:
            break
        taken[best] = True
        wanted -= np.asarray(shows[best].todense()).ravel()
    return np.asarray(ids[taken])


def small_jpeg(pixels: Array, side: int = SIDE, quality: int = QUALITY) -> bytes:
    """A JPEG of `side` x `side` pixels."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS).save(
        buffer, "JPEG", quality=quality, optimize=True
    )
    return buffer.getvalue()
