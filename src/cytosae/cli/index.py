"""``cytosae index``."""

from __future__ import annotations

from pathlib import Path

import click

from cytosae.cli._common import done, verb, where_option


@verb("index", out="The concept index (a folder) to write.")
@click.argument("cells", type=click.Path(path_type=Path))
@click.option("--sae", type=click.Path(path_type=Path), required=True, help="The dictionary (an SAE folder).")
@click.option(
    "--tokens", type=click.Path(path_type=Path), help="Tokens of these cells; computed from the images if not given."
)
@click.option("--weights", type=click.Path(path_type=Path), help="Weight file of the backbone, where it came from one.")
@click.option("--exemplars", type=click.IntRange(1, 1000), default=20, show_default=True, help="Cells kept a concept.")
@click.option("--cells-matrix", is_flag=True, help="Also write cells.h5ad: cells x concepts (AnnData, sparse).")
@where_option
def command(
    cells: Path, sae: Path, tokens: Path | None, weights: Path | None, exemplars: int, cells_matrix: bool, where: tuple[str, ...],
    out: Path, device: str, seed: int,
) -> None:  # fmt: skip
    """Find the exemplars, the statistics and the labels of every concept over CELLS (a cells.parquet)."""
    from cytosae.cells import read_cells
    from cytosae.concepts import index_concepts
    from cytosae.sae import load_sae
    from cytosae.tokens import TokenStore

    table, dictionary = read_cells(cells), load_sae(sae, device=device)
    index = index_concepts(
        table, dictionary, out, store=TokenStore(tokens) if tokens else None, where=where,
        n_exemplars=exemplars, cells_matrix=cells_matrix, device=device, weights=weights,
    )  # fmt: skip
    concepts = index.concepts
    dead = int(concepts["dead"].sum())
    left = f"; {table.n_quarantined} quarantined cells left out" if table.n_quarantined else ""
    done(f"Wrote {out}: {len(concepts):,} concepts over {index.n_cells:,} cells, {dead:,} of them dead{left}.")
