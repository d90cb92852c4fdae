"""``cytosae import statistics``."""

from __future__ import annotations

from pathlib import Path

import click

from cytosae.cli._common import done, verb


@verb("statistics", compute=False, out="The concept index (a folder) to write.")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--n-cells", type=click.IntRange(1), help="Images behind the numbers. [default: what the frequencies tell]"
)
def command(folder: Path, n_cells: int | None, out: Path) -> None:
    """Read FOLDER, statistics as the published code saves them, into a concept index.

    FOLDER holds max_activating_image_values.pt, max_activating_image_label_indices.pt, sae_mean_acts.pt, sae_sparsity.pt
    and classnames.txt. Only plain tensors are read. What such files do not tell (cells, places, tokens) is null.
    """
    from cytosae.concepts import import_statistics

    index = import_statistics(folder, out, n_cells=n_cells)
    dead = int(index.concepts["dead"].sum())
    done(f"Wrote {out}: {len(index.concepts):,} concepts over {index.n_cells:,} cells, {dead:,} of them never active.")
