"""``cytosae cells``."""

from __future__ import annotations

from pathlib import Path

import click

from cytosae.cli._common import done, verb


@verb("cells", compute=False, out="The cells.parquet to write.")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--layout", default="auto", show_default=True, help="auto, folder, manifest or hf-parquet.")
@click.option("--on-error", type=click.Choice(["quarantine", "fail"]), default="quarantine", show_default=True,
              help="What to do with an image that cannot be read whole.")  # fmt: skip
def command(source: Path, layout: str, on_error: str, out: Path) -> None:
    """Read SOURCE (class folders, a manifest, an image parquet, or 'bundled') into a checked table of cells.

    Every image is opened once. What cannot be read whole is kept in the table as quarantined, with the reason.
    """
    from cytosae.cells import build_cells, bundled_path

    if str(source) == "bundled":
        source = bundled_path()
    cells = build_cells(source, out, layout=layout, on_error=on_error)
    text = f"Wrote {out}: {len(cells):,} cells, {cells.frame['label'].nunique()} labels"
    if cells.n_quarantined:
        first = cells.frame[cells.frame["status"] != "ok"].iloc[0]
        text += f"; {cells.n_quarantined} quarantined (the first: {first['image']}, {first['reason']})"
    done(text + ".")
