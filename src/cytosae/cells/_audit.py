"""What an experienced person would check in a table of cells before using it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cytosae.cells._facts import Facts
from cytosae.cells._give_away import GiveAway, give_aways
from cytosae.cells._table import KIND, VERSION
from cytosae.storage import read_parquet_record, read_table

#: So many groups or pairs are listed with pictures; all are counted.
LISTED = 12

Count = tuple[str, int]

NO_LABEL = "(none)"


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

    @property
    def n_labels(self) -> int:
        """Number of different labels."""
        return sum(name != NO_LABEL for name, _ in self.counts.get("label", []))

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
    """Look through a table of cells of any size; only the columns that are needed are read, and none is held.

    Raises
    ------
    CytosaeError
        No such table.
    """
    path = Path(path)
    if read_parquet_record(path).get("kind") != KIND:
        read_table(path, KIND, VERSION)  # says what is wrong
    facts = Facts.of_table(path)
    try:
        reasons = Counter[str]()
        for reason, n in facts.rows("SELECT reason, COUNT(*) FROM cells WHERE status != 'ok' GROUP BY reason"):
            reasons[_kind(reason)] += n if reason is not None else 0
        counts = {}
        for name in ("dataset", "label", "diagnosis", "patient", "split", "mode", "file_header"):
            found = _counts(facts, name)
            if any(value != NO_LABEL for value, _ in found):
                counts[name] = found
        counts["size"] = _sorted(Counter({
            f"{w} x {h}": n for w, h, n in facts.rows("SELECT width, height, COUNT(*) FROM ok GROUP BY width, height")
        }))  # fmt: skip
        audit = Audit(facts.one("SELECT COUNT(*) FROM cells"), facts.one("SELECT COUNT(*) FROM ok"), counts,
                      _sorted(reasons), _scales(facts))  # fmt: skip
        _duplicates(audit, facts)
        _leaks(audit, facts)
        audit.give_aways = give_aways(facts)
        _remarks(audit, facts)
    finally:
        facts.close()
    return audit


def _duplicates(audit: Audit, facts: Facts) -> None:
    facts.rows(
        "CREATE TEMP TABLE same AS SELECT sha256 AS key, MIN(row) AS first, COUNT(DISTINCT label) AS n_labels "
        "FROM ok GROUP BY sha256 HAVING COUNT(*) > 1"
    )
    audit.n_identical = facts.one("SELECT COUNT(*) FROM same")
    audit.n_contradicting = facts.one("SELECT COUNT(*) FROM same WHERE n_labels > 1")
    for groups, sign in ((audit.identical, "<="), (audit.contradicting, ">")):
        keys = f"SELECT key FROM same WHERE n_labels {sign} 1 ORDER BY first"
        groups += _groups(facts, keys, "ok", "sha256", "label", "row")
    if "near_duplicate_group" in facts.names:
        facts.rows(
            "CREATE TEMP TABLE near AS SELECT near_duplicate_group AS key, MIN(cell_id) AS first, "
            "COUNT(DISTINCT label) > 1 AS torn FROM ok WHERE near_duplicate_group IS NOT NULL "
            "GROUP BY near_duplicate_group HAVING COUNT(*) > 1 AND COUNT(DISTINCT sha256) > 1"
        )
        audit.n_near = facts.one("SELECT COUNT(*) FROM near")
        audit.n_near_contradicting = facts.one("SELECT COUNT(*) FROM near WHERE torn")
        keys = "SELECT key FROM near ORDER BY torn DESC, first"
        audit.near = _groups(facts, keys, "ok", "near_duplicate_group", "label", "cell_id")


def _leaks(audit: Audit, facts: Facts) -> None:
    """Groups that lie in several splits."""
    facts.rows("CREATE TEMP VIEW placed AS SELECT * FROM ok WHERE split IS NOT NULL")
    if facts.one("SELECT COUNT(DISTINCT split) FROM placed") < 2:
        return
    for column in ("patient", "source_field", "near_duplicate_group"):
        torn = (
            f"SELECT {column} AS key FROM placed WHERE {column} IS NOT NULL GROUP BY {column} "
            "HAVING COUNT(DISTINCT split) > 1"
        )
        n = facts.one(f"SELECT COUNT(*) FROM ({torn})")
        if n:
            first = f"SELECT {column} FROM cells WHERE {column} IN ({torn}) ORDER BY rowid LIMIT 1"
            smallest = f"SELECT MIN(key) FROM ({torn})"
            example = facts.one(smallest if column == "near_duplicate_group" else first)
            audit.leaks.append((column, n, str(example)))
            if column == "near_duplicate_group":
                audit.leaking = _groups(facts, f"{torn} ORDER BY MIN(row)", "placed", column, "split", "row")


def _remarks(audit: Audit, facts: Facts) -> None:
    def count(condition: str) -> int:
        return int(facts.one(f"SELECT COUNT(*) FROM ok WHERE {condition}"))

    n = count("patient IS NULL")
    if n == audit.n_ok:
        audit.remarks.append("no patients are known: every interval computed from these cells is optimistic")
    elif n:
        audit.remarks.append(f"{n:,} cells have no patient")
    if n := count("um_per_px IS NULL"):
        audit.remarks.append(f"{n:,} cells have no um_per_px: resizing to a square erases how large they are")
    if n := count("padded_share > 0"):
        audit.remarks.append(f"{n:,} cuts reach over the image's edge and are white there")
    if n := count("folder_disagrees IS NOT NULL"):
        audit.remarks.append(f"{n:,} cells lie in a folder that contradicts their prefix")
    if facts.one("SELECT COUNT(DISTINCT mode) FROM ok") > 1:
        audit.remarks.append("the images have several colour modes; grey and colour are not comparable")


def _groups(facts: Facts, keys: str, table: str, key: str, shown: str, order: str) -> list[Group]:
    found = []
    for (value,) in list(facts.rows(f"{keys} LIMIT {LISTED}")):
        of_group = f"FROM {table} WHERE {key} = ?"
        ids = [i for (i,) in facts.rows(f"SELECT cell_id {of_group} ORDER BY {order} LIMIT 6", value)]
        names = sorted(str(v) for (v,) in facts.rows(f"SELECT DISTINCT {shown} {of_group}", value) if v is not None)
        n = facts.one(f"SELECT COUNT(*) {of_group}", value)
        found.append(Group(ids, f"{n} cells: {' / '.join(names) or f'no {shown}'}"))
    return found


def _counts(facts: Facts, name: str) -> list[Count]:
    found = Counter(dict(facts.rows(f"SELECT {name}, COUNT(*) FROM ok GROUP BY {name}")))
    n_missing = found.pop(None, 0)
    return [*_sorted(found), (NO_LABEL, n_missing)] if n_missing else _sorted(found)


def _scales(facts: Facts) -> list[Count]:
    found, n_missing = Counter[str](), 0
    for value, n in facts.rows("SELECT um_per_px, COUNT(*) FROM ok GROUP BY um_per_px"):
        if value is None:
            n_missing = n
        else:
            found[str(float(np.round(value, 6)))] += n
    return [*_sorted(found), ("unknown", n_missing)] if n_missing else _sorted(found)


def _sorted(found: Counter[str]) -> list[Count]:
    return sorted(((str(k), n) for k, n in found.items() if n), key=lambda p: (-p[1], p[0]))


def _kind(reason: Any) -> str:
    """A reason without the numbers of the single file."""
    head, _, tail = str(reason).partition("(")
    return f"{head.strip()} ({''.join('#' if c.isdigit() else c for c in tail)}" if tail else head.strip()


def _brief(found: list[Count]) -> str:
    text = ", ".join(f"{name} {n:,}" for name, n in found[:8])
    return f"{text}, and {len(found) - 8:,} more" if len(found) > 8 else text


def _title(name: str) -> str:
    return {"file_header": "file header", "mode": "mode"}.get(name, name)
