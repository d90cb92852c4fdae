"""``cytosae atlas``."""

from __future__ import annotations

from pathlib import Path

import click

from cytosae.cli._common import done, find_cells, verb


@verb("atlas", device=False, out="The atlas (a folder) to write.")
@click.argument("index", type=click.Path(path_type=Path))
@click.option("--sae", type=click.Path(path_type=Path), required=True, help="The dictionary of INDEX.")
@click.option(
    "--cells", type=click.Path(path_type=Path), help="The table INDEX was made over. [default: the one beside it]"
)
@click.option("--clusters", type=click.IntRange(2), default=24, show_default=True, help="Clusters of concepts.")
@click.option("--neighbours", type=click.IntRange(1), default=10, show_default=True, help="Nearest concepts kept.")
def command(index: Path, sae: Path, cells: Path | None, clusters: int, neighbours: int, out: Path, seed: int) -> None:
    """Lay the concepts of INDEX out on a map, with neighbours, clusters and suggested captions."""
    from cytosae.cells import read_cells
    from cytosae.concepts import ConceptIndex, make_atlas
    from cytosae.sae import load_sae

    opened = ConceptIndex(index)
    table = read_cells(find_cells(cells, index, opened.manifest["inputs"]["cells"]))
    made = make_atlas(opened, load_sae(sae), table, out, n_clusters=clusters, n_neighbours=neighbours, seed=seed)
    done(f"Wrote {out}: {len(made):,} concepts in {made['cluster'].nunique()} clusters; the captions are suggestions.")
