"""``cytosae export``."""

from __future__ import annotations

from pathlib import Path

import click

from cytosae.cli._common import done, verb


@verb("export", compute=False, out="The folder to write.")
@click.argument("sae", type=click.Path(path_type=Path))
@click.option("--to", required=True, type=click.Choice(["saelens", "huggingface"]), help="The layout to write.")
@click.option("--title", help="Heading of the model card (huggingface). [default: the folder's name]")
@click.option("--license", "licence", default="unknown", show_default=True,
              help="Licence in the model card, as the hub writes it: apache-2.0, mit, other ...")  # fmt: skip
def command(sae: Path, to: str, title: str | None, licence: str, out: Path) -> None:
    """Write the dictionary SAE (a folder) in the layout of SAELens, or as a Hugging Face model folder with a card."""
    from cytosae.sae.formats import export_sae

    export_sae(sae, out, to, title=title, licence=licence)
    names = ", ".join(sorted(path.name for path in out.iterdir()))
    done(f"Wrote {out}: {names}.")
