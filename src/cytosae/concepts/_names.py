"""Names that people give to concepts: a table beside the index, which itself never changes."""

from __future__ import annotations

import csv
import datetime
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa

from cytosae._errors import CytosaeError, UsageError, nearest
from cytosae._progress import say
from cytosae.concepts._index import ConceptIndex
from cytosae.storage import read_table, write_table

KIND, VERSION = "names", 1
SCHEMA = pa.schema(
    [("latent", pa.int64()), ("name", pa.string()), ("who", pa.string()), ("when", pa.string()), ("note", pa.string())]
)


@dataclass(frozen=True)
class Name:
    """What someone calls a concept, and why; an empty name takes the name away. `when`: ISO time; now (UTC) where empty."""

    latent: int
    name: str
    who: str
    note: str = ""
    when: str = ""


def names_path(index: ConceptIndex) -> Path:
    """``names.parquet`` beside an index."""
    return index.folder.resolve().parent / "names.parquet"


def add_names(path: Path | str, index: ConceptIndex, names: Sequence[Name]) -> None:
    """Add names to `names.parquet`, all or none; earlier names of a concept stay in the table, the last one counts.

    Parameters
    ----------
    path
        The table; made where there is none.
    index
        The index on whose exemplars the names rest; the table carries its hash.
    names
        In the order in which they were given.

    Raises
    ------
    UsageError
        No such concept, no one who says so, or a time that is none.
    CytosaeError
        The table belongs to another index.
    """
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    for name in names:
        if not 0 <= name.latent < len(index.concepts):
            raise UsageError(f"There is no concept {name.latent}; the dictionary has 0 to {len(index.concepts) - 1}.")
        if not name.who.strip():
            raise UsageError(f"The name of concept {name.latent} needs someone who gave it; say who.")
        _check_time(name.when or now)
    path = Path(path)
    rows = _rows(path, index) if path.exists() else []
    rows += [
        {"latent": n.latent, "name": _line(n.name), "who": _line(n.who), "when": n.when or now, "note": _line(n.note)}
        for n in names
    ]
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    write_table(path, table, kind=KIND, version=VERSION, inputs={"index": index.hash})


def read_name_list(path: Path | str, who: str = "") -> list[Name]:
    """Names from a CSV file with the columns ``latent`` and ``name``, and perhaps ``who``, ``when``, ``note``.

    Parameters
    ----------
    path
        UTF-8, with a header; `name_list` writes such a file.
    who
        Who gave the names whose row does not say it.

    Raises
    ------
    CytosaeError
        The file cannot be read, lacks a column, has one that names do not have, or a row's concept is no number.
    """
    path = Path(path)
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise CytosaeError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    except UnicodeDecodeError as error:
        raise CytosaeError(f"{path} is not a CSV file in UTF-8; save it as one.") from error
    reader = csv.DictReader(io.StringIO(text), strict=True, restkey="")
    try:
        header, rows = reader.fieldnames or [], [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise CytosaeError(f"{path}, line {reader.line_num}: {error}; mend the CSV file.") from error
    for column in header:
        if column not in SCHEMA.names:
            raise CytosaeError(
                f"{path} has a column {column!r}, which names do not have{nearest(column, SCHEMA.names)}."
            )
    for column in ("latent", "name"):
        if column not in header:
            raise CytosaeError(
                f"{path} has no column {column!r}; it needs latent and name, and may have who, when and note."
            )
    names = []
    for line, row in rows:
        if "" in row or None in row.values():
            raise CytosaeError(f"{path}, line {line} has not {len(header)} values, as the header has; mend it.")
        try:
            latent = int(row["latent"])
        except ValueError as error:
            raise CytosaeError(
                f"{path}, line {line}: {row['latent']!r} is not the number of a concept; mend it."
            ) from error
        names.append(Name(latent, row["name"], row.get("who") or who, row.get("note", ""), row.get("when", "")))
    return names


def name_list(names: pd.DataFrame) -> str:
    """Names as CSV, as `read_name_list` takes them."""
    return str(names[SCHEMA.names].to_csv(index=False, lineterminator="\n"))


def name_concept(
    path: Path | str, index: ConceptIndex, latent: int, name: str, who: str, *, note: str = "", when: str | None = None
) -> None:
    """Add one name; see `add_names`."""
    add_names(path, index, [Name(latent, name, who, note, when or "")])


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

    `path` is ``names.parquet`` beside the index where None; without that file nobody has named anything yet, and names of
    another index beside it are left out, with a line that says so.

    Raises
    ------
    CytosaeError
        The table given belongs to another index.
    """
    names = pa.Table.from_pylist([], schema=SCHEMA).to_pandas()
    beside = names_path(index)
    if path is not None:
        names = read_names(path, index)
    elif beside.exists() and _index_of(beside) == index.hash:
        names = read_names(beside, index)
    elif beside.exists():
        say(f"names: {beside} is of another index than {index.folder}, so its names are not shown")
    names = names.rename(columns={"who": "named_by", "when": "named_when"})[
        ["latent", "name", "named_by", "named_when"]
    ]
    return index.concepts.merge(names, on="latent", how="left", validate="one_to_one")


def _index_of(path: Path) -> str | None:
    """Hash of the index that a table of names belongs to."""
    found = read_table(path, KIND, VERSION)[1].get("inputs", {}).get("index")
    return str(found) if found else None


def _line(text: str) -> str:
    return " ".join(text.split())


def _check_time(when: str) -> None:
    try:
        datetime.datetime.fromisoformat(when)
    except ValueError as error:
        raise UsageError(f"{when!r} is not a time; write it as 2026-01-31T12:00:00+00:00.") from error


def _rows(path: Path, index: ConceptIndex) -> list[dict[str, object]]:
    table, record = read_table(path, KIND, VERSION)
    if record.get("inputs", {}).get("index") != index.hash:
        raise CytosaeError(
            f"{path} names concepts of another index than {index.folder}; a name rests on the exemplars that were seen."
        )
    return list(table.to_pylist())
