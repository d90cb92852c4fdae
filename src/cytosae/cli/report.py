"""``cytosae report``."""

from __future__ import annotations

from pathlib import Path

import click

from cytosae.cli._common import done, verb


@verb("report", device=False)
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="The page to write. [default: report.html in RUN]")
def command(run: Path, out: Path | None, seed: int) -> None:
    """Write one self-contained report.html of RUN, a folder with cells.parquet, tokens/, sae/ and index/.

    Measures the controls first (controls.json), where the indexed cells carry at least two labels.
    """
    from cytosae.reports import write_report

    page = write_report(run, out, seed=seed)
    done(f"Wrote {page} ({page.stat().st_size / 1e6:.1f} MB).")
