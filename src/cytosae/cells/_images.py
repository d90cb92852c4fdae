"""From a row of the table to the bytes of its image: a file below the root, or a row of an image parquet."""

from __future__ import annotations

import struct
from collections import OrderedDict
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cytosae._errors import CytosaeError
from cytosae.cells._table import BUNDLED_ROOT
from cytosae.storage import hash_bytes

#: Between the name of an image parquet and the row in it, in the column `image`.
ROW_MARK = "#row="


def bundled_path() -> Path:
    """The image parquet of real cells inside the package."""
    return Path(str(files("cytosae.cells") / "bundled" / "cells.parquet"))


class ImageParquet:
    """Rows of a Hugging Face style image parquet (column ``image``: struct of ``bytes`` and ``path``, or binary)."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = pq.ParquetFile(path)
        except (OSError, pa.ArrowException) as error:
            raise CytosaeError(f"{path} cannot be read as parquet; check the file.") from error
        self.path = path
        column = self._file.schema_arrow.field("image").type if "image" in self._file.schema_arrow.names else None
        if column is None or not (
            pa.types.is_struct(column) or pa.types.is_binary(column) or pa.types.is_large_binary(column)
        ):
            raise CytosaeError(
                f"{path} has no column 'image' with image bytes; give an image parquet as Hugging Face datasets writes it."
            )
        self._starts = [0]
        for group in range(self._file.num_row_groups):
            self._starts.append(self._starts[-1] + self._file.metadata.row_group(group).num_rows)
        self._groups: OrderedDict[int, list[Any]] = OrderedDict()

    def __len__(self) -> int:
        return self._starts[-1]

    def frame(self) -> Any:
        """All columns but the image, as a pandas frame."""
        names = [n for n in self._file.schema_arrow.names if n != "image"]
        return self._file.read(columns=names).to_pandas()

    def read(self, row: int) -> tuple[bytes | None, str | None]:
        """Bytes and name of the image in one row."""
        if not 0 <= row < len(self):
            raise CytosaeError(
                f"{self.path} has {len(self)} rows, but row {row} is asked for; make the cells table again."
            )
        group = next(g for g in range(len(self._starts)) if row < self._starts[g + 1])
        if group not in self._groups:
            self._groups[group] = self._file.read_row_group(group, columns=["image"])["image"].to_pylist()
            if len(self._groups) > 2:
                self._groups.popitem(last=False)
        value = self._groups[group][row - self._starts[group]]
        if isinstance(value, dict):
            return value.get("bytes"), value.get("path")
        return value, None


class ImageReader:
    """Reads the images of one table, whichever way they are stored."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._parquets: dict[Path, ImageParquet] = {}

    def path(self, image: str) -> Path:
        """Where an image (or the image parquet that holds it) lies on disk."""
        name = image.partition(ROW_MARK)[0]
        if self.root == BUNDLED_ROOT:
            return bundled_path()
        return Path(self.root) / name

    def read(self, image: str, sha256: str | None = None) -> bytes:
        """The bytes of an image file; checked against `sha256` where given.

        Raises
        ------
        CytosaeError
            The file is gone or has changed since the table was made.
        """
        path, row = self.path(image), image.partition(ROW_MARK)[2]
        if row:
            if path not in self._parquets:
                self._parquets[path] = ImageParquet(path)
            data = self._parquets[path].read(int(row))[0] or b""
        else:
            try:
                data = path.read_bytes()
            except OSError as error:
                raise CytosaeError(
                    f"{path} cannot be read any more ({error.strerror}); run 'cytosae cells' again."
                ) from error
        if sha256 and hash_bytes(data) != sha256:
            raise CytosaeError(f"{image} has changed since the cells table was made; run 'cytosae cells' again.")
        return data


def looks_like_image(head: bytes) -> bool:
    """Whether the first bytes of a file are those of a known image format."""
    if head[:2] == b"BM" and len(head) >= 6:
        return bool(struct.unpack("<I", head[2:6])[0] > 0)
    starts = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\x00", b"MM\x00*", b"GIF8")
    return head.startswith(starts) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
