"""``cytosae names``."""

from __future__ import annotations

from pathlib import Path

import click

from cytosae._errors import UsageError
from cytosae.cli._common import done, verb


@verb("names", compute=False)
@click.argument("index", type=click.Path(path_type=Path))
@click.option("--set", "settings", multiple=True, metavar="LATENT=NAME",
              help="Name a concept; repeatable. An empty name takes the name away.")  # fmt: skip
@click.option("--from", "source", type=click.Path(path_type=Path),
              help="Names from a CSV file with the columns latent and name, and perhaps who, when and note.")  # fmt: skip
@click.option("--by", "who", default="", metavar="WHO", help="Who gives these names.")
@click.option("--note", default="", help="Why, for the names of --set.")
@click.option("--list", "listed", is_flag=True, help="Print the names as CSV (the default where none are given).")
@click.option(
    "--out", type=click.Path(path_type=Path), help="The table of names. [default: names.parquet beside INDEX]"
)
def command(
    index: Path, settings: tuple[str, ...], source: Path | None, who: str, note: str, listed: bool, out: Path | None
) -> None:
    """Name concepts of INDEX, with who says so and when, or list the names.

    Names lie in a table beside the index, which itself does not change. Explanations and reports show them. All that was ever
    said stays in the table; the last name of a concept counts.
    """
    from cytosae.concepts import ConceptIndex, Name, add_names, name_list, names_path, read_name_list, read_names
    from cytosae.sae import bundled_folder

    opened = ConceptIndex(index)
    path = out or names_path(opened)
    if out is None and (settings or source) and index.resolve().is_relative_to(bundled_folder().resolve()):
        raise UsageError(
            "The bundled index lies in the installed package; say where its names go with --out names.parquet."
        )
    if listed or not (settings or source):
        if settings or source:
            raise UsageError("--list only shows the names; leave out --set and --from.")
        if not path.exists():
            raise UsageError(
                f"Nobody has named a concept of {index} yet (no {path}); name one with --set 12='...' --by WHO."
            )
        print(name_list(read_names(path, opened)), end="")
        return
    names = []
    for setting in settings:
        latent, equals, name = setting.partition("=")
        if not equals or not latent.strip().isdecimal():
            raise UsageError(f"--set {setting!r} is not LATENT=NAME; write it as 12='eosinophilic granules'.")
        if not who.strip():
            raise UsageError("A name needs someone who gave it; say who with --by.")
        names.append(Name(int(latent), name, who, note))
    if source is not None:
        names += read_name_list(source, who)
    if not names:
        raise UsageError(f"{source} holds no names; add rows to it.")
    add_names(path, opened, names)
    known = len(read_names(path, opened))
    done(f"Wrote {path}: {len(names)} names added; {known:,} of {len(opened.concepts):,} concepts have a name.")
