from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cytosae._errors import CytosaeError, UsageError, nearest
from cytosae.cells._table import SCHEMA
from cytosae.cells.layouts._entry import Entry, LayoutOptions, Source, is_web_address, text

#: Columns of a source that mean something to the table; `image` and ``um_per_px`` beside them.
KNOWN = ("label", "patient", "diagnosis", "dataset", "split", "mask")

_FORMULA = ("=", "+", "-", "@", "\t")


def read_manifest_file(source: Path, options: LayoutOptions) -> Source:
    """A table with a column ``image`` (path relative to the table's folder, or absolute), one row a cell.

    CSV, TSV or parquet, read row by row. The columns ``label``, ``patient``, ``diagnosis``, ``dataset``, ``split``,
    ``mask`` and ``um_per_px`` are understood, or mapped by ``options.columns``; all others are kept as they are (with
    ``source_`` before a name that the table of cells needs itself).

    Raises
    ------
    CytosaeError
        Missing, unreadable, without the column ``image``, with a column twice, without rows, with web addresses, or
        with a scale that is no number.
    """
    if not source.is_file():
        raise CytosaeError(f"The manifest {source} does not exist; check the path.")
    rows: _CsvRows | _ParquetRows
    rows = _ParquetRows(source) if source.suffix.lower() == ".parquet" else _CsvRows(source)
    names = rename(rows.columns, options.columns, source)
    if "image" not in names:
        raise CytosaeError(
            f"{source} has no column 'image'{nearest('image', rows.columns) if rows.columns else ''}; "
            "name the column of paths 'image', or say --column image=NAME."
        )
    entries = _Entries(source, rows, names)
    _, n_formulas = entries.check()
    notes = []
    if n_formulas:
        notes.append(
            f"{n_formulas:,} values of {source.name} look like spreadsheet formulas and are kept as plain text"
        )
    types = {n: t for n, t in zip(names, rows.types, strict=True) if n not in (*KNOWN, "image", "um_per_px")}
    return Source(str(source.resolve().parent), entries, "manifest", {}, types, notes)


def rename(
    columns: Sequence[str], mapping: dict[str, str], source: Path, needs: Sequence[str] = ("image",)
) -> list[str]:
    """Names of a source's columns in the table of cells.

    Raises
    ------
    CytosaeError
        A column twice, or mapped and missing.
    UsageError
        A mapping to a column that cannot be set.
    """
    twice = sorted({c for c in columns if columns.count(c) > 1})
    if twice:
        raise CytosaeError(f"{source} has the column {twice[0]!r} twice; keep one.")
    targets = ("image", *KNOWN, "um_per_px")
    for target, name in mapping.items():
        if target not in targets:
            raise UsageError(f"--column cannot set {target!r}{nearest(target, targets)}.")
        if name not in columns:
            raise CytosaeError(
                f"{source} has no column {name!r}{nearest(name, columns)}; mend --column {target}={name}."
            )
    wanted = {name: target for target, name in mapping.items()}
    taken = set(SCHEMA.names) - set(targets)
    found = []
    for name in columns:
        if name in wanted:
            found.append(wanted[name])
        elif name in mapping or name in taken or name.startswith("near_duplicate_group") or name == "header":
            found.append(f"source_{name}")
        else:
            found.append(name)
    clash = sorted({c for c in found if found.count(c) > 1})
    if clash:
        raise CytosaeError(f"{source} would give the column {clash[0]!r} twice; rename one of its columns.")
    return found


def scale(value: Any, where: str) -> float | None:
    """Micrometres per pixel from a manifest's value.

    Raises
    ------
    CytosaeError
        Not a positive number.
    """
    if text(value) is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf:
        raise CytosaeError(f"{where} has um_per_px {str(value)[:40]!r}; give micrometres per pixel, a number above 0.")
    return number


@dataclass(frozen=True)
class _Entries:
    source: Path
    rows: _CsvRows | _ParquetRows
    names: list[str]

    def check(self) -> tuple[int, int]:
        """Number of rows and of values that look like formulas, when every row is in order."""
        place, n_rows, n_formulas = self.names.index("image"), 0, 0
        um_place = self.names.index("um_per_px") if "um_per_px" in self.names else None
        for n_rows, row in enumerate(self.rows, start=1):
            image = text(row[place])
            if image is None:
                raise CytosaeError(f"{self.source} has no image path in data row {n_rows}; fill it or remove the row.")
            if is_web_address(image):
                raise CytosaeError(
                    f"{self.source} names a web address ({image[:200]}); download the images first and give paths."
                )
            if um_place is not None:
                scale(row[um_place], f"{self.source}, data row {n_rows},")
            n_formulas += sum(1 for v in row if isinstance(v, str) and v[:1] in _FORMULA and _is_formula(v))
        if n_rows == 0:
            raise CytosaeError(f"{self.source} has no rows; give a manifest with one row a cell.")
        return n_rows, n_formulas

    def __iter__(self) -> Iterator[Entry]:
        dataset = self.source.resolve().parent.name
        for number, row in enumerate(self.rows, start=1):
            values = dict(zip(self.names, row, strict=True))
            image = str(values.pop("image")).strip()
            um = scale(values.pop("um_per_px", None), f"{self.source}, data row {number},")
            fields = {name: text(values.pop(name, None)) for name in KNOWN}
            fields["dataset"] = fields["dataset"] or dataset
            yield Entry(image=image, um_per_px=um, extra=values, **fields)  # type: ignore[arg-type]


def _is_formula(value: str) -> bool:
    if not value.strip():
        return False
    try:
        float(value)
    except ValueError:
        return True
    return False


@dataclass
class _CsvRows:
    source: Path
    columns: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        with self._open() as file:
            line = file.readline()
        self.separator = "\t" if self.source.suffix.lower() == ".tsv" else ","
        if self.separator == "," and "," not in line:
            self.separator = next((s for s in (";", "\t") if s in line), ",")
        header = next(self._read(), None)
        if header is None:
            raise CytosaeError(f"{self.source} has no rows; give a manifest with one row a cell.")
        self.columns = [name.strip() for name in header]
        self.types = [pa.string()] * len(self.columns)

    def __iter__(self) -> Iterator[list[str | None]]:
        rows, width = self._read(), len(self.columns)
        next(rows, None)
        for number, row in enumerate(rows, start=1):
            if not row:
                continue
            if len(row) != width:
                raise CytosaeError(
                    f"{self.source} has {width} column names but {len(row)} values in data row {number}; "
                    "check the separator and the quotes."
                )
            yield [value or None for value in row]

    def _read(self) -> Iterator[list[str]]:
        try:
            with self._open() as file:
                yield from csv.reader(file, delimiter=self.separator)
        except csv.Error as error:
            raise CytosaeError(f"{self.source} cannot be read as a table ({error}).") from None
        except UnicodeDecodeError:
            raise CytosaeError(f"{self.source} is not UTF-8 text; save it as CSV in UTF-8.") from None

    def _open(self) -> Any:
        try:
            with self.source.open("rb") as file:
                start = file.read(4096)
            if start[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in start:
                raise CytosaeError(f"{self.source} is not UTF-8 text; save it as CSV in UTF-8.")
            file_text = self.source.open(newline="", encoding="utf-8-sig")
            file_text.readline()
            file_text.seek(0)
            return file_text
        except OSError as error:
            raise CytosaeError(f"{self.source} cannot be read ({error.strerror}).") from None
        except UnicodeDecodeError:
            raise CytosaeError(f"{self.source} is not UTF-8 text; save it as CSV in UTF-8.") from None


class _ParquetRows:
    def __init__(self, source: Path) -> None:
        self.source = source
        try:
            self._file = pq.ParquetFile(source)
        except (OSError, pa.ArrowException) as error:
            first = (str(error).splitlines() or ["?"])[0]
            raise CytosaeError(f"{source} cannot be read as a table ({first}).") from None
        schema = self._file.schema_arrow
        self.columns = list(schema.names)
        self.types = [plain_type(f.type) for f in schema]
        if "image" in self.columns and self.columns.count("image") == 1:
            kind = plain_type(schema.field("image").type)
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise CytosaeError(f"{source} holds images, not paths, in the column 'image'; use --layout hf-parquet.")

    def __iter__(self) -> Iterator[list[Any]]:
        try:
            for batch in self._file.iter_batches(batch_size=4096):
                columns = [column.to_pylist() for column in batch.columns]
                yield from (list(row) for row in zip(*columns, strict=True))
        except (OSError, pa.ArrowException) as error:
            first = (str(error).splitlines() or ["?"])[0]
            raise CytosaeError(f"{self.source} cannot be read as a table ({first}).") from None


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type of a column's values: dictionary encoding undone, text where there is no value at all."""
    if pa.types.is_null(kind):
        return pa.string()
    return kind.value_type if pa.types.is_dictionary(kind) else kind
