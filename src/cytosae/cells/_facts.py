"""The columns of a table that the audit looks at, in a temporary database on disk: memory does not grow with the cells."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

#: Columns the audit looks at; images, masks and whatever else a table carries are not read.
COLUMNS = ("cell_id", "sha256", "width", "height", "mode", "um_per_px", "label", "patient", "diagnosis", "dataset",
           "split", "status", "reason", "file_header", "file_bytes", "near_duplicate_group", "source_field",
           "padded_share", "folder_disagrees")  # fmt: skip

_BATCH = 2048


class Facts:
    """The table ``cells`` with `COLUMNS` (null where the source lacks one) and the view ``ok`` of the usable cells.

    The hash of a file is cut to 60 bits.
    """

    def __init__(self, batches: Iterable[pa.RecordBatch], names: Iterable[str]) -> None:
        self.names = {name for name in names if name in COLUMNS}
        self._base = sqlite3.connect("")  # a file of its own, removed by the system when it is closed
        for pragma in ("cache_size = -1024", "temp_store = 1", "journal_mode = OFF", "synchronous = OFF"):
            self._base.execute(f"PRAGMA {pragma}")
        self._base.execute(f"CREATE TABLE cells ({', '.join(COLUMNS)})")
        self._base.execute("CREATE VIEW ok AS SELECT rowid AS row, * FROM cells WHERE status = 'ok'")
        marks = ", ".join("?" * len(COLUMNS))
        for batch in batches:
            columns = [self._values(batch, name) for name in COLUMNS]
            self._base.executemany(f"INSERT INTO cells VALUES ({marks})", zip(*columns, strict=True))

    @classmethod
    def of_table(cls, path: Path) -> Facts:
        """Those of a `cells.parquet`."""
        names = [name for name in pq.read_schema(path).names if name in COLUMNS]
        with pq.ParquetFile(path, pre_buffer=False) as file:
            return cls(file.iter_batches(_BATCH, columns=names), names)

    def rows(self, query: str, *values: Any) -> Iterable[tuple[Any, ...]]:
        """The rows that a query gives, one after the other."""
        return self._base.execute(query, values)

    def one(self, query: str, *values: Any) -> Any:
        """The first value of the first row that a query gives."""
        return self._base.execute(query, values).fetchone()[0]

    def close(self) -> None:
        """Remove the database."""
        self._base.close()

    @staticmethod
    def _values(batch: pa.RecordBatch, name: str) -> list[Any]:
        if name not in batch.schema.names:
            return ["ok" if name == "status" else None] * batch.num_rows
        values: list[Any] = batch.column(name).to_pylist()
        if name == "sha256":
            return [int((v or "0")[:15], 16) for v in values]
        # a source may bring a column of such a name and of any type
        return values if _is_plain(batch.schema.field(name).type) else [None if v is None else str(v) for v in values]


def _is_plain(kind: pa.DataType) -> bool:
    known = (pa.types.is_string, pa.types.is_floating, pa.types.is_signed_integer)
    return any(test(kind) for test in known)
