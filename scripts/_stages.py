"""Stages of a long reproduction: verbs of the command line, one after the other, each timed once and not done again.

Every verb keeps what is finished and goes on from there, so that a stopped reproduction is simply called again. `stages.json`
keeps what each stage cost when it really ran.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cytosae.cli._main import run as verb
from cytosae.storage import commit_file, write_json


class Stages:
    """Runs verbs into one folder and remembers what they cost.

    Attributes
    ----------
    out
        The folder.
    costs
        Name of the stage -> ``seconds``, ``bytes`` (of what it wrote) and ``n`` (what it worked on: cells or tokens).
    """

    def __init__(self, out: Path, common: Sequence[str] = ()) -> None:
        """Stages into `out`; `common` options go to every verb that computes."""
        self.out, self.common = out, list(common)
        out.mkdir(parents=True, exist_ok=True)
        path = out / "stages.json"
        self.costs: dict[str, dict[str, Any]] = json.loads(path.read_text("utf-8")) if path.exists() else {}

    def run(self, name: str, *arguments: str | Path, made: Path, n: int = 0, computes: bool = True) -> None:
        """Call ``cytosae`` with `arguments`, which writes `made`; exits with its status where it fails."""
        there = made.exists()
        print(f"--- {name}", flush=True)
        started = time.monotonic()
        if status := verb([*map(str, arguments), *(self.common if computes else [])]):
            sys.exit(status)
        kept = self.costs.pop(name, None)  # and put back at the end: stages stand in the order in which they are called
        if kept is not None and there:
            self.costs[name] = kept
        else:
            before = kept["seconds"] if kept else 0.0
            self.costs[name] = {
                "seconds": round(before + time.monotonic() - started, 1),
                "bytes": size_of(made),
                "n": n,
            }
            with commit_file(self.out / "stages.json") as temporary:
                write_json(temporary, self.costs)


def size_of(path: Path) -> int:
    """Bytes of a file or of all files below a folder."""
    return sum(p.stat().st_size for p in ([path] if path.is_file() else path.rglob("*")) if p.is_file())


def cost_table(costs: dict[str, dict[str, Any]]) -> str:
    """The costs as a table in Markdown."""
    lines = ["| stage | seconds | MB written | worked on |", "| --- | --- | --- | --- |"]
    lines += [f"| {name} | {c['seconds']:,.0f} | {c['bytes'] / 1e6:,.1f} | {c['n']:,} |" for name, c in costs.items()]
    return "\n".join(lines)
