"""Image files inside a table: parquet shards and the arrow files of Hugging Face ``datasets``."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from cytosae._errors import CytosaeError

#: Between the name of an image parquet and the row in it, in the column `image`.
ROW_MARK = "#row="


def bundled_path() -> Path:
    """The image parquet of real cells inside the package."""
    return Path(str(files("cytosae.cells") / "bundled" / "cells.parquet"))


class ImageStore(Protocol):
    """A table with one image a row."""

    path: Path

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """Type of every column but the image."""

    @property
    def metadata(self) -> dict[bytes, bytes]:
        """Key-value metadata of the schema."""

    def __len__(self) -> int: ...

    def read(self, row: int) -> tuple[bytes | None, str | None]:
        """Bytes and name of the image in one row."""

    def records(self, names: list[str]) -> Iterator[dict[str, Any]]:
        """Row by row, the values of some columns."""


def open_store(path: Path) -> ImageStore:
    """Open a parquet or arrow file of images.

    Raises
    ------
    CytosaeError
        Unreadable, or without a column of image bytes.
    """
    return ImageArrow(path) if path.suffix == ".arrow" else ImageParquet(path)


class ImageParquet:
    """Rows of a Hugging Face style image parquet (column ``image``: struct of ``bytes`` and ``path``, or binary)."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = pq.ParquetFile(path)
        except (OSError, pa.ArrowException) as error:
            raise CytosaeError(f"{path} cannot be read as parquet; check the file.") from error
        self.path = path
        self._schema = self._file.schema_arrow
        self._image = image_column(self._schema, path)
        self._starts = [0]
        for group in range(self._file.num_row_groups):
            self._starts.append(self._starts[-1] + self._file.metadata.row_group(group).num_rows)
        self._groups: OrderedDict[int, list[Any]] = OrderedDict()

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """Type of every column but the image."""
        return {f.name: f.type for f in self._schema if f.name != self._image}

    @property
    def metadata(self) -> dict[bytes, bytes]:
        """Key-value metadata of the schema."""
        return self._schema.metadata or {}

    def frame(self) -> Any:
        """All columns but the image, as a pandas frame."""
        return self._file.read(columns=list(self.columns)).to_pandas()

    def records(self, names: list[str]) -> Iterator[dict[str, Any]]:
        """Row by row, the values of some columns."""
        if not names:
            yield from ({} for _ in range(len(self)))
            return
        for batch in self._file.iter_batches(batch_size=2048, columns=names):
            yield from batch.to_pylist()

    def read(self, row: int) -> tuple[bytes | None, str | None]:
        """Bytes and name of the image in one row."""
        check_row(self.path, row, len(self))
        group = bisect_right(self._starts, row) - 1
        if group not in self._groups:
            self._groups[group] = self._file.read_row_group(group, columns=[self._image])[self._image].to_pylist()
            if len(self._groups) > 2:
                self._groups.popitem(last=False)
        return bytes_and_name(self._groups[group][row - self._starts[group]])


class ImageArrow:
    """Rows of an arrow file as ``Dataset.save_to_disk`` writes it; mapped, not loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            mapped = pa.memory_map(str(path))
            try:
                self._table = pa.ipc.open_stream(mapped).read_all()
            except pa.ArrowInvalid:
                self._table = pa.ipc.open_file(mapped).read_all()
        except (OSError, pa.ArrowException) as error:
            raise CytosaeError(f"{path} cannot be read as an arrow file; check the file.") from error
        self._image = image_column(self._table.schema, path)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @property
    def columns(self) -> dict[str, pa.DataType]:
        """Type of every column but the image."""
        return {f.name: f.type for f in self._table.schema if f.name != self._image}

    @property
    def metadata(self) -> dict[bytes, bytes]:
        """Key-value metadata of the schema."""
        return self._table.schema.metadata or {}

    def records(self, names: list[str]) -> Iterator[dict[str, Any]]:
        """Row by row, the values of some columns."""
        if not names:
            yield from ({} for _ in range(len(self)))
            return
        for batch in self._table.select(names).to_batches(max_chunksize=2048):
            yield from batch.to_pylist()

    def read(self, row: int) -> tuple[bytes | None, str | None]:
        """Bytes and name of the image in one row."""
        check_row(self.path, row, len(self))
        return bytes_and_name(self._table[self._image][row].as_py())


def image_column(schema: pa.Schema, path: Path) -> str:
    """Name of the column that holds the images: ``image``, or the only one of image bytes.

    Raises
    ------
    CytosaeError
        None, or several and none of them called ``image``.
    """
    found = [f.name for f in schema if _holds_images(f.type)]
    if "image" in found and schema.names.count("image") == 1:
        return "image"
    if len(found) != 1:
        many = f"several columns of image bytes ({', '.join(found)})" if found else "no column 'image' with image bytes"
        raise CytosaeError(f"{path} has {many}; give an image parquet as Hugging Face datasets writes it.")
    return str(found[0])


def check_row(path: Path, row: int, n_rows: int) -> None:
    """Refuse a row that a table of images does not have."""
    if not 0 <= row < n_rows:
        raise CytosaeError(f"{path} has {n_rows} rows, but row {row} is asked for; make the cells table again.")


def bytes_and_name(value: Any) -> tuple[bytes | None, str | None]:
    """Bytes and name from a value of the image column."""
    return (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)


def _holds_images(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
