"""From cells to a token store: decoding overlaps the forward pass, shards are written whole, and a stop loses one at most."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import torch

from cytosae._errors import CytosaeError, UsageError
from cytosae._memory import kept_memory
from cytosae._progress import Meter, say
from cytosae.backbones import Backbone, Layer
from cytosae.cells import Cells, ImageReader, UnreadableImageError, decode_image, select
from cytosae.storage import commit_file, commit_folder, same_work, write_table
from cytosae.tokens._balance import balanced
from cytosae.tokens._forward import check_mode, choose_forward
from cytosae.tokens._kinds import KINDS, Kept
from cytosae.tokens._store import KIND, STORED, TORCH, VERSION, TokenStore, image_keys
from cytosae.tokens._views import VIEWS, turned

#: Images a forward pass; the last batch is padded to it, so that a cell's tokens do not depend on how many follow.
BATCH = 16
#: Cells a shard; a multiple of BATCH.
SHARD = 256


def extract_tokens(
    cells: Cells,
    backbone: Backbone,
    out: Path | str,
    *,
    layer: Layer = -2,
    store: str = "float16",
    where: Sequence[str] = (),
    keep: Sequence[str] = KINDS,
    patches: int | None = None,
    views: int = 1,
    seed: int = 0,
    compile: str = "auto",
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
        Block whose output is kept (-2: the last but one, as in the paper); or a list of blocks, kept side by side, each
        brought to the spread of the last (see `balanced`), or multiplied by a factor given as ``[block, factor]``.
    store
        ``float16``, ``bfloat16`` or ``float32``.
    where
        Conditions ``column=value`` that choose cells.
    keep
        Kinds of token to keep: ``class``, ``register``, ``patch``.
    patches
        Keep that many random patches of each cell instead of all; which ones depends on `seed` and the cell_id alone.
    views
        Of each cell: 1 as it is, 2 also mirrored, up to 8 with its quarter turns (see `turned`). The further ones are read by
        training alone (`TokenStore.views_of`).
    seed
        Of the choice of patches.
    compile
        ``on``: the forward pass is compiled, ``off``: it is not, ``auto``: where that pays. Compiled tokens differ from others
        in their last bits; which they are is written in the manifest (``forward``), and an unfinished store goes on as begun.

    Raises
    ------
    CytosaeError
        An image changed, tokens that are not numbers, or too large for float16, or the disk is (or would become) full.
    """
    out = Path(out)
    if store not in STORED:
        raise UsageError(f"There is no stored type {store!r}; use {', '.join(STORED)}.")
    check_mode(compile)
    if not 1 <= views <= VIEWS:
        raise UsageError(
            f"--views {views} is not possible: a cell has {VIEWS} (four quarter turns, each also mirrored); give 1 to {VIEWS}."
        )
    layer = balanced(backbone, layer)
    kept = Kept.of(backbone.token_kinds, keep, patches, seed, backbone.name)
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
        **({"compile": compile} if compile != "auto" else {}),
        **kept.config,
        **({"views": views} if views > 1 else {}),
    }
    if same_work(out, KIND, inputs, config):
        say(f"tokens: {out} is there already")
        return TokenStore(out)
    version = VERSION if views > 1 else 1 if kept.whole else 2
    with commit_folder(out, kind=KIND, version=version, inputs=inputs, config=config, resume=True) as (folder, extra):
        try:
            with kept_memory():
                top, forward = _write_shards(frame, cells.root, backbone, layer, store, kept, folder, compile, views)
        finally:
            backbone.compiled = 0  # whoever computes tokens with it next has not asked for compiled ones
        rows = kept.rows(frame["cell_id"].to_numpy(np.int64)) | {"image": pa.array(image_keys(frame["sha256"]))}
        write_table(folder / "rows.parquet", pa.table(rows), kind="token rows", version=version, atomic=False)
        extra |= {
            "n_rows": len(frame),
            **({"n_views": views} if views > 1 else {}),
            "n_tokens": len(kept.kinds),
            "n_prefix": kept.n_prefix,
            "token_kinds": kept.kinds,
            "grid": list(backbone.grid),
            "d_in": backbone.width(layer),
            "dtype": store,
            "layer": layer,
            "depth": backbone.depth,
            "backbone": backbone.record,
            "preprocessing": backbone.preprocessing.as_dict(),
            "precision": backbone.precision,
            "forward": forward,
            "max_abs": top,
            "n_quarantined": cells.n_quarantined,
        }
    return TokenStore(out)


def load_images(
    frame: pd.DataFrame, root: str, backbone: Backbone, views: npt.NDArray[np.int64] | None = None
) -> npt.NDArray[np.uint8]:
    """Decode and resize the images of some rows, `views` [n] of them (see `turned`): uint8 [n, side, side, 3]."""
    reader = ImageReader(root)
    out = np.empty((len(frame), backbone.preprocessing.side, backbone.preprocessing.side, 3), np.uint8)
    for i, (image, sha256) in enumerate(zip(frame["image"], frame["sha256"], strict=True)):
        try:
            out[i] = backbone.preprocessing.resize(decode_image(reader.read(image, sha256)).pixels)
        except UnreadableImageError as error:
            raise CytosaeError(f"{image}: {error}; run 'cytosae cells' again.") from error
    for view in np.unique(views) if views is not None else ():
        out[views == view] = turned(out[views == view], int(view))
    return out


def encode_images(
    frame: pd.DataFrame,
    root: str,
    backbone: Backbone,
    layer: Layer,
    views: npt.NDArray[np.int64] | None = None,
) -> Iterator[torch.Tensor]:
    """float32 tokens of the cells in `frame` (or `views` [n] of them), `BATCH` at a time, the next batch being decoded meanwhile."""
    starts = range(0, len(frame), BATCH)
    parts = [(frame.iloc[i : i + BATCH], views if views is None else views[i : i + BATCH]) for i in starts]
    with ThreadPoolExecutor(1) as pool:
        waiting = [pool.submit(load_images, part, root, backbone, which) for part, which in parts[:2]]
        for i, (part, _) in enumerate(parts):
            images = waiting.pop(0).result()
            if i + 2 < len(parts):
                part_after, views_after = parts[i + 2]
                waiting.append(pool.submit(load_images, part_after, root, backbone, views_after))
            if len(images) < BATCH:
                images = np.concatenate([images, np.zeros((BATCH - len(images), *images.shape[1:]), np.uint8)])
            yield backbone.tokens(images, layer)[: len(part)]


def _write_shards(
    frame: pd.DataFrame,
    root: str,
    backbone: Backbone,
    layer: Layer,
    store: str,
    kept: Kept,
    folder: Path,
    mode: str,
    n_views: int,
) -> tuple[float, dict[str, Any]]:
    """Write the shards that are missing; give the largest absolute value of all, as stored, and which forward pass it was."""
    top = 0.0
    cells, views = np.tile(np.arange(len(frame)), n_views), np.repeat(np.arange(n_views), len(frame))
    ids = frame["cell_id"].to_numpy(np.int64)[cells]
    paths = {start: folder / f"tokens-{start // SHARD:05d}.bin" for start in range(0, len(ids), SHARD)}
    missing = [start for start, path in paths.items() if not path.exists()]  # what is there is whole: it was renamed
    left = np.concatenate([np.arange(s, min(s + SHARD, len(ids))) for s in missing] or [np.empty(0, np.int64)])
    _check_room(folder, len(left) * len(kept.kinds) * backbone.width(layer) * STORED[store].itemsize)
    forward = choose_forward(backbone, layer, mode, batch=BATCH, n_left=-(-len(left) // BATCH), folder=folder)
    # shards hold whole batches, so one pipeline runs through all that are missing
    stream = encode_images(frame.iloc[cells[left]], root, backbone, layer, views[left] if n_views > 1 else None)
    with Meter(len(ids), "tokens", "cells" if n_views == 1 else "views") as meter, ThreadPoolExecutor(1) as pool:
        flushed: Future[None] = pool.submit(lambda: None)
        for start, path in paths.items():
            n = min(SHARD, len(ids) - start)
            if start not in missing:
                top = max(top, _largest(path, store))
                meter.add(n)
                continue
            with ExitStack() as stack:
                temporary = stack.enter_context(commit_file(path))
                with temporary.open("wb") as file:
                    for first in range(start, start + n, BATCH):
                        tokens = kept.of_cells(next(stream), ids[first : min(first + BATCH, start + n)])
                        _check(tokens, store)
                        stored = tokens.to("cpu", TORCH[store]).contiguous()
                        top = max(top, float(stored.float().abs().max()))
                        file.write(_bytes(stored, store))
                        meter.add(len(tokens))
                flushed.result()
                # flushing to the disk and renaming go on beside the next shard's forward pass
                flushed = pool.submit(stack.pop_all().close)
        flushed.result()
    return top, forward


def _check_room(folder: Path, needed: int) -> None:
    """Refuse at the start what would fill the disk at the end."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CytosaeError(
            f"The tokens still to be written take {needed / 1e9:.2f} GB, but {folder.parent} has {free / 1e9:.2f} GB free; "
            "free some space, or keep less of each cell (--keep, --patches, --views, --store float16)."
        )


def _check(tokens: torch.Tensor, store: str) -> None:
    top = float(tokens.abs().max())
    if not np.isfinite(top):
        raise CytosaeError(
            "The backbone gives tokens that are not numbers; check its weights, or use --precision float32."
        )
    if top > torch.finfo(TORCH[store]).max:
        raise CytosaeError(f"A token value of {top:.3g} does not fit {store}; use --store bfloat16 or --store float32.")


def _bytes(stored: torch.Tensor, store: str) -> Any:
    array = stored.view(torch.int16).numpy() if store == "bfloat16" else stored.numpy()
    return array.astype(STORED[store], copy=False).tobytes()


def _largest(path: Path, store: str) -> float:
    values = torch.from_numpy(np.fromfile(path, dtype=STORED[store]))
    values = values.view(torch.bfloat16) if store == "bfloat16" else values
    return float(values.abs().max())
