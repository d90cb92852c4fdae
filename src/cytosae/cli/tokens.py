"""``cytosae tokens``."""

from __future__ import annotations

from pathlib import Path

import click

from cytosae.cli._common import done, precision, verb, where_option


@verb("tokens", out="The token store (a folder) to write.")
@click.argument("cells", type=click.Path(path_type=Path))
@click.option("--backbone", default="dinov2-s-blood", show_default=True, help="A name that 'cytosae backbones' lists.")
@click.option(
    "--weights", type=click.Path(path_type=Path), help="Your weight file of that backbone; nothing in it is executed."
)
@click.option("--heads", type=click.IntRange(1), help="Attention heads, where the file's width does not tell them.")
@click.option(
    "--image-size", type=click.IntRange(1), help="Pixels a side, where the network allows another than its own."
)
@click.option(
    "--layer",
    default="-2",
    show_default=True,
    metavar="BLOCK[,BLOCK...]",
    help="Block whose output is kept; -2 is the last but one. 5,8,10 keeps three side by side, 5x4,8x2,10x1 with factors.",
)
@click.option("--precision", "wanted", type=click.Choice(["float32", "bfloat16", "auto"]), default="float32", show_default=True,
              help="Of the forward pass; auto takes bfloat16 where the processor multiplies in it.")  # fmt: skip
@click.option("--store", type=click.Choice(["float16", "bfloat16", "float32"]), default="float16", show_default=True,
              help="Type in which tokens are kept.")  # fmt: skip
@click.option("--keep", default="all", show_default=True, metavar="KINDS",
              help="Kinds of token to keep: all, or class, register and patch joined by +.")  # fmt: skip
@click.option("--patches", type=click.IntRange(1), help="Keep so many random patches of each cell, chosen by --seed; "
              "enough to train on, too few for maps.")  # fmt: skip
@click.option("--views", type=click.IntRange(1, 8), default=1, show_default=True, help="Also keep the cells mirrored (2) and "
              "turned (up to 8): more to train on. All other verbs read the cells as they are.")  # fmt: skip
@click.option("--compile", "compiled", type=click.Choice(["auto", "on", "off"]), default="auto", show_default=True,
              help="Compile the forward pass; auto does so where the work left is long enough to pay for it.")  # fmt: skip
@where_option
def command(
    cells: Path,
    backbone: str,
    weights: Path | None,
    heads: int | None,
    image_size: int | None,
    layer: str,
    wanted: str,
    store: str,
    keep: str,
    patches: int | None,
    views: int,
    compiled: str,
    where: tuple[str, ...],
    out: Path,
    device: str,
    seed: int,
) -> None:
    """Run a frozen backbone over CELLS (a cells.parquet) and keep the tokens of one block.

    Interrupted, it goes on from the last whole shard when called again.
    """
    from cytosae.backbones import load_backbone, parse_layer
    from cytosae.cells import read_cells
    from cytosae.tokens import extract_tokens, parse_keep

    kinds, blocks = parse_keep(keep), parse_layer(layer)
    table = read_cells(cells)
    network = load_backbone(
        backbone,
        weights=weights,
        precision=precision(wanted, device),
        device=device,
        heads=heads,
        image_size=image_size,
    )
    tokens = extract_tokens(
        table,
        network,
        out,
        layer=blocks,
        store=store,
        where=where,
        keep=kinds,
        patches=patches,
        views=views,
        seed=seed,
        compile=compiled,
    )
    left = f"; {table.n_quarantined} quarantined cells have none" if table.n_quarantined else ""
    seen = f" in {views} views" if views > 1 else ""
    done(
        f"Wrote {out}: tokens of {tokens.n_rows:,} cells{seen}, {tokens.n_tokens} x {tokens.d_in} each, {tokens.dtype}{left}."
    )
