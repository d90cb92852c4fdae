"""From entries to a checked `cells.parquet`: every image is opened once, and what cannot be read is quarantined."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from cytosae._errors import CytosaeError, UsageError
from cytosae._progress import Meter
from cytosae._version import __version__
from cytosae.cells._images import ImageReader
from cytosae.cells._inspect import Cut, Inspector
from cytosae.cells._parts import PART_ROWS, Parts, TableWriter, table_schema
from cytosae.cells._same import duplicate_groups
from cytosae.cells._table import KIND, Cells, read_cells
from cytosae.cells.layouts import LayoutOptions, Source, open_source
from cytosae.storage import refuse_other_table, working_folder

#: Columns that every table built from images carries behind those of the source.
OWN = {"file_header": pa.string(), "file_bytes": pa.int64(), "near_duplicate_group": pa.int64()}

#: So many missing files at the beginning mean a wrong folder, not a gap.
_HOPELESS = 2 * PART_ROWS


@dataclass(frozen=True)
class Built:
    """What a build has to say beside its table.

    Attributes
    ----------
    path
        The table.
    n_cells, n_quarantined
        Rows, and those whose image cannot be read whole.
    first
        Image and reason of the first quarantined cell.
    passed_over
        What the layout did not take, and how often.
    notes
        What the person should know, a sentence each.
    """

    path: Path
    n_cells: int
    n_quarantined: int
    first: str
    passed_over: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def build_cells(
    source: Path | str, out: Path | str, *, layout: str = "auto", on_error: str = "quarantine", **options: Any
) -> Cells:
    """Open every image of a source and write the table of its cells.

    Parameters
    ----------
    source
        A folder of class folders, a manifest (CSV, TSV, parquet), an image parquet, or a known data set.
    out
        The table to write.
    layout
        A name of `LAYOUTS`, or ``auto``.
    on_error
        ``quarantine`` keeps a cell whose image cannot be read whole, with the reason; ``fail`` stops there.
    options
        Further options of `build_table`.

    Raises
    ------
    CytosaeError
        The source has no readable image, or (``fail``) one of them is unreadable.
    """
    return read_cells(build_table(source, out, layout=layout, on_error=on_error, **options).path)


def build_table(
    source: Path | str,
    out: Path | str,
    *,
    layout: str = "auto",
    on_error: str = "quarantine",
    options: LayoutOptions | None = None,
    cut: Cut | None = None,
    near_duplicates: bool = True,
) -> Built:
    """As `build_cells`, in constant memory: the table is not read back.

    Rows are kept in parts beside `out`, so that the same call goes on after a kill and ends in the same bytes.

    Parameters
    ----------
    options
        What the person says about the source.
    cut
        How cells are cut out.
    near_duplicates
        Whether to search them; without, every cell is its own `near_duplicate_group`.

    Raises
    ------
    CytosaeError, UsageError
        As `build_cells`.
    """
    if on_error not in ("quarantine", "fail"):
        raise UsageError(f"--on-error {on_error!r} is unknown; use quarantine or fail.")
    source, out, cut, options = Path(source), Path(out), cut or Cut(), options or LayoutOptions()
    if out.is_dir():
        raise UsageError(f"{out} is a folder; give --out a file, such as {out / 'cells.parquet'}.")
    refuse_other_table(out, KIND)
    found = open_source(source, layout, options)
    n, listing = _listing(found)
    config = {"layout": found.layout, "on_error": on_error, "passed_over": dict(sorted(found.passed_over.items()))}
    if cut != Cut():
        config["cut"] = asdict(cut)
    padded = {"padded_share": pa.float64()} if cut.um is not None or found.layout == "fields" else {}
    schema = table_schema({**found.extra_types, **padded, **OWN})
    work = {**config, "near_duplicates": near_duplicates, "program": __version__, "columns": schema.names}
    folder = working_folder(out, kind=KIND, inputs={"listing": listing, "root": found.root}, config=work)
    parts = Parts(folder, schema)
    built = _inspect_all(found, parts, n, cut, fail=on_error == "fail", out=out, source=source)
    _number_groups(parts, out, found.root, config, near_duplicates)
    parts.remove()
    return built


def _listing(found: Source) -> tuple[int, str]:
    """Number of entries, and the identity of what they name: their text, and size and time of every file."""
    digest, n, files, reader = hashlib.sha256(), 0, dict[str, str](), ImageReader(found.root)
    for entry in found.entries:
        n += 1
        path = os.fspath(reader.path(entry.image))
        stamp = files.get(path)
        if stamp is None:
            if len(files) > 64:
                files.clear()
            try:
                status = os.stat(path)
                stamp = files[path] = f"{status.st_size},{status.st_mtime_ns}"
            except (OSError, ValueError):
                stamp = files[path] = "missing"
        fields = (entry.image, entry.label, entry.patient, entry.diagnosis, entry.dataset, entry.split, entry.mask,
                  entry.um_per_px, entry.box, entry.problem, *entry.extra.values(), stamp)  # fmt: skip
        digest.update(repr(fields).encode("utf-8", "surrogateescape"))
    return n, digest.hexdigest()


def _inspect_all(found: Source, parts: Parts, n: int, cut: Cut, *, fail: bool, out: Path, source: Path) -> Built:
    """Write all parts that are not yet there, and count."""
    inspector, n_done, n_bad, first = Inspector(found.root, cut), parts.n_done(), 0, ""
    bare = {"near_duplicate_group": None, "cell_id": None, **dict.fromkeys(found.extra_types)}
    with Meter(n, "cells", "images") as meter:
        for number, batch in enumerate(_batches(iter(found.entries))):
            if number < n_done:
                table = parts.read(number, ["image", "status", "reason"])
                statuses = list(zip(*(c.to_pylist() for c in table.columns), strict=True))
            else:
                made = [inspector.row(entry) for entry in batch]
                rows = [{**bare, **row, "cell_id": number * PART_ROWS + i} for i, (row, _) in enumerate(made)]
                bad = next((row for row in rows if fail and row["status"] != "ok"), None)
                if bad is not None:
                    parts.remove()
                    raise CytosaeError(
                        f"{bad['image']}: {bad['reason']}; mend or remove it, or use --on-error quarantine."
                    )
                parts.write(number, rows, [thumb for _, thumb in made])
                statuses = [(row["image"], row["status"], row["reason"]) for row in rows]
            for image, status, reason in statuses:
                if status != "ok":
                    n_bad += 1
                    first = first or f"{image}, {reason}"
            meter.add(len(batch))
            n_seen = min((number + 1) * PART_ROWS, n)
            if n_bad == n_seen and (n_seen == n or (n_seen >= _HOPELESS and "cannot be opened" in first)):
                parts.remove()
                which = f"the {n}" if n_seen == n else f"the first {n_seen:,}"
                raise CytosaeError(
                    f"None of {which} images of {source} can be read (the first: {first}); "
                    f"paths are taken relative to {found.root}."
                )
    return Built(out, n, n_bad, first, dict(found.passed_over), list(found.notes))


def _batches(entries: Iterator[Any]) -> Iterator[list[Any]]:
    while batch := list(islice(entries, PART_ROWS)):
        yield batch


def _number_groups(parts: Parts, out: Path, root: str, config: dict[str, Any], search: bool) -> None:
    """Find the near duplicates and write the table."""
    groups = duplicate_groups(parts, search=search)
    place = parts.schema.get_field_index("near_duplicate_group")
    with TableWriter(out, parts.schema, root=root, config=config, inputs={}) as writer:
        start = 0
        for table in parts:
            column = pa.array(groups(start, start + table.num_rows), pa.int64())
            writer.add(table.set_column(place, parts.schema.field(place), column))
            start += table.num_rows
