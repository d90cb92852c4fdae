"""``cytosae compare``."""

from __future__ import annotations

from pathlib import Path

import click

from cytosae.cli._common import done, verb


@verb("compare", compute=False, out="The comparison (a folder) to write.")
@click.argument("indices", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--name", "names", multiple=True, help="Name of each set, in order. [default: the folders' names]")
def command(indices: tuple[Path, ...], names: tuple[str, ...], out: Path) -> None:
    """Lay INDICES of one dictionary over several sets of cells side by side.

    Writes how often, how strongly and for which label each concept is active in each set, its exemplars from each, how well the
    sets agree, and a picture.
    """
    import json

    from cytosae.concepts import ConceptIndex, compare_indices

    table = compare_indices([ConceptIndex(path) for path in indices], out, names)
    pairs = json.loads((out / "compare.json").read_text("utf-8"))["pairs"]
    first = pairs[0]
    shared = first["jaccard"]["0.001"]
    said = "no concept is active in 1 of 1,000 cells" if shared is None else f"Jaccard {shared:.2f} at frequency 0.001"
    done(f"Wrote {out}: {len(table):,} concepts on {len(indices)} sets; {' and '.join(first['sets'])}: {said}.")
