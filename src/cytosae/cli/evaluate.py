"""``cytosae evaluate``."""

from __future__ import annotations

from pathlib import Path

import click

from cytosae.cli._common import done, verb, where_option


@verb("evaluate", device=False, out="The folder of scorecard.json and scorecard.html to write.")
@click.argument("target", metavar="SAE_OR_INDEX", type=click.Path(path_type=Path))
@click.option(
    "--cells", type=click.Path(path_type=Path), help="The table of cells. [default: the one beside the index]"
)
@click.option("--tokens", multiple=True, type=click.Path(path_type=Path),
              help="Their tokens; repeatable. [default: those beside the index]")  # fmt: skip
@click.option("--sae", "saes", multiple=True, type=click.Path(path_type=Path),
              help="A further dictionary for the front over sparsity, or the index's own where it does not lie beside it; repeatable.")  # fmt: skip
@click.option(
    "--frozen",
    type=click.Path(path_type=Path),
    help="A dictionary fitted with --set decoder=frozen --set start=tied, as a control.",
)
@click.option(
    "--train-frozen", is_flag=True, help="Train that control now, by the dictionary's own recipe; kept for later."
)
@click.option("--parts", default="", metavar="NAME,NAME", help="Only these parts. [default: all]")
@click.option("--fast", is_flag=True, help="Fewer cells, draws and repeats: a first look.")
@click.option("--open-test", is_flag=True, help="Score the closed test split of WBCAtt; recorded in the scorecard.")
@click.option("--weights", type=click.Path(path_type=Path), help="Weight file of the backbone, where it came from one.")
@where_option
def command(
    target: Path, cells: Path | None, tokens: tuple[Path, ...], saes: tuple[Path, ...], frozen: Path | None, train_frozen: bool,
    parts: str, fast: bool, open_test: bool, weights: Path | None, where: tuple[str, ...], out: Path, seed: int,
) -> None:  # fmt: skip
    """Score a dictionary beside its controls: raw dimensions, principal components, random directions.

    SAE_OR_INDEX is an SAE folder, or a concept index beside the cells, tokens and dictionary it was made from. Concepts are
    chosen on one part of the cells and scored on another. Interrupted, it goes on from the last whole part when called
    again.
    """
    from cytosae.evaluation import SECTIONS, chosen_sections, make_scorecard, open_context
    from cytosae.reports import write_scorecard_page

    asked = [p.strip() for p in parts.split(",") if p.strip()]
    chosen_sections(SECTIONS, asked)
    context = open_context(
        target, out, cells=cells, tokens=tokens, more=saes, frozen=frozen, train_frozen_decoder=train_frozen, where=where,
        weights=weights, open_test=open_test, fast=fast, seed=seed,
    )  # fmt: skip
    card = make_scorecard(context, SECTIONS, asked)
    write_scorecard_page(out / "scorecard.html", card)
    verdicts = [c["verdict"] for s in card["sections"] for c in s.get("comparisons", ())]
    left = f"; skipped: {', '.join(card['skipped'])}" if card["skipped"] else ""
    done(
        f"Wrote {out / 'scorecard.html'}: {len(card['sections'])} parts, {len(verdicts)} comparisons, better than every control "
        f"in {verdicts.count('better')}, worse than one in {verdicts.count('worse')}{left}."
    )
