"""Which cells show the same: identical files, and near duplicates. Everything that grows with the cells lies in files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cytosae._progress import say
from cytosae.cells._near import near_duplicate_groups
from cytosae.cells._parts import PART_ROWS, Parts
from cytosae.cells._spool import RecordFile
from cytosae.cells._thumb import THUMB_BYTES

#: Parts whose hashes are sorted at a time.
_RUN_PARTS = 8

_HASH = np.dtype([("hash", "<u8"), ("row", "<i8")])

_THUMB = np.dtype(f"V{THUMB_BYTES}")

Numbers = npt.NDArray[np.int64]


def duplicate_groups(parts: Parts, *, search: bool) -> Callable[[int, int], Numbers]:
    """For every cell, the lowest cell_id among its identical files and near duplicates (its own where none).

    Parameters
    ----------
    parts
        The table, whole; files are kept in its folder.
    search
        Whether to look for near duplicates; without, only identical files are one group.

    Returns
    -------
    A function that gives the groups of the cells from one row up to another.
    """
    first = _first_rows(parts)
    if not search:
        return lambda start, stop: first.read(start, stop)
    # the different images, numbered in the order of their first cells
    row_of = RecordFile.at(parts.folder / "different.bin", "<i8")
    number_of = RecordFile.at(parts.folder / "numbers.bin", "<i8")
    thumbs = RecordFile.at(parts.folder / "thumbs.bin", _THUMB)
    for k in range(parts.n_done()):
        rows = np.arange(k * PART_ROWS, min((k + 1) * PART_ROWS, len(first)))
        own = first.read(int(rows[0]), int(rows[-1]) + 1) == rows
        number_of.append(len(row_of) + np.cumsum(own) - 1)
        row_of.append(rows[own])
        thumbs.append(np.ascontiguousarray(parts.thumbs(k)[own]).view(_THUMB)[:, 0])
    say(f"near duplicates: comparing {len(row_of):,} different images")

    def read(numbers: Numbers) -> npt.NDArray[np.uint8]:
        return thumbs.take(numbers).view(np.uint8).reshape(-1, THUMB_BYTES)

    found = near_duplicate_groups(read, len(row_of))
    return lambda start, stop: row_of.take(found[number_of.take(first.read(start, stop))].astype(np.int64))


def _first_rows(parts: Parts) -> RecordFile:
    """For every row, the first row with the same file.

    Hashes are sorted in runs; then one range of hashes after the other is taken from all runs.
    """
    n_parts = parts.n_done()
    n_ranges = max(1, n_parts // _RUN_PARTS)
    edges = np.array([2**64 * i // n_ranges for i in range(1, n_ranges)], np.uint64)
    first = RecordFile.at(parts.folder / "first.bin", "<i8")
    runs = RecordFile.at(parts.folder / "hashes.bin", _HASH)
    bounds = []
    for low in range(0, n_parts, _RUN_PARTS):
        numbers = range(low, min(low + _RUN_PARTS, n_parts))
        hashes = np.concatenate([_short_hashes(parts.read(k, ["sha256", "cell_id"])) for k in numbers])
        run = np.empty(len(hashes), _HASH)
        order = np.argsort(hashes, kind="stable")
        run["hash"], run["row"] = hashes[order], order + low * PART_ROWS
        bounds.append(len(runs) + np.concatenate([[0], np.searchsorted(run["hash"], edges), [len(run)]]))
        runs.append(run)
        first.append(np.arange(low * PART_ROWS, low * PART_ROWS + len(run)))
    for i in range(n_ranges):
        known, rows = np.empty(0, np.uint64), np.empty(0, np.int64)
        for bound in bounds:
            run = runs.read(int(bound[i]), int(bound[i + 1]))
            hashes, begin, place = np.unique(run["hash"], return_index=True, return_inverse=True)
            at = np.minimum(np.searchsorted(known, hashes), max(len(known) - 1, 0))
            seen = known[at] == hashes if len(known) else np.zeros(len(hashes), bool)
            firsts = run["row"][begin].astype(np.int64)
            firsts[seen] = rows[at[seen]]
            earlier = firsts[place] != run["row"]
            first.put(run["row"][earlier], firsts[place][earlier])
            merged = np.argsort(np.concatenate([known, hashes[~seen]]), kind="stable")
            known = np.concatenate([known, hashes[~seen]])[merged]
            rows = np.concatenate([rows, firsts[~seen]])[merged]
    return first


def _short_hashes(table: pa.Table) -> npt.NDArray[np.uint64]:
    """The first 64 bits of each file's hash; a cell without one gets bits of its own."""
    ids = table["cell_id"].to_pylist()
    texts = table["sha256"].to_pylist()
    own = (hashlib.sha256(f"cell {i}".encode()).hexdigest() for i in ids)
    return np.array([int((t or o)[:16], 16) for t, o in zip(texts, own, strict=True)], np.uint64)
