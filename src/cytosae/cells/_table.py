"""`cells.parquet`: one row a cell. The schema, reading and checking, and the selection of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from cytosae._errors import CytosaeError, UsageError, nearest
from cytosae.storage import artifact_hash, read_table, write_table

KIND, VERSION = "cells", 1

#: Root of cells that live in the image parquet inside the package.
BUNDLED_ROOT = "cytosae:bundled"

SCHEMA = pa.schema([
    ("cell_id", pa.int64()),
    ("image", pa.string()),
    ("sha256", pa.string()),
    ("width", pa.int32()),
    ("height", pa.int32()),
    ("mode", pa.string()),
    ("um_per_px", pa.float64()),
    ("label", pa.string()),
    ("patient", pa.string()),
    ("diagnosis", pa.string()),
    ("dataset", pa.string()),
    ("split", pa.string()),
    ("mask", pa.string()),
    ("status", pa.string()),
    ("reason", pa.string()),
])  # fmt: skip


@dataclass(frozen=True)
class Cells:
    """A checked table of cells.

    Attributes
    ----------
    frame
        One row a cell, sorted by ``cell_id``; the columns of `SCHEMA`, then those the source brought.
    root
        Folder to which relative image paths refer, or ``cytosae:bundled``.
    hash
        sha256 of the file the table was read from; empty for a table in memory.
    """

    frame: pd.DataFrame
    root: str
    hash: str = ""

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def ok(self) -> pd.DataFrame:
        """The rows that are not quarantined."""
        return self.frame[self.frame["status"] == "ok"]

    @property
    def n_quarantined(self) -> int:
        """Number of cells whose image cannot be read whole."""
        return int((self.frame["status"] != "ok").sum())


def read_cells(path: Path | str) -> Cells:
    """Read a `cells.parquet`.

    Raises
    ------
    CytosaeError
        Missing, no such table, a column missing, or a ``cell_id`` twice.
    """
    path = Path(path)
    if path.is_dir() and (path / "cells.parquet").exists():
        path = path / "cells.parquet"
    table, record = read_table(path, KIND, VERSION)
    missing = [name for name in SCHEMA.names if name not in table.column_names]
    if missing:
        raise CytosaeError(f"{path} lacks the column {missing[0]!r}; make it again with 'cytosae cells'.")
    frame = table.to_pandas().sort_values("cell_id", kind="stable").reset_index(drop=True)
    if frame["cell_id"].duplicated().any():
        raise CytosaeError(f"{path} has a cell_id twice; merge tables with 'cytosae cells merge'.")
    return Cells(frame, str(record["config"].get("root", path.parent)), artifact_hash(path))


def write_cells(path: Path, frame: pd.DataFrame, *, root: str, inputs: dict[str, str], config: dict[str, Any]) -> None:
    """Write a `cells.parquet` from a frame with at least the columns of `SCHEMA`."""
    extra = [name for name in frame.columns if name not in SCHEMA.names]
    columns = [pa.array(frame[f.name], type=f.type, from_pandas=True) for f in SCHEMA]
    columns += [pa.array(frame[name], from_pandas=True) for name in extra]
    table = pa.Table.from_arrays(columns, names=[*SCHEMA.names, *extra])
    write_table(path, table, kind=KIND, version=VERSION, inputs=inputs, config={**config, "root": root})


def select(cells: Cells, where: Sequence[str]) -> pd.DataFrame:
    """Rows that are not quarantined and fulfil every ``column=value[,value...]`` (``!=`` for its contrary).

    Raises
    ------
    UsageError
        A condition of another form, an unknown column, or nothing left.
    """
    frame = cells.ok
    for condition in where:
        name, sign, value = condition.partition("=")
        if not sign or not name:
            raise UsageError(f"--where {condition!r} is not of the form column=value.")
        negated, name = name.endswith("!"), name.removesuffix("!").strip()
        if name not in frame.columns:
            raise UsageError(f"The cells have no column {name!r}{nearest(name, frame.columns)}.")
        hit = frame[name].astype("string").isin([v.strip() for v in value.split(",")]).fillna(False)
        frame = frame[~hit if negated else hit]
    if frame.empty:
        raise UsageError(
            f"No usable cell fulfils {' and '.join(where) or 'the selection'}; look at the table's columns and values."
        )
    return frame


def select_any(cells: Cells, wheres: Sequence[Sequence[str]]) -> pd.DataFrame:
    """Rows, in the order of the table, that fulfil all conditions of at least one of several lists; errors as in `select`."""
    chosen = pd.concat([select(cells, where)["cell_id"] for where in wheres])
    return cells.ok[cells.ok["cell_id"].isin(chosen)].reset_index(drop=True)
