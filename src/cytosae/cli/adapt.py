"""``cytosae adapt``."""

from __future__ import annotations

from pathlib import Path

import click

from cytosae.cli._common import done, precision, verb, where_option


@verb("adapt", out="The folder of the adapted backbone to write.")
@click.argument("cells", type=click.Path(path_type=Path))
@click.option(
    "--backbone", default="dinov2-s", show_default=True, help="Where it starts: a name that 'cytosae backbones' lists."
)
@click.option("--weights", type=click.Path(path_type=Path), help="Its weight file; nothing in it is executed.")
@click.option("--heads", type=click.IntRange(1), help="Attention heads, where the file's width does not tell them.")
@click.option(
    "--image-size", type=click.IntRange(1), help="Pixels a side, where the network allows another than its own."
)
@click.option("--layer", type=int, default=-2, show_default=True, metavar="BLOCK",
              help="The last block that is trained: the last one whose tokens you will use.")  # fmt: skip
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE",
              help="Override one number of the training (steps, batch, lr, frozen, views ...); repeatable.")  # fmt: skip
@click.option("--precision", "wanted", type=click.Choice(["float32", "bfloat16", "auto"]), default="auto", show_default=True,
              help="Of products; auto takes bfloat16 where the processor multiplies in it.")  # fmt: skip
@where_option
def command(
    cells: Path, backbone: str, weights: Path | None, heads: int | None, image_size: int | None, layer: int,
    settings: tuple[str, ...], wanted: str, where: tuple[str, ...], out: Path, device: str, seed: int,
) -> None:  # fmt: skip
    """Adapt the later blocks of a backbone to CELLS (a cells.parquet), without looking at labels.

    Afterwards the stain, camera and position of a cell change its tokens less. Use it as --backbone adapted --weights OUT.
    Interrupted, it goes on from its last checkpoint when called again. OUT/views.jpg shows what the network was shown.
    """
    from cytosae.backbones import load_backbone
    from cytosae.cells import read_cells
    from cytosae.training import replace
    from cytosae.training.adapt import Adaptation, adapt

    config: Adaptation = replace(Adaptation(), settings, "An adaptation")
    table = read_cells(cells)
    network = load_backbone(backbone, weights=weights, device=device, heads=heads, image_size=image_size)
    found = adapt(
        table,
        network,
        out,
        config,
        layer=layer,
        where=where,
        seed=seed,
        bfloat16=precision(wanted, device) == "bfloat16",
    )
    done(
        f"Wrote {out}: two stains of one place are {found['stain']:.3f} of the patches' variance apart ({found['stain_before']:.3f} "
        f"before), which spreads over {found['n_dimensions']:.0f} dimensions ({found['n_dimensions_before']:.0f} before); use it "
        f"with --backbone adapted --weights {out}."
    )
