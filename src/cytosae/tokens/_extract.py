"""From cells to a token store: decoding overlaps the forward pass, shards are written whole, and a stop loses one at most."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import torch

from cytosae._errors import CytosaeError, UsageError
from cytosae._progress import Meter, say
from cytosae.backbones import Backbone
from cytosae.cells import Cells, ImageReader, UnreadableImageError, decode_image, select
from cytosae.storage import commit_file, commit_folder, same_work, write_table
from cytosae.tokens._store import KIND, STORED, TORCH, TokenStore

#: Images a forward pass; the last batch is padded to it, so that a cell's tokens do not depend on how many follow.
BATCH = 16
#: Cells a shard.
SHARD = 256


def extract_tokens(
    cells: Cells,
    backbone: Backbone,
    out: Path | str,
    *,
    layer: int = -2,
    store: str = "float16",
    where: Sequence[str] = (),
) -> TokenStore:
    """Run a backbone over the usable cells of a table and keep the tokens of one block.

    Parameters
    ----------
    cells
        The table; quarantined cells have no tokens and are counted in the manifest.
    backbone
        Frozen network.
    out
        Folder of the token store.
    layer
        Block whose output is kept (-2: the last but one, as in the paper).
    store
        ``float16``, ``bfloat16`` or ``float32``.
    where
        Conditions ``column=value`` that choose cells.

    Raises
    ------
    CytosaeError
        An image changed, tokens that are not numbers, or too large for float16.
    """
    out = Path(out)
    if store not in STORED:
        raise UsageError(f"There is no stored type {store!r}; use {', '.join(STORED)}.")
    backbone.block_number(layer)
    frame = select(cells, where)
    inputs = {"cells": cells.hash, "backbone": backbone.weights_sha256}
    config = {
        "backbone": backbone.name,
        "layer": layer,
        "precision": backbone.precision,
        "store": store,
        "where": list(where),
        "preprocessing": backbone.preprocessing.as_dict(),
        "batch": BATCH,
        "threads": torch.get_num_threads(),
        **({"backbone_options": backbone.options} if backbone.options else {}),
    }
    if same_work(out, KIND, inputs, config):
        say(f"tokens: {out} is there already")
        return TokenStore(out)
    with commit_folder(out, kind=KIND, version=1, inputs=inputs, config=config, resume=True) as (folder, extra):
        top = _write_shards(frame, cells.root, backbone, layer, store, folder)
        ids = pa.array(frame["cell_id"].to_numpy(), pa.int64())
        write_table(folder / "rows.parquet", pa.table({"cell_id": ids}), kind="token rows", version=1, atomic=False)
        extra |= {
            "n_rows": len(frame),
            "n_tokens": backbone.n_tokens,
            "n_prefix": backbone.n_prefix,
            "token_kinds": backbone.token_kinds,
            "grid": list(backbone.grid),
            "d_in": backbone.d_in,
            "dtype": store,
            "layer": layer,
            "backbone": backbone.record,
            "preprocessing": backbone.preprocessing.as_dict(),
            "precision": backbone.precision,
            "max_abs": top,
            "n_quarantined": cells.n_quarantined,
        }
    return TokenStore(out)


def load_images(frame: pd.DataFrame, root: str, backbone: Backbone) -> npt.NDArray[np.uint8]:
    """Decode and resize the images of some rows: uint8 [n, side, side, 3]."""
    reader = ImageReader(root)
    out = np.empty((len(frame), backbone.preprocessing.side, backbone.preprocessing.side, 3), np.uint8)
    for i, (image, sha256) in enumerate(zip(frame["image"], frame["sha256"], strict=True)):
        try:
            out[i] = backbone.preprocessing.resize(decode_image(reader.read(image, sha256)).pixels)
        except UnreadableImageError as error:
            raise CytosaeError(f"{image}: {error}; run 'cytosae cells' again.") from error
    return out


def encode_images(frame: pd.DataFrame, root: str, backbone: Backbone, layer: int) -> Iterator[torch.Tensor]:
    """float32 tokens of the cells in `frame`, `BATCH` at a time, the next batch being decoded meanwhile."""
    parts = [frame.iloc[i : i + BATCH] for i in range(0, len(frame), BATCH)]
    with ThreadPoolExecutor(1) as pool:
        waiting = [pool.submit(load_images, part, root, backbone) for part in parts[:2]]
        for i, part in enumerate(parts):
            images = waiting.pop(0).result()
            if i + 2 < len(parts):
                waiting.append(pool.submit(load_images, parts[i + 2], root, backbone))
            if len(images) < BATCH:
                images = np.concatenate([images, np.zeros((BATCH - len(images), *images.shape[1:]), np.uint8)])
            yield backbone.tokens(images, layer)[: len(part)]


def _write_shards(frame: pd.DataFrame, root: str, backbone: Backbone, layer: int, store: str, folder: Path) -> float:
    """Write the shards that are missing; give the largest absolute value of all."""
    top = 0.0
    with Meter(len(frame), "tokens", "cells") as meter:
        for number, start in enumerate(range(0, len(frame), SHARD)):
            part, path = frame.iloc[start : start + SHARD], folder / f"tokens-{number:05d}.bin"
            if path.exists():  # whole, since it was renamed into place
                top = max(top, _largest(path, store))
                meter.add(len(part))
                continue
            with commit_file(path) as temporary, temporary.open("wb") as file:
                for tokens in encode_images(part, root, backbone, layer):
                    top = max(top, _check(tokens, store))
                    file.write(_bytes(tokens, store))
                    meter.add(len(tokens))
    return top


def _check(tokens: torch.Tensor, store: str) -> float:
    top = float(tokens.abs().max())
    if not np.isfinite(top):
        raise CytosaeError(
            "The backbone gives tokens that are not numbers; check its weights, or use --precision float32."
        )
    if top > torch.finfo(TORCH[store]).max:
        raise CytosaeError(f"A token value of {top:.3g} does not fit {store}; use --store bfloat16 or --store float32.")
    return top


def _bytes(tokens: torch.Tensor, store: str) -> Any:
    stored = tokens.to("cpu", TORCH[store]).contiguous()
    array = stored.view(torch.int16).numpy() if store == "bfloat16" else stored.numpy()
    return array.astype(STORED[store], copy=False).tobytes()


def _largest(path: Path, store: str) -> float:
    values = torch.from_numpy(np.fromfile(path, dtype=STORED[store]))
    values = values.view(torch.bfloat16) if store == "bfloat16" else values
    return float(values.abs().max())
