"""`cells.html`: the audit as one self-contained page."""

from __future__ import annotations

import base64
import io
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from cytosae._errors import CytosaeError
from cytosae._version import __version__
from cytosae.cells._audit import LISTED, NO_LABEL, Audit
from cytosae.cells._decode import UnreadableImageError, decode_image
from cytosae.cells._images import ImageReader
from cytosae.storage import commit_file, read_parquet_record

#: Pictures a label, labels with pictures, and the side of a picture in pixels.
_PER_LABEL, _LABELS, _SIDE = 8, 24, 72

#: Rows of a list of counts before the rest is summed up.
_ROWS = 14

#: Quarantined files that are named.
_QUARANTINED = 40


def write_page(audit: Audit, table: Path | str, page: Path | str, *, notes: list[str] | None = None,
               passed_over: dict[str, int] | None = None) -> None:  # fmt: skip
    """Write the audit of a table as one HTML page (no script, no address, prints, fits a phone).

    Parameters
    ----------
    audit
        The findings.
    table
        The `cells.parquet`; its images are read for the small pictures.
    page
        The file to write.
    notes, passed_over
        What the build said.
    """
    import jinja2

    pictures = _Pictures(Path(table))
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
                                     lstrip_blocks=True)  # fmt: skip
    environment.filters["n"] = lambda value: f"{value:,}"
    environment.filters["pct"] = lambda value: f"{value:.0%}"
    template = environment.from_string((files("cytosae.cells") / "cells.html.j2").read_text("utf-8"))
    text = template.render(
        audit=audit, title=Path(table).name, version=__version__, rows=_ROWS, listed=LISTED,
        strip=pictures.strip, names=pictures.names, examples=pictures.examples(audit), quarantined=pictures.quarantined(), notes=notes or [], passed_over=passed_over or {},
        top=lambda found: max((n for _, n in found), default=1), serious=audit_findings(audit),
    )  # fmt: skip
    with commit_file(Path(page)) as temporary:
        temporary.write_text(text, "utf-8")


def audit_findings(audit: Audit) -> list[str]:
    """What deserves attention first, as sentences."""
    return [line.removeprefix("! ") for line in audit.lines() if line.startswith("! ")]


class _Pictures:
    """Small pictures of cells of one table, as strips in data addresses."""

    def __init__(self, table: Path) -> None:
        record = read_parquet_record(table)
        self._reader = ImageReader(str(record["config"].get("root", table.parent)))
        self._file = pq.ParquetFile(table)
        self._rows: dict[int, dict[str, Any]] = {}

    def examples(self, audit: Audit) -> list[tuple[str, int, str]]:
        """Label, number of cells, and a strip of pictures spread over its cells."""
        wanted = dict(audit.counts.get("label", [])[:_LABELS]) or {NO_LABEL: audit.n_ok}
        places: dict[str, list[int]] = {label: [] for label in wanted}
        seen = dict.fromkeys(wanted, 0)
        steps = {label: max(1, n // _PER_LABEL) for label, n in wanted.items()}
        for batch in self._file.iter_batches(batch_size=8192, columns=["cell_id", "label", "status"]):
            for cell_id, label, status in zip(*(c.to_pylist() for c in batch.columns), strict=True):
                name = NO_LABEL if label is None else label
                if status != "ok" or name not in wanted:
                    continue
                if seen[name] % steps[name] == 0 and len(places[name]) < _PER_LABEL:
                    places[name].append(cell_id)
                seen[name] += 1
        self._find({i for ids in places.values() for i in ids} | _listed(audit))
        return [(label, wanted[label], self.strip(ids)) for label, ids in places.items()]

    def names(self, cell_ids: list[int]) -> str:
        """Names of the files of some cells, each once: what a person looks for on the disk."""
        images = [str(self._rows[i]["image"]) for i in cell_ids if i in self._rows]
        return ", ".join(dict.fromkeys(image.rsplit("/", 1)[-1] for image in images))

    def quarantined(self) -> list[tuple[str, str]]:
        """File and reason of the first quarantined images."""
        found: list[tuple[str, str]] = []
        for batch in self._file.iter_batches(batch_size=8192, columns=["image", "status", "reason"]):
            rows = zip(*(c.to_pylist() for c in batch.columns), strict=True)
            found += [(str(image), str(reason or "")) for image, status, reason in rows if status != "ok"]
            if len(found) >= _QUARANTINED:
                break
        return found[:_QUARANTINED]

    def strip(self, cell_ids: list[int]) -> str:
        """Pictures of some cells side by side, as a PNG in a data address; what cannot be read is left grey."""
        if not cell_ids:
            return ""
        sheet = Image.new("RGB", (len(cell_ids) * (_SIDE + 4) - 4, _SIDE), (255, 255, 255))
        for place, cell_id in enumerate(cell_ids):
            sheet.paste(self._small(cell_id), (place * (_SIDE + 4), 0))
        buffer = io.BytesIO()
        sheet.quantize(192, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()

    def _small(self, cell_id: int) -> Image.Image:
        blank = Image.new("RGB", (_SIDE, _SIDE), (224, 224, 224))
        try:
            row = self._rows[cell_id]
            pixels = decode_image(self._reader.read(row["image"], row["sha256"])).pixels
        except (KeyError, CytosaeError, UnreadableImageError):
            return blank
        picture = Image.fromarray(np.ascontiguousarray(pixels))
        picture.thumbnail((_SIDE, _SIDE), Image.Resampling.BILINEAR)
        blank.paste(picture, ((_SIDE - picture.width) // 2, (_SIDE - picture.height) // 2))
        return blank

    def _find(self, cell_ids: set[int]) -> None:
        """Image and hash of the cells that are shown."""
        for batch in self._file.iter_batches(batch_size=8192, columns=["cell_id", "image", "sha256"]):
            found = [i for i, cell_id in enumerate(batch["cell_id"].to_pylist()) if cell_id in cell_ids]
            for row in batch.take(found).to_pylist() if found else []:
                self._rows[row["cell_id"]] = row


def _listed(audit: Audit) -> set[int]:
    groups = [*audit.identical, *audit.contradicting, *audit.near, *audit.leaking]
    return {i for group in groups for i in group.cell_ids}
