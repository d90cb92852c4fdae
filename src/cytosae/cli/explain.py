"""``cytosae explain``."""

from __future__ import annotations

from pathlib import Path

import click

from cytosae._errors import UsageError
from cytosae.cli._common import chosen_sae, done, verb


@verb("explain", out="The folder for the pictures and explain.json.")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--sae", type=click.Path(path_type=Path), help="The dictionary (an SAE folder). [default: the bundled one]"
)
@click.option(
    "--index",
    type=click.Path(path_type=Path),
    help="A concept index: ranks by rarity too, and says what is known of each concept. [default: the bundled one's]",
)
@click.option("--boxes", type=click.Path(path_type=Path),
              help="IMAGES is one smear field: its cells, x0,y0,x1,y1 in pixels a row (CSV or JSON).")  # fmt: skip
@click.option("--box-factor", type=float, default=1.3, show_default=True,
              help="Side of the square around a box, as a multiple of its longer side.")  # fmt: skip
@click.option("--force", is_flag=True, help="Also explain what does not look like a single blood cell.")
@click.option("--weights", type=click.Path(path_type=Path), help="Weight file of the backbone, where it came from one.")
@click.option("--concepts", type=click.IntRange(1, 64), default=7, show_default=True, help="Concepts an image.")
def command(
    images: tuple[Path, ...], sae: Path | None, index: Path | None, boxes: Path | None, box_factor: float, force: bool,
    weights: Path | None, concepts: int, out: Path, device: str, seed: int,
) -> None:  # fmt: skip
    """Show which concepts each of IMAGES (files or folders) carries, and where: one picture an image, and explain.json.

    What does not look like a single blood cell is left out, and the last line says so; with another backbone or block than the
    bundled dictionary's that is not judged. Interrupted, it goes on where it stopped when called again.
    """
    from cytosae.concepts import ConceptIndex, backbone_of, load_bundle
    from cytosae.reports import explain_files, subjects_of
    from cytosae.sae import is_bundled, load_sae

    subjects = subjects_of(images, boxes, box_factor)
    dictionary = load_sae(chosen_sae(sae, "explain"), device=device)
    bundle = load_bundle() if is_bundled(dictionary.hash) else None
    known = ConceptIndex(index) if index else bundle.index if bundle else None
    if known and known.manifest["inputs"].get("sae") not in (None, dictionary.hash):
        raise UsageError(
            f"{index} is not an index of {sae or 'the bundled dictionary'}; give the dictionary it was made with."
        )
    backbone, layer = backbone_of(dictionary, device, weights)
    made = explain_files(
        subjects, out, dictionary, backbone, layer, index=known, reference=bundle.reference if bundle else None,
        n_concepts=concepts, force=force,
    )  # fmt: skip
    text = f"Wrote {out}: {made.count('picture')} pictures and explain.json"
    if made.count("refused"):
        text += f"; {made.count('refused')} not like a single blood cell, not explained (--force explains them)"
    if made.count("unreadable"):
        text += f"; {made.count('unreadable')} could not be read"
    if made.count("picture") and not made.count("unusual"):
        text += (
            "; whether they show single blood cells was not judged (only the backbone of the bundled dictionary can)"
        )
    done(text + ".")
