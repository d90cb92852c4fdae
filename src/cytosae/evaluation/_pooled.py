"""Cells x units: the largest and the mean value over the patches, or that of the class token; kept on disk between runs."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from cytosae._errors import CytosaeError
from cytosae._progress import Meter
from cytosae.concepts._stream import StoredTokens
from cytosae.evaluation._units import Units
from cytosae.storage import commit_file, hash_file, hash_json, write_json

Floats = npt.NDArray[np.float32]
#: What a cell's value is: over its patches, or of its class token.
POOLINGS = ("max", "mean", "class")
#: Values held at once.
_VALUES = 2**25
VERSION = 2


def pooled(
    units: Units,
    tokens: StoredTokens,
    frame: pd.DataFrame,
    pooling: str,
    cache: Path,
    *,
    tokens_key: str,
    size: int = 0,
) -> Floats:
    """A cell's value of every unit.

    Parameters
    ----------
    frame
        The cells, one row each.
    pooling
        One of `POOLINGS`. ``max`` and ``mean`` are computed together.
    cache
        Folder of what was computed before. Found there under the same key and whole, it is read.
    tokens_key
        Hash of the tokens.
    size
        Cells at a time; 0: as many as fit. Chunks all have this size, the last one padded, so that a cell's values do not
        depend on how many cells there are.

    Returns
    -------
    float32 [n_cells, n_units], mapped, not loaded.
    """
    wanted = ("class",) if pooling == "class" else ("max", "mean")
    ids = hash_json([frame["cell_id"].astype(int).tolist(), frame["sha256"].astype(str).tolist()])
    keys = {p: hash_json([VERSION, units.key, units.n_units, tokens_key, ids, p]) for p in wanted}
    found = _read(cache, units.name, pooling, keys[pooling], (len(frame), units.n_units))
    if found is not None:
        return found
    made = {p: cache / _name(units.name, p, keys[p]) for p in wanted}
    shape = (len(frame), units.n_units)
    with ExitStack() as stack:
        temporary = {p: stack.enter_context(commit_file(path)) for p, path in made.items()}
        out = {p: np.lib.format.open_memmap(t, mode="w+", dtype=np.float32, shape=shape) for p, t in temporary.items()}
        _fill(out, units, tokens, frame, size)
        for array in out.values():
            array.flush()
        del out
        records = {p: {"key": keys[p], "sha256": hash_file(t), "shape": list(shape)} for p, t in temporary.items()}
    for p, path in made.items():
        with commit_file(path.with_suffix(".json")) as record:
            write_json(record, records[p])
    found = _read(cache, units.name, pooling, keys[pooling], shape)
    if found is None:
        raise CytosaeError(f"{made[pooling]} was written but does not read back; check the disk, and run it again.")
    return found


def _fill(out: dict[str, Any], units: Units, tokens: StoredTokens, frame: pd.DataFrame, size: int) -> None:
    kind = "class" if "class" in out else "patch"
    first = tokens.read(frame.iloc[:1], kind)
    n_tokens = first.shape[1]
    size = size or max(1, _VALUES // (n_tokens * units.n_units))
    with Meter(len(frame), f"{units.name}: {kind} tokens", "cells") as meter, torch.inference_mode():
        for start in range(0, len(frame), size):
            x = tokens.read(frame.iloc[start : start + size], kind)
            n = len(x)
            if n < size:
                x = torch.cat([x, x.new_zeros(size - n, *x.shape[1:])])
            values = units.encode(x.flatten(0, 1)).view(size, n_tokens, -1)[:n]
            if kind == "class":
                out["class"][start : start + n] = values[:, 0].numpy()
            else:
                out["max"][start : start + n] = values.amax(1).numpy()
                out["mean"][start : start + n] = values.mean(1).numpy()
            meter.add(n)


def _name(name: str, pooling: str, key: str) -> str:
    return f"{name}-{pooling}-{key[:16]}.npy"


def _read(cache: Path, name: str, pooling: str, key: str, shape: tuple[int, int]) -> Floats | None:
    """What the cache holds; None where it is missing, of other work, or not whole."""
    path = cache / _name(name, pooling, key)
    try:
        record = json.loads(path.with_suffix(".json").read_text("utf-8"))
        if record["key"] != key or record["sha256"] != hash_file(path):
            return None
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return array if array.shape == shape and array.dtype == np.float32 else None
