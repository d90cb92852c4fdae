"""What lies in files instead of memory comes back whole and in the same order."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from cytosae.cells import _same, _spool
from cytosae.cells._parts import PART_ROWS, Parts, table_schema
from cytosae.cells._same import duplicate_groups
from cytosae.cells._spool import RecordFile, merge_runs, sorted_names
from cytosae.cells._thumb import THUMB_BYTES
from cytosae.cells.layouts import open_source
from cytosae.cells.layouts._folder import image_paths


@pytest.mark.parametrize("n", [0, 1, 9, 10, 11, 999])
def test_no_name_is_lost_or_out_of_order(monkeypatch, n) -> None:
    monkeypatch.setattr(_spool, "RUN_NAMES", 10)
    random = np.random.default_rng(n)
    names = [f"{random.integers(0, 500)}ä\U0001f600{'x' * int(random.integers(0, 40))}" for _ in range(n)]
    names += [os.fsdecode(b"\xff\xfe.jpg"), "\ue000.jpg", "\U00010000.jpg"]
    assert list(sorted_names(iter(names))) == sorted(names)


def test_a_large_folder_is_listed_as_a_small_one(monkeypatch, tmp_path: Path) -> None:
    for i in range(57):
        (tmp_path / f"{i * 7 % 57}.jpg").touch()
        (tmp_path / f"{i}.txt").touch()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "0.jpg").touch()
    passed: dict[str, int] = {}
    whole = list(image_paths(tmp_path, passed))
    assert passed == {"not an image file": 57}
    monkeypatch.setattr(_spool, "RUN_NAMES", 8)
    assert list(image_paths(tmp_path)) == whole == [*sorted(f"{i}.jpg" for i in range(57)), "sub/0.jpg"]


def test_the_names_of_a_large_folder_are_not_held(tmp_path: Path) -> None:
    for i in range(12_000):
        (tmp_path / f"{'a long name of a cell ' * 8}{i}.jpg").touch()
    peaks = []
    for run in (12_001, 1000):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_spool, "RUN_NAMES", run)
            tracemalloc.start()
            n = sum(1 for _ in open_source(tmp_path, "auto").entries)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
            assert n == 12_000
    assert peaks[1] < peaks[0] / 3


def test_records_come_back_from_every_place(tmp_path: Path) -> None:
    file = RecordFile.at(tmp_path / "r.bin", "<i8")
    file.append(np.arange(100))
    file.put(np.array([3, 99, 50]), np.array([-3, -99, -50]))
    expected = np.arange(100)
    expected[[3, 99, 50]] *= -1
    assert (file.read(0, 1000) == expected).all()
    for places in ([5, 6, 7], [7, 3, 3, 99], [0], []):
        assert (file.take(np.array(places, np.int64)) == expected[places]).all()
    file.close()


def test_merged_runs_are_one_stable_sorting(tmp_path: Path) -> None:
    kind = np.dtype([("key", "<f4"), ("tie", "<i8"), ("load", "u1", 5)])
    records = np.zeros(1000, kind)
    records["key"], records["tie"] = np.random.default_rng(0).integers(0, 40, 1000), np.arange(1000)
    records["load"] = np.random.default_rng(1).integers(0, 256, (1000, 5))
    source, target = RecordFile.at(tmp_path / "a", kind), RecordFile.at(tmp_path / "b", kind)
    for start in range(0, 1000, 64):
        run = records[start : start + 64]
        source.append(run[np.argsort(run["key"], kind="stable")])
    merge_runs(source, target, 64, "key", "tie")
    expected = records[np.argsort(records["key"], kind="stable")]
    assert target.read(0, 2000).tobytes() == expected.tobytes()


@pytest.mark.parametrize("n_different", [1, 40, 3000, 10**9])
def test_identical_files_are_found_over_many_runs(monkeypatch, tmp_path: Path, n_different) -> None:
    """Against the dense reference: ``numpy.unique`` over all hashes at once."""
    monkeypatch.setattr(_same, "_RUN_PARTS", 1)
    parts = Parts(tmp_path / "work", table_schema({"near_duplicate_group": pa.int64()}))
    files = np.random.default_rng(0).integers(0, n_different, 5 * PART_ROWS + 77)
    hashes = [f"{int(f) * 0x9E3779B97F4A7C15 % 2**64:016x}" + "0" * 48 for f in files]
    blank = dict.fromkeys(parts.schema.names)
    for number, start in enumerate(range(0, len(files), PART_ROWS)):
        some = range(start, min(start + PART_ROWS, len(files)))
        rows = [{**blank, "cell_id": i, "sha256": None if i % 50 == 0 else hashes[i]} for i in some]
        parts.write(number, rows, [np.zeros(THUMB_BYTES, np.uint8)] * len(rows))
    names = np.array([f"own {i}" if i % 50 == 0 else h for i, h in enumerate(hashes)])
    _, first, place = np.unique(names, return_index=True, return_inverse=True)
    for search in (False, True):  # blank thumbs resemble nothing, so the search changes nothing
        groups = duplicate_groups(parts, search=search)
        found = np.concatenate([groups(s, min(s + 1000, len(files))) for s in range(0, len(files), 1000)])
        assert (found == first[place]).all()
