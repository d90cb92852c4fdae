"""One pass over cells: tokens -> codes -> statistics, and on request cells x concepts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from cytosae._errors import CytosaeError
from cytosae._progress import Meter, say
from cytosae.backbones import Backbone, load_backbone
from cytosae.cells import Cells, select
from cytosae.concepts._cells_by_concepts import LAYERS, write_cells_by_concepts
from cytosae.concepts._index import KIND, VERSION, ConceptIndex
from cytosae.concepts._statistics import SCALE, ConceptStatistics
from cytosae.sae import SparseAutoencoder
from cytosae.storage import commit_folder, same_work, write_table
from cytosae.tokens import TokenStore, encode_images

#: Cells encoded together: those whose cell_id falls into the same block of this size, missing ones padded with zeros,
#: so that a cell's codes do not depend on which other cells are indexed with it.
CHUNK = 16


def index_concepts(
    cells: Cells,
    sae: SparseAutoencoder,
    out: Path | str,
    *,
    store: TokenStore | None = None,
    where: Sequence[str] = (),
    n_exemplars: int = 20,
    cells_matrix: bool = False,
    device: str = "cpu",
    weights: Path | str | None = None,
) -> ConceptIndex:
    """From cells and a dictionary to everything that is said of every concept.

    Parameters
    ----------
    cells
        The table.
    sae
        The dictionary.
    out
        Folder of the index.
    store
        Tokens of these cells; computed from the images where None.
    where
        Conditions ``column=value`` that choose cells.
    n_exemplars
        Cells kept a concept.
    cells_matrix
        Also write ``cells.h5ad``: cells x concepts (largest code over the patches; layers ``mean``, ``patch_share``).
    weights
        Weight file of the backbone, where it came from one and no `store` is given.

    Raises
    ------
    CytosaeError
        The tokens belong to another backbone, layer or width than the dictionary.
    """
    out = Path(out)
    frame = select(cells, where).reset_index(drop=True)
    if store is not None:
        check_tokens(sae, store)
    inputs = {"cells": cells.hash, "sae": sae.hash, **({"tokens": store.hash} if store else {})}
    config = {"where": list(where), "n_exemplars": n_exemplars, "cells_matrix": cells_matrix, "chunk": CHUNK,
              "semantics": "default", "fixed_point_scale": SCALE, "threads": torch.get_num_threads()}  # fmt: skip
    if cells_matrix:
        config["cells_layers"] = list(LAYERS)  # an index written before a layer existed is not the same work
    if same_work(out, KIND, inputs, config):
        say(f"index: {out} is there already")
        return ConceptIndex(out)
    labels = tuple(sorted(frame["label"].dropna().unique()))
    statistics = ConceptStatistics(sae.n_latents, labels, n_exemplars)
    number = {name: i for i, name in enumerate(labels)}
    label_of = dict(zip(frame["cell_id"], (None if pd.isna(v) else str(v) for v in frame["label"]), strict=True))
    pooled: list[tuple[Any, ...]] = []
    with commit_folder(out, kind=KIND, version=VERSION, inputs=inputs, config=config) as (folder, extra):
        with Meter(len(frame), "index", "cells") as meter:
            for ids, tokens in cell_tokens(frame, cells.root, sae, store, device, weights):
                maximum, patch, mean, n_active = pool_cells(sae, ids, tokens)
                which = np.array([number.get(label_of[int(i)] or "", -1) for i in ids], np.int64)
                statistics.update(ids, which, maximum, patch, mean, n_active, tokens.shape[1])
                if cells_matrix:
                    pooled.append((maximum, mean, n_active / tokens.shape[1]))
                meter.add(len(ids))
        tables = statistics.finish(label_of)
        for name, table in zip(("concepts", "exemplars", "labels"), tables, strict=True):
            arrow = pa.Table.from_pandas(table, preserve_index=False).replace_schema_metadata(None)
            write_table(folder / f"{name}.parquet", arrow, kind=name, version=VERSION, inputs=inputs, atomic=False)
        if cells_matrix:
            write_cells_by_concepts(folder / "cells.h5ad", frame, pooled, tables[0], inputs)
        info = sae.info
        extra |= {
            "n_cells": statistics.n_cells,
            "n_tokens": statistics.n_tokens,
            "n_latents": sae.n_latents,
            "n_quarantined": cells.n_quarantined,
            "labels": {name: int(n) for name, n in zip(labels, statistics.label_cells, strict=True)},
            "backbone": info.get("backbone"),
            "layer": info.get("layer"),
            "precision": store.manifest["precision"] if store else info.get("precision"),
            "token_kinds": info.get("token_kinds", ["patch"]),
        }
    return ConceptIndex(out)


def check_tokens(sae: SparseAutoencoder, store: TokenStore) -> None:
    """Refuse tokens that are not of the kind the dictionary was trained on."""
    if store.d_in != sae.d_in:
        raise CytosaeError(
            f"The tokens are {store.d_in} wide, but the dictionary wants {sae.d_in}; use the same backbone."
        )
    for key in ("backbone", "layer", "preprocessing"):
        wanted, found = sae.info.get(key), store.manifest.get(key)
        if key == "backbone" and wanted and found:  # a renamed file is the same backbone
            wanted, found = ({k: v for k, v in record.items() if k != "file"} for record in (wanted, found))
        if wanted is not None and wanted != found:
            raise CytosaeError(
                f"The tokens differ from the dictionary's in {key} ({found} against {wanted}); extract them again."
            )


def backbone_of(sae: SparseAutoencoder, device: str, weights: Path | str | None = None) -> tuple[Backbone, int]:
    """The backbone a dictionary belongs to, and the block it was trained on.

    Parameters
    ----------
    sae
        The dictionary.
    device
        As torch names it.
    weights
        The weight file, where the backbone came from one.

    Raises
    ------
    CytosaeError
        The dictionary does not say, it came from a file that is not given, or the weights present are others.
    """
    record = sae.info.get("backbone")
    if not record:
        raise CytosaeError("This dictionary does not say which backbone it belongs to; give tokens with --tokens.")
    if record.get("file") and weights is None:
        raise CytosaeError(
            f"This dictionary belongs to {record['name']} with the weights of {record['file']}; give that file with --weights."
        )
    backbone = load_backbone(
        record["name"], weights=weights if record.get("file") else None, precision=sae.info.get("precision", "float32"),
        device=device, **record.get("options", {}),
    )  # fmt: skip
    if backbone.weights_sha256 != record["sha256"]:
        raise CytosaeError(
            f"The weights of {record['name']} are not those the dictionary was trained on (sha256 differs)."
        )
    return backbone, int(sae.info["layer"])


def cell_tokens(
    frame: pd.DataFrame,
    root: str,
    sae: SparseAutoencoder,
    store: TokenStore | None,
    device: str,
    weights: Path | str | None = None,
) -> Iterator[tuple[Any, torch.Tensor]]:
    """(cell_ids, float32 patch tokens [cells, patches, d_in]) for each block of `CHUNK` cell_ids, in ascending order."""
    ids = frame["cell_id"].to_numpy(np.int64)
    starts = np.flatnonzero(np.diff(ids // CHUNK, prepend=-1))
    blocks = [ids[a:b] for a, b in zip(starts, [*starts[1:], len(ids)], strict=True)]
    if store is not None:
        for block in blocks:
            yield block, store.read(store.rows_of(block), kind="patch").float().to(device)
        return
    backbone, layer = backbone_of(sae, device, weights)
    waiting = torch.empty(0)
    stream = encode_images(frame, root, backbone, layer)
    for block in blocks:
        while len(waiting) < len(block):
            waiting = torch.cat([waiting.to(device), next(stream)[:, backbone.n_prefix :]])
        yield block, waiting[: len(block)]
        waiting = waiting[len(block) :]


def pool_cells(sae: SparseAutoencoder, ids: Any, tokens: torch.Tensor) -> tuple[Any, Any, Any, Any]:
    """Codes of one block of cells, pooled: maximum, its patch, mean, number of active patches; each [cells, n_latents]."""
    _, patches, d = tokens.shape
    place = torch.as_tensor(ids % CHUNK)
    padded = torch.zeros(CHUNK, patches, d, device=tokens.device)
    padded[place] = tokens
    codes = sae.encode(padded.flatten(0, 1)).view(CHUNK, patches, -1)[place]
    maximum, patch = codes.max(1)
    # the first of equal patches: torch does not promise which index of a tie it gives
    patch = torch.where(maximum > 0, (codes == maximum[:, None]).to(torch.int8).argmax(1), patch)
    mean = codes.sum(1, dtype=torch.float64) / patches
    parts = (maximum, patch, mean, (codes > 0).sum(1))
    return tuple(part.cpu().numpy() for part in parts)  # type: ignore[return-value]
