"""Lists of one entry a cell, kept in files: what grows with the number of cells does not lie in memory."""

from __future__ import annotations

import heapq
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

#: Names that are sorted in memory; longer lists are sorted in runs of so many, which are merged while they are read.
RUN_NAMES = 4096

#: Bytes or records of a run that are read at a time while runs are merged.
_CHUNK_BYTES, _CHUNK_RECORDS = 8192, 64

Records = npt.NDArray[Any]


def sorted_names(names: Iterable[str]) -> Iterator[str]:
    """The names in the order of `sorted`, of any number; `names` is read to its end before the first is given."""
    run: list[str] = []
    runs: list[tuple[int, int]] = []
    with tempfile.TemporaryFile() as file:
        for name in names:
            run.append(name)
            if len(run) == RUN_NAMES:
                runs.append(_write_run(file, run))
                run = []
        run.sort()
        yield from heapq.merge(run, *(_read_run(file, *place) for place in runs)) if runs else run


def _write_run(file: Any, names: list[str]) -> tuple[int, int]:
    start = file.seek(0, os.SEEK_END)
    file.writelines(name.encode("utf-8", "surrogateescape") + b"\0" for name in sorted(names))
    file.flush()
    return start, file.tell()


def _read_run(file: Any, start: int, stop: int) -> Iterator[str]:
    rest = b""
    while start < stop:
        data = os.pread(file.fileno(), min(_CHUNK_BYTES, stop - start), start)
        start += len(data)
        *whole, rest = (rest + data).split(b"\0")
        yield from (name.decode("utf-8", "surrogateescape") for name in whole)


class RecordFile:
    """Records of one fixed size in a file: appended, read by place, overwritten by place."""

    def __init__(self, file: BinaryIO, kind: npt.DTypeLike) -> None:
        self._file, self.kind, self._n = file, np.dtype(kind), 0

    @classmethod
    def at(cls, path: Path, kind: npt.DTypeLike) -> RecordFile:
        """An empty file of records at a path; what stood there is gone."""
        return cls(path.open("w+b", buffering=0), kind)

    def __len__(self) -> int:
        return self._n

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def append(self, records: Records) -> None:
        """Add records at the end."""
        data = np.ascontiguousarray(records, self.kind)
        self._write(data, self._n)
        self._n += len(data)

    def read(self, start: int, stop: int) -> Records:
        """The records from `start` up to `stop` (or the end)."""
        stop = min(stop, self._n)
        data = os.pread(self._file.fileno(), max(stop - start, 0) * self.kind.itemsize, start * self.kind.itemsize)
        return np.frombuffer(data, self.kind)

    def take(self, places: npt.NDArray[np.int64]) -> Records:
        """The records at some places."""
        n = len(places)
        if n and places[-1] - places[0] == n - 1 and (np.diff(places) == 1).all():
            return self.read(int(places[0]), int(places[-1]) + 1)
        size, number = self.kind.itemsize, self._file.fileno()
        return np.frombuffer(b"".join(os.pread(number, size, p * size) for p in places.tolist()), self.kind)

    def put(self, places: npt.NDArray[np.int64], records: Records) -> None:
        """Overwrite the records at some places."""
        for place, record in zip(places.tolist(), np.ascontiguousarray(records, self.kind), strict=True):
            self._write(record, place)

    def _write(self, data: Any, place: int) -> None:
        view, at = memoryview(data.tobytes()), place * self.kind.itemsize
        while view:
            n = os.pwrite(self._file.fileno(), view, at)
            view, at = view[n:], at + n


def merge_runs(source: RecordFile, target: RecordFile, run: int, key: str, tie: str) -> None:
    """Sort a file whose runs of `run` records each are sorted by `key`, then `tie`; the result goes to `target`."""

    def records(start: int, stop: int) -> Iterator[tuple[Any, int, bytes]]:
        for at in range(start, stop, _CHUNK_RECORDS):
            part = source.read(at, min(at + _CHUNK_RECORDS, stop))
            data, size = part.tobytes(), part.itemsize
            pieces = (data[i * size : (i + 1) * size] for i in range(len(part)))
            yield from zip(part[key].tolist(), part[tie].tolist(), pieces, strict=True)

    n, waiting = len(source), list[bytes]()
    for _, _, piece in heapq.merge(*(records(start, min(start + run, n)) for start in range(0, n, run))):
        waiting.append(piece)
        if len(waiting) == 1024:
            target.append(np.frombuffer(b"".join(waiting), source.kind))
            waiting = []
    target.append(np.frombuffer(b"".join(waiting), source.kind))
