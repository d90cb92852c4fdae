"""``cytosae index``."""

from __future__ import annotations

import math
from pathlib import Path

import click

from cytosae._errors import CytosaeError, UsageError
from cytosae.cli._common import chosen_sae, done, verb, where_option


@verb("index", out="The concept index (a folder) to write.")
@click.argument("cells", type=click.Path(path_type=Path))
@click.option(
    "--sae", type=click.Path(path_type=Path), help="The dictionary (an SAE folder). [default: the bundled one]"
)
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
    cells: Path, sae: Path | None, tokens: tuple[Path, ...], weights: Path | None, exemplars: int, cells_matrix: bool, pooling: str,
    thresholds: tuple[float, ...], semantics: str, where: tuple[str, ...], out: Path, device: str, seed: int,
) -> None:  # fmt: skip
    """Find the exemplars, the statistics and the labels of every concept over CELLS (a cells.parquet).

    Interrupted, it goes on from the last whole shard when called again.
    """
    from cytosae.cells import read_cells
    from cytosae.concepts import check_tokens, index_concepts, merged_sources
    from cytosae.sae import load_sae
    from cytosae.storage import read_parquet_record
    from cytosae.tokens import TokenStore

    if not all(math.isfinite(t) for t in thresholds):
        raise UsageError("--threshold wants a number, 0 or more.")
    table, dictionary = read_cells(cells), load_sae(chosen_sae(sae, "index"), device=device)
    stores = [TokenStore(path) for path in tokens]
    if sae is None:
        try:
            for store in stores:
                check_tokens(dictionary, store)
        except CytosaeError as error:
            raise UsageError(
                f"The bundled dictionary does not fit these tokens; give the one that does with --sae. ({error})"
            ) from error
    record = read_parquet_record(cells / "cells.parquet" if cells.is_dir() else cells)
    sources = merged_sources(record)
    index = index_concepts(
        table, dictionary, out, store=stores, where=where, n_exemplars=exemplars,
        cells_matrix=pooling if cells_matrix else False, thresholds=thresholds, semantics=semantics, sources=sources,
        device=device, weights=weights,
    )  # fmt: skip
    concepts = index.concepts
    dead = int(concepts["dead"].sum())
    left = f"; {table.n_quarantined} quarantined cells left out" if table.n_quarantined else ""
    done(f"Wrote {out}: {len(concepts):,} concepts over {index.n_cells:,} cells, {dead:,} of them dead{left}.")
