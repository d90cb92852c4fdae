"""Stages of a long reproduction: verbs of the command line, one after the other, each timed once and not done again."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from cytosae.cli._main import run
from cytosae.storage import commit_file


class Stages:
    """Runs verbs one after the other; remembers which are done, how long they took and what they left on disk.

    Attributes
    ----------
    record
        Name of a stage -> ``command``, ``seconds``, ``bytes`` (of what it made) and ``n`` (cells it worked on, where told), in the
        order in which stages are called.
    """

    def __init__(self, out: Path) -> None:
        """Read what an earlier call into the folder `out` had finished."""
        self._path = out / "stages.json"
        known = json.loads(self._path.read_text("utf-8")) if self._path.exists() else {}
        self.record: dict[str, dict[str, Any]] = known

    def __call__(self, name: str, made: Path, *words: Any, n: int = 0) -> None:
        """Run one verb, unless the same call is done and what it made is there; exits with the verb's status if it fails.

        The verb itself goes on where it was stopped; the seconds of a stopped call are not known and not counted.
        """
        command = [str(word) for word in words]
        done = self.record.pop(name, {})
        if made.exists() and done.get("command") == command:
            print(f"{name} is done", file=sys.stderr)
            self.record[name] = done
            return
        print(f"{name}: cytosae {' '.join(command)}", file=sys.stderr, flush=True)
        start = time.monotonic()
        if status := run(command):
            sys.exit(status)
        size = sum(p.stat().st_size for p in ([made] if made.is_file() else made.rglob("*")) if p.is_file())
        self.record[name] = {"command": command, "seconds": round(time.monotonic() - start, 1), "bytes": size, "n": n}
        with commit_file(self._path) as temporary:
            temporary.write_text(json.dumps(self.record, indent=1) + "\n", "utf-8")


def cost_table(record: dict[str, dict[str, Any]]) -> str:
    """What the stages cost, as a table in Markdown."""
    lines = ["| stage | seconds | MB written | cells |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {name} | {c['seconds']:,.0f} | {c['bytes'] / 1e6:,.1f} | {c['n'] or ''} |" for name, c in record.items()
    ]
    return "\n".join(lines)
