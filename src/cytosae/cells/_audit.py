"""What an experienced person would check in a table of cells before using it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cytosae.cells._give_away import GiveAway, give_aways, sizes
from cytosae.cells._table import KIND, VERSION
from cytosae.storage import read_parquet_record, read_table

#: Columns the audit looks at; images, masks and whatever else a table carries are not read.
_COLUMNS = ("cell_id", "sha256", "width", "height", "mode", "um_per_px", "label", "patient", "diagnosis", "dataset",
            "split", "status", "reason", "file_header", "file_bytes", "near_duplicate_group", "source_field",
            "padded_share", "folder_disagrees")  # fmt: skip

#: So many groups or pairs are listed with pictures; all are counted.
LISTED = 12

Count = tuple[str, int]


@dataclass(frozen=True)
class Group:
    """Cells that belong together, by `cell_id`, and what is remarkable about them."""

    cell_ids: list[int]
    what: str


@dataclass
class Audit:
    """The findings; `lines` says them in sentences, the page shows them."""

    n_cells: int
    n_ok: int
    counts: dict[str, list[Count]]
    reasons: list[Count]
    um_per_px: list[Count]
    n_identical: int = 0
    identical: list[Group] = field(default_factory=list)
    n_contradicting: int = 0
    contradicting: list[Group] = field(default_factory=list)
    n_near: int = 0
    near: list[Group] = field(default_factory=list)
    n_near_contradicting: int = 0
    leaks: list[tuple[str, int, str]] = field(default_factory=list)
    leaking: list[Group] = field(default_factory=list)
    give_aways: list[GiveAway] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def n_quarantined(self) -> int:
        """Number of cells whose image cannot be read whole."""
        return self.n_cells - self.n_ok

    def lines(self) -> list[str]:
        """The findings as plain lines, the serious ones marked with ``!``."""
        out = [f"  {_title(name)}: {_brief(found)}" for name, found in self.counts.items()]
        if self.reasons:
            out.append(f"! quarantined: {_brief(self.reasons)}")
        if self.n_contradicting:
            out.append(f"! identical files under different labels: {self.n_contradicting:,}")
        if self.n_identical:
            out.append(f"  files that occur more than once: {self.n_identical:,}")
        if self.n_near:
            labels = (
                f", {self.n_near_contradicting:,} of them under different labels" if self.n_near_contradicting else ""
            )
            out.append(f"  near duplicates: {self.n_near:,} groups{labels}")
        out += [f"! {column} in several splits: {n:,}, for instance {example}" for column, n, example in self.leaks]
        out += [f"! {g.sentence()}" for g in self.give_aways if g.serious]
        return out + [f"  {remark}" for remark in self.remarks]


def audit_cells(path: Path | str) -> Audit:
    """Look through a table of cells; of a large one, only the columns that are needed are read.

    Raises
    ------
    CytosaeError
        No such table.
    """
    frame = _load(Path(path))
    reasons = _counts(frame.loc[frame["status"] != "ok", "reason"].map(_kind), "")
    n_cells, ok = len(frame), frame[frame["status"] == "ok"].drop(columns=["reason", "status"])
    del frame
    ok = ok.astype({"width": "int64", "height": "int64"})
    counts = {}
    for name in ("dataset", "label", "diagnosis", "patient", "split", "mode", "file_header"):
        if name in ok and ok[name].notna().any():
            counts[name] = _counts(ok[name])
    counts["size"] = _counts(sizes(ok))
    audit = Audit(n_cells, len(ok), counts, reasons, _counts(ok["um_per_px"].round(6), "unknown"))
    _duplicates(audit, ok)
    _leaks(audit, ok)
    audit.give_aways = give_aways(ok)
    _remarks(audit, ok)
    return audit


def _load(path: Path) -> pd.DataFrame:
    if read_parquet_record(path).get("kind") != KIND:
        read_table(path, KIND, VERSION)  # says what is wrong
    schema = pq.read_schema(path)
    names = [n for n in _COLUMNS if n in schema.names]
    strings = [n for n in names if n != "sha256" and pa.types.is_string(schema.field(n).type)]
    names.remove("sha256")
    batches = pq.ParquetFile(path).iter_batches(8192, columns=["sha256"])
    hashes = np.fromiter((int((t or "0")[:15], 16) for b in batches for t in b["sha256"].to_pylist()), np.int64)
    frame: pd.DataFrame = pq.read_table(path, columns=names, read_dictionary=strings).to_pandas(
        self_destruct=True, split_blocks=True
    )
    frame["sha256"] = hashes
    return frame


def _duplicates(audit: Audit, ok: pd.DataFrame) -> None:
    ok = ok[[c for c in ("cell_id", "sha256", "label", "near_duplicate_group") if c in ok]]
    same = ok[ok["sha256"].duplicated(keep=False)]
    groups = same.groupby("sha256", sort=False)
    audit.n_identical = groups.ngroups
    torn = groups["label"].nunique()
    torn = torn[torn > 1]
    audit.n_contradicting = len(torn)
    audit.identical = _groups(same[~same["sha256"].isin(torn.index)], "sha256", "label")
    audit.contradicting = _groups(same[same["sha256"].isin(torn.index)], "sha256", "label")
    if "near_duplicate_group" in ok:
        several = ok[ok["near_duplicate_group"].duplicated(keep=False)]
        files = several.groupby("near_duplicate_group")["sha256"].nunique()
        near = several[several["near_duplicate_group"].isin(files.index[files > 1])]
        audit.n_near = near["near_duplicate_group"].nunique()
        labels = near.groupby("near_duplicate_group")["label"].nunique()
        audit.n_near_contradicting = int((labels > 1).sum())
        near = near.assign(_torn=near["near_duplicate_group"].isin(labels.index[labels > 1]))
        near = near.sort_values(["_torn", "cell_id"], ascending=[False, True])
        audit.near = _groups(near, "near_duplicate_group", "label")


def _leaks(audit: Audit, ok: pd.DataFrame) -> None:
    """Groups that lie in several splits."""
    placed = ok[ok["split"].notna()]
    for column in ("patient", "source_field", "near_duplicate_group"):
        if column not in placed or placed["split"].nunique() < 2:
            continue
        n_parts = placed.groupby(column, observed=True)["split"].nunique()
        torn = n_parts.index[n_parts > 1]
        if len(torn):
            audit.leaks.append((column, len(torn), str(torn[0])))
            if column == "near_duplicate_group":
                audit.leaking = _groups(placed[placed[column].isin(torn)], column, "split")


def _remarks(audit: Audit, ok: pd.DataFrame) -> None:
    if ok["patient"].isna().all():
        audit.remarks.append("no patients are known: every interval computed from these cells is optimistic")
    elif ok["patient"].isna().any():
        audit.remarks.append(f"{int(ok['patient'].isna().sum()):,} cells have no patient")
    if ok["um_per_px"].isna().any():
        n = int(ok["um_per_px"].isna().sum())
        audit.remarks.append(f"{n:,} cells have no um_per_px: resizing to a square erases how large they are")
    if "padded_share" in ok and (ok["padded_share"] > 0).any():
        audit.remarks.append(
            f"{int((ok['padded_share'] > 0).sum()):,} cuts reach over the image's edge and are white there"
        )
    if "folder_disagrees" in ok and ok["folder_disagrees"].notna().any():
        audit.remarks.append(
            f"{int(ok['folder_disagrees'].notna().sum()):,} cells lie in a folder that contradicts their prefix"
        )
    if "mode" in ok and ok["mode"].nunique() > 1:
        audit.remarks.append("the images have several colour modes; grey and colour are not comparable")


def _groups(frame: pd.DataFrame, key: str, shown: str) -> list[Group]:
    found = []
    for _, rows in frame.groupby(key, sort=False, observed=True):
        values = sorted({str(v) for v in rows[shown].dropna()})
        found.append(Group(rows["cell_id"].tolist()[:6], f"{len(rows)} cells: {' / '.join(values) or f'no {shown}'}"))
        if len(found) == LISTED:
            break
    return found


def _counts(values: pd.Series, missing: str = "(none)") -> list[Count]:
    found = values.value_counts(dropna=True)
    pairs = sorted(((str(k), int(n)) for k, n in found.items() if n), key=lambda p: (-p[1], p[0]))
    n_missing = int(values.isna().sum())
    return [*pairs, (missing, n_missing)] if n_missing and missing else pairs


def _kind(reason: Any) -> str:
    """A reason without the numbers of the single file."""
    head, _, tail = str(reason).partition("(")
    return f"{head.strip()} ({''.join('#' if c.isdigit() else c for c in tail)}" if tail else head.strip()


def _brief(found: list[Count]) -> str:
    text = ", ".join(f"{name} {n:,}" for name, n in found[:8])
    return f"{text}, and {len(found) - 8:,} more" if len(found) > 8 else text


def _title(name: str) -> str:
    return {"file_header": "file header", "mode": "mode"}.get(name, name)
