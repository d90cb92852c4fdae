"""``cytosae fit``."""

from __future__ import annotations

from pathlib import Path

import click

from cytosae.cli._common import done, find_cells, verb


@verb("fit", out="The SAE folder to write.")
@click.argument("tokens", type=click.Path(path_type=Path))
@click.option(
    "--cells",
    type=click.Path(path_type=Path),
    help="The cells.parquet the tokens were made from. [default: the one beside TOKENS]",
)
@click.option("--recipe", default="default", show_default=True, help="default, small or relu-l1.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override one field of the recipe; repeatable."
)
@click.option(
    "--where",
    multiple=True,
    metavar="COLUMN=VALUE",
    help="Cells to train on; repeatable. [default: split=train where the table has that split, else all]",
)
@click.option(
    "--heldout",
    multiple=True,
    metavar="COLUMN=VALUE",
    help="Cells for the final metrics. [default: those of the same data sets that are not trained on]",
)
def command(
    tokens: Path, cells: Path | None, recipe: str, settings: tuple[str, ...], where: tuple[str, ...], heldout: tuple[str, ...],
    out: Path, device: str, seed: int,
) -> None:  # fmt: skip
    """Train a sparse autoencoder on the patch tokens in TOKENS (a token store).

    Interrupted, it goes on from its last checkpoint when called again.
    """
    from cytosae.cells import read_cells
    from cytosae.tokens import TokenStore
    from cytosae.training import fit, override

    chosen = override(recipe, settings)
    store = TokenStore(tokens)
    table = read_cells(find_cells(cells, tokens, store.manifest["inputs"]["cells"]))
    if not where and (table.ok["split"] == "train").any():
        where = ("split=train",)
        if not heldout:
            trained_on = sorted(table.ok[table.ok["split"] == "train"]["dataset"].dropna().unique())
            rest = table.ok[(table.ok["split"] != "train") & table.ok["dataset"].isin(trained_on)]
            heldout = ("split!=train", f"dataset={','.join(trained_on)}") if len(rest) else ()
    sae = fit(store, table, chosen, out, seed=seed, where=where, heldout=heldout, device=device)
    metrics = sae.info["metrics"]
    text = f"Wrote {out}: {sae.n_latents:,} latents trained on {sae.info['n_cells_train']:,} cells"
    if metrics:
        text += (
            f"; on {sae.info['n_cells_heldout']:,} other cells explained variance {metrics['explained_variance']:.3f}, "
            f"{metrics['l0']:.1f} latents a patch, {metrics['dead_share']:.1%} dead"
        )
    done(text + ".")
