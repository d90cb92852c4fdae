from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Entry:
    """One image a source names, before it has been opened."""

    image: str
    label: str | None = None
    patient: str | None = None
    diagnosis: str | None = None
    dataset: str | None = None
    split: str | None = None
    mask: str | None = None
    um_per_px: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """What a layout found: the entries in a fixed order, the root of their paths, and what was passed over and why."""

    root: str
    entries: Sequence[Entry]
    layout: str
    passed_over: dict[str, int] = field(default_factory=dict)
