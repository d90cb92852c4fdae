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
        Name of a stage -> ``command``, ``seconds``, ``bytes`` (of what it made), ``peak_mb`` (largest resident memory of the process
        up to its end) and ``n`` (cells it worked on, where told), in the order in which stages are called. Of a stage that was
        stopped, ``command`` and ``spent``.
    """

    def __init__(self, out: Path) -> None:
        """Read what an earlier call into the folder `out` had finished."""
        self._path = out / "stages.json"
        known = json.loads(self._path.read_text("utf-8")) if self._path.exists() else {}
        self.record: dict[str, dict[str, Any]] = known

    def __call__(self, name: str, made: Path, *words: Any, n: int = 0) -> None:
        """Run one verb, unless the same call is done and what it made is there; exits with the verb's status if it fails.

        The verb itself goes on where it was stopped; the seconds of a call that was stopped by Ctrl-C or SIGTERM are counted, those of
        one that was killed are not known.
        """
        command = [str(word) for word in words]
        done = self.record.pop(name, {})
        same = done.get("command") == command
        if made.exists() and same and "seconds" in done:
            print(f"{name} is done", file=sys.stderr)
            self.record[name] = done
            return
        print(f"{name}: cytosae {' '.join(command)}", file=sys.stderr, flush=True)
        start, spent = time.monotonic(), float(done.get("spent", 0.0)) if same else 0.0
        status = None
        try:
            status = run(command)
        finally:
            seconds = round(spent + time.monotonic() - start, 1)
            if status != 0:
                self._keep(name, {"command": command, "spent": seconds})
        if status:
            sys.exit(status)
        size = sum(p.stat().st_size for p in ([made] if made.is_file() else made.rglob("*")) if p.is_file())
        self._keep(name, {"command": command, "seconds": seconds, "bytes": size, "peak_mb": _peak_mb(), "n": n})

    def _keep(self, name: str, one: dict[str, Any]) -> None:
        self.record[name] = one
        with commit_file(self._path) as temporary:
            temporary.write_text(json.dumps(self.record, indent=1) + "\n", "utf-8")


def _peak_mb() -> int | None:
    """Largest resident memory of this process so far; None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6)


def cost_table(record: dict[str, dict[str, Any]]) -> str:
    """What the stages cost, as a table in Markdown."""
    lines = ["| stage | seconds | MB written | peak memory so far, MB | cells |", "| --- | --- | --- | --- | --- |"]
    lines += [
        f"| {name} | {c['seconds']:,.0f} | {c['bytes'] / 1e6:,.1f} | {c.get('peak_mb') or ''} | {c['n'] or ''} |"
        for name, c in record.items()
        if "seconds" in c
    ]
    return "\n".join(lines)
