"""A table written in parts of a thousand rows, so that memory stays constant and a killed run goes on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cytosae._errors import CytosaeError
from cytosae.cells._table import KIND, SCHEMA, VERSION
from cytosae.cells._thumb import THUMB_BYTES
from cytosae.storage import commit_file, write_table

#: Entries in a part, and rows in a row group of the table.
PART_ROWS, GROUP_ROWS = 1024, 16_384

_THUMB = "thumb"


class Parts:
    """The parts of one table in its working folder, each whole or absent."""

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        self.folder, self.schema = folder, schema
        self._with_thumb = schema.append(pa.field(_THUMB, pa.binary(THUMB_BYTES)))
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CytosaeError(
                f"Cannot write {folder.parent} ({error.strerror}); choose another --out, in a folder where you may write."
            ) from None

    def path(self, number: int) -> Path:
        """Where a part lies."""
        return self.folder / f"part-{number:06d}.parquet"

    def n_done(self) -> int:
        """Number of parts that are written, from the first one without a gap."""
        number = 0
        while self.path(number).is_file():
            number += 1
        return number

    def write(self, number: int, rows: list[dict[str, Any]], thumbs: list[npt.NDArray[np.uint8]]) -> None:
        """Write one part."""
        columns = [pa.array([row[f.name] for row in rows], type=f.type) for f in self.schema]
        columns.append(pa.array([t.tobytes() for t in thumbs], type=pa.binary(THUMB_BYTES)))
        with commit_file(self.path(number)) as temporary:
            pq.write_table(pa.Table.from_arrays(columns, schema=self._with_thumb), temporary, compression="lz4")

    def read(self, number: int, columns: list[str] | None = None) -> pa.Table:
        """A part, without its thumbs."""
        with pq.ParquetFile(self.path(number)) as file:
            return file.read(columns=columns or self.schema.names, use_threads=False)

    def thumbs(self, number: int) -> npt.NDArray[np.uint8]:
        """The thumbs of a part: uint8 ``[rows, THUMB_BYTES]``."""
        with pq.ParquetFile(self.path(number)) as file:
            column = file.read(columns=[_THUMB], use_threads=False)[_THUMB].combine_chunks()
        buffer = column.buffers()[1]
        return np.frombuffer(buffer, np.uint8, len(column) * THUMB_BYTES).reshape(-1, THUMB_BYTES)

    def __iter__(self) -> Iterator[pa.Table]:
        for number in range(self.n_done()):
            yield self.read(number)

    def remove(self) -> None:
        """Remove the working folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


class TableWriter:
    """Writes a `cells.parquet` row group by row group, atomically: ``with TableWriter(...) as writer: writer.add(table)``."""

    def __init__(
        self, target: Path, schema: pa.Schema, *, root: str, config: dict[str, Any], inputs: dict[str, str]
    ) -> None:
        self._target, self._commit = target, commit_file(target)
        self._schema, self._waiting, self._n_waiting = schema, [], 0
        self._config, self._inputs = {**config, "root": root}, inputs

    _waiting: list[pa.Table]

    def __enter__(self) -> TableWriter:
        temporary = self._commit.__enter__()
        try:
            write_table(temporary, self._schema.empty_table(), kind=KIND, version=VERSION, inputs=self._inputs,
                        config=self._config, atomic=False)  # fmt: skip
            self._schema = pq.read_schema(temporary)
            self._writer = pq.ParquetWriter(temporary, self._schema, compression="zstd")
        except BaseException as error:
            if not self._commit.__exit__(type(error), error, error.__traceback__):
                raise
        return self

    def add(self, table: pa.Table) -> None:
        """Add rows."""
        self._waiting.append(table)
        self._n_waiting += table.num_rows
        if self._n_waiting >= GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            table = pa.concat_tables([t.replace_schema_metadata(self._schema.metadata) for t in self._waiting])
            self._waiting = []
            self._writer.write_table(table, row_group_size=GROUP_ROWS)
            del table
            pa.default_memory_pool().release_unused()  # else it stays with the process until the end
        self._waiting, self._n_waiting = [], 0

    def __exit__(self, *exc: Any) -> None:
        try:
            if exc[0] is None:
                self._flush()
            self._writer.close()
        except BaseException as error:
            self._commit.__exit__(type(error), error, error.__traceback__)
            raise
        self._commit.__exit__(*exc)


def table_schema(extra: dict[str, pa.DataType]) -> pa.Schema:
    """The schema of a table with further columns behind the ones every table has.

    Raises
    ------
    CytosaeError
        A further column has the name of one of those.
    """
    for name in extra:
        if name in SCHEMA.names:
            raise CytosaeError(f"A further column cannot be called {name!r}; rename it.")
    return pa.schema([*SCHEMA, *(pa.field(name, kind) for name, kind in extra.items())])
