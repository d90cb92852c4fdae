"""Names that people give to concepts: a table beside the index, which itself never changes."""

from __future__ import annotations

import datetime
from pathlib import Path

import pandas as pd
import pyarrow as pa

from cytosae._errors import CytosaeError, UsageError
from cytosae.concepts._index import ConceptIndex
from cytosae.storage import read_table, write_table

KIND, VERSION = "names", 1
SCHEMA = pa.schema(
    [("latent", pa.int64()), ("name", pa.string()), ("who", pa.string()), ("when", pa.string()), ("note", pa.string())]
)


def name_concept(
    path: Path | str, index: ConceptIndex, latent: int, name: str, who: str, *, note: str = "", when: str | None = None
) -> None:
    """Add a name to `names.parquet`; earlier names of the concept stay in the table, the last one counts.

    Parameters
    ----------
    path
        The table; made where there is none.
    index
        The index on whose exemplars the name rests; the table carries its hash.
    latent
        Which concept.
    name, who, note
        What it is called, by whom, and why. An empty name takes the name away.
    when
        ISO time; now (UTC) where None.

    Raises
    ------
    UsageError
        No such concept, or no one who says so.
    CytosaeError
        The table belongs to another index.
    """
    if not 0 <= latent < len(index.concepts):
        raise UsageError(f"There is no concept {latent}; the dictionary has 0 to {len(index.concepts) - 1}.")
    if not who.strip():
        raise UsageError("A name needs someone who gave it; say who.")
    path = Path(path)
    rows = _rows(path, index) if path.exists() else []
    now = when or datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    rows.append({"latent": latent, "name": name.strip(), "who": who.strip(), "when": now, "note": note.strip()})
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    write_table(path, table, kind=KIND, version=VERSION, inputs={"index": index.hash})


def read_names(path: Path | str, index: ConceptIndex) -> pd.DataFrame:
    """The last name of every concept that has one: ``latent``, ``name``, ``who``, ``when``, ``note``.

    Raises
    ------
    CytosaeError
        The table belongs to another index.
    """
    frame = pa.Table.from_pylist(_rows(Path(path), index), schema=SCHEMA).to_pandas()
    last = frame.drop_duplicates("latent", keep="last").sort_values("latent", ignore_index=True)
    return last[last["name"] != ""].reset_index(drop=True)


def named_concepts(index: ConceptIndex, path: Path | str | None = None) -> pd.DataFrame:
    """The concept table with ``name``, ``named_by`` and ``named_when`` joined on; null where a concept has no name.

    `path` is ``names.parquet`` beside the index where None; without that file nobody has named anything yet.
    """
    path = Path(path) if path is not None else index.folder.parent / "names.parquet"
    names = read_names(path, index) if path.exists() else pa.Table.from_pylist([], schema=SCHEMA).to_pandas()
    names = names.rename(columns={"who": "named_by", "when": "named_when"})[
        ["latent", "name", "named_by", "named_when"]
    ]
    return index.concepts.merge(names, on="latent", how="left", validate="one_to_one")


def _rows(path: Path, index: ConceptIndex) -> list[dict[str, object]]:
    table, record = read_table(path, KIND, VERSION)
    if record.get("inputs", {}).get("index") != index.hash:
        raise CytosaeError(
            f"{path} names concepts of another index than {index.folder}; a name rests on the exemplars that were seen."
        )
    return list(table.to_pylist())
