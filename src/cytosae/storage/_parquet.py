"""Single-file artifacts in parquet: the manifest's record kept as key-value metadata inside the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cytosae._errors import CytosaeError
from cytosae.storage._atomic import commit_file
from cytosae.storage._manifest import created_by

_KEY = b"cytosae"


def write_table(
    path: Path,
    table: pa.Table,
    *,
    kind: str,
    version: int,
    inputs: dict[str, str] | None = None,
    config: dict[str, Any] | None = None,
    atomic: bool = True,
) -> None:
    """Write a table as a parquet artifact; the same table gives the same bytes.

    `atomic` is false only inside a folder that is itself committed as a whole.
    """
    record = {
        "kind": kind,
        "version": version,
        "created_by": created_by(),
        "inputs": inputs or {},
        "config": config or {},
    }
    metadata = {**(table.schema.metadata or {}), _KEY: json.dumps(record, sort_keys=True).encode()}
    table = table.replace_schema_metadata(metadata)
    if atomic:
        refuse_other_table(path, kind)
        with commit_file(path) as temporary:
            pq.write_table(table, temporary, compression="zstd")
    else:
        pq.write_table(table, path, compression="zstd")


def refuse_other_table(path: Path, kind: str) -> None:
    """Only a table of the same kind may be replaced.

    Raises
    ------
    CytosaeError
        At `path` lies another file.
    """
    if not path.is_file():
        return
    try:
        found = read_parquet_record(path).get("kind")
    except CytosaeError:
        found = None
    if found != kind:
        what = f"an artifact of the kind {found!r}" if found else "another file"
        raise CytosaeError(
            f"{path} is {what}, not a table of the kind {kind!r}, and would be lost; choose another --out."
        )


def is_own_parquet(path: Path | str) -> bool:
    """Whether a file is a parquet artifact of CytoSAE."""
    try:
        return bool(read_parquet_record(path))
    except CytosaeError:
        return False


def read_parquet_record(path: Path | str) -> dict[str, Any]:
    """The record (kind, version, inputs, config) inside a parquet file; empty when it is no artifact of CytoSAE."""
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowException) as error:
        raise CytosaeError(f"{path} cannot be read as parquet ({_first_line(error)}).") from error
    return dict(json.loads(metadata[_KEY])) if _KEY in metadata else {}


def read_table(path: Path | str, kind: str, version: int) -> tuple[pa.Table, dict[str, Any]]:
    """Read a parquet artifact and check its kind and version.

    Raises
    ------
    CytosaeError
        Missing, not parquet, another kind, or written by a newer program.
    """
    path = Path(path)
    if not path.exists():
        raise CytosaeError(f"{path} does not exist; give a file of kind {kind}.")
    record = read_parquet_record(path)
    if record.get("kind") != kind:
        raise CytosaeError(f"{path} is {record.get('kind') or 'a foreign parquet file'}, but {kind} is wanted here.")
    if record["version"] > version:
        raise CytosaeError(
            f"{path} has version {record['version']} of {kind}, this program reads up to {version}; update cytosae."
        )
    try:
        return pq.read_table(path), record
    except (OSError, pa.ArrowException) as error:
        raise CytosaeError(f"{path} cannot be read ({_first_line(error)}); make it again.") from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
