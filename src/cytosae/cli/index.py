"""``cytosae index``."""

from __future__ import annotations

from pathlib import Path

import click

from cytosae.cli._common import done, verb, where_option


@verb("index", out="The concept index (a folder) to write.")
@click.argument("cells", type=click.Path(path_type=Path))
@click.option("--sae", type=click.Path(path_type=Path), required=True, help="The dictionary (an SAE folder).")
@click.option(
    "--tokens",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Tokens of these cells; computed from the images if not given. Repeatable: the stores of tables merged into CELLS.",
)
@click.option("--weights", type=click.Path(path_type=Path), help="Weight file of the backbone, where it came from one.")
@click.option("--exemplars", type=click.IntRange(1, 1000), default=20, show_default=True, help="Cells kept a concept.")
@click.option("--cells-matrix", is_flag=True, help="Also write cells.h5ad: cells x concepts (AnnData, sparse).")
@click.option("--pooling", type=click.Choice(["max", "mean", "patch_share"]), default="max", show_default=True,
              help="What stands in X of cells.h5ad; the others are its layers.")  # fmt: skip
@click.option("--threshold", "thresholds", multiple=True, type=click.FloatRange(0),
              help="Also count the codes above this; repeatable.")  # fmt: skip
@click.option("--semantics", type=click.Choice(["default", "cytosae-2025"]), default="default", show_default=True,
              help="cytosae-2025: as the published code counts, class token and means included.")  # fmt: skip
@where_option
def command(
    cells: Path, sae: Path, tokens: tuple[Path, ...], weights: Path | None, exemplars: int, cells_matrix: bool, pooling: str,
    thresholds: tuple[float, ...], semantics: str, where: tuple[str, ...], out: Path, device: str, seed: int,
) -> None:  # fmt: skip
    """Find the exemplars, the statistics and the labels of every concept over CELLS (a cells.parquet).

    Interrupted, it goes on from the last whole shard when called again.
    """
    from cytosae.cells import read_cells
    from cytosae.concepts import index_concepts, merged_sources
    from cytosae.sae import load_sae
    from cytosae.storage import read_parquet_record
    from cytosae.tokens import TokenStore

    table, dictionary = read_cells(cells), load_sae(sae, device=device)
    record = read_parquet_record(cells / "cells.parquet" if cells.is_dir() else cells)
    sources = merged_sources(record)
    index = index_concepts(
        table, dictionary, out, store=[TokenStore(path) for path in tokens], where=where, n_exemplars=exemplars,
        cells_matrix=pooling if cells_matrix else False, thresholds=thresholds, semantics=semantics, sources=sources,
        device=device, weights=weights,
    )  # fmt: skip
    concepts = index.concepts
    dead = int(concepts["dead"].sum())
    left = f"; {table.n_quarantined} quarantined cells left out" if table.n_quarantined else ""
    done(f"Wrote {out}: {len(concepts):,} concepts over {index.n_cells:,} cells, {dead:,} of them dead{left}.")
