"""Run the Python blocks of a tutorial in order, in a folder of its own; ``--keep`` takes its pictures into ``docs/images``.

Usage: ``python docs/tutorials/run.py docs/tutorials/own-cells.md [--short] [--keep]``

``--short`` (or ``CYTOSAE_SHORT=1``) takes few cells: what the tests run. Blocks read it as ``SHORT``.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

BLOCK = re.compile(r"^```python\n(.*?)^```", re.M | re.S)


def run(page: Path, *, short: bool, keep: Path | None = None) -> dict[str, Any]:
    """Run a page and give its names; pictures are JPEG files that it writes into the folder it runs in."""
    space: dict[str, Any] = {"SHORT": short, "__name__": "__tutorial__"}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for number, code in enumerate(BLOCK.findall(page.read_text("utf-8")), 1):
            exec(compile(code, f"{page.name}, block {number}", "exec"), space)  # the page is part of this repository
        space["PICTURES"] = {p.name: p.stat().st_size for p in Path(folder).glob("*.jpg")}
        for name in space["PICTURES"] if keep else ():
            (keep / f"tutorial-{name}").write_bytes(Path(folder, name).read_bytes())  # type: ignore[operator]
    return space


if __name__ == "__main__":
    pages = [Path(a).resolve() for a in sys.argv[1:] if not a.startswith("--")]
    wanted = Path(__file__).resolve().parents[1] / "images" if "--keep" in sys.argv else None
    for one in pages:
        run(one, short="--short" in sys.argv or bool(os.environ.get("CYTOSAE_SHORT")), keep=wanted)
