"""``cytosae demo``."""

from __future__ import annotations

from pathlib import Path

import click

from cytosae._errors import CytosaeError
from cytosae.cli._common import done, precision, verb

#: Seen by the dictionary; and the two sets of cells it never sees.
TRAIN, HELDOUT, MARROW = ("split=train",), ("split=test", "dataset=acevedo_pbc"), ("dataset=bmc_marrow",)


@verb("demo", out="The run folder to write.")
@click.option(
    "--cells",
    "source",
    type=click.Path(path_type=Path),
    help="Another image parquet in place of the bundled one, with the same columns.",
)
@click.option("--recipe", default="small", show_default=True, help="Recipe of the dictionary.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override one field of the recipe; repeatable."
)
def command(source: Path | None, recipe: str, settings: tuple[str, ...], out: Path, device: str, seed: int) -> None:
    """Run every stage on the bundled real cells, from pixels to report.html.

    Nothing is precomputed. Interrupted, it goes on from the last whole artifact when called again.
    """
    from cytosae._progress import say
    from cytosae.backbones import load_backbone
    from cytosae.cells import build_cells, bundled_path
    from cytosae.concepts import index_concepts
    from cytosae.patients import ClassifyConfig, DifferentialConfig, packaged_specs, simulate_cohort, write_patients
    from cytosae.reports import write_fit_page, write_report
    from cytosae.tokens import extract_tokens
    from cytosae.training import fit, override

    chosen = override(recipe, settings)
    say("CytoSAE demo: cells, tokens, dictionary, concepts, patients, report. Research use only.")
    cells = build_cells(source or bundled_path(), out / "cells.parquet")
    backbone = load_backbone("dinov2-s", precision=precision("auto", device), device=device)
    store = extract_tokens(cells, backbone, out / "tokens")
    sae = fit(store, cells, chosen, out / "sae", seed=seed, where=TRAIN, heldout=HELDOUT, device=device)
    write_fit_page(out / "sae", sae)
    for name, where in (("index", HELDOUT), ("index-train", TRAIN), ("index-marrow", MARROW)):
        index_concepts(cells, sae, out / name, store=store, where=where, cells_matrix=True, device=device)
    try:
        cohort = simulate_cohort(packaged_specs()["demo"], cells, out / "cohort.parquet", seed=seed)
    except CytosaeError as error:
        if source is None:
            raise
        say(f"patients: left out, since the cells given are not enough for them ({error})")
    else:
        index = index_concepts(cohort, sae, out / "index-cohort", store=store, cells_matrix=True, device=device)
        write_patients(
            index, cohort, out / "patients", store=store, sae=out / "sae", sae_cells=cells,
            classification=ClassifyConfig(seed=seed, models=("mean_tokens", "composition", "majority"), n_concepts=()),
            comparison=DifferentialConfig(seed=seed),
        )  # fmt: skip
    page = write_report(out, seed=seed)
    done(f"Wrote {page.resolve()} ({page.stat().st_size / 1e6:.1f} MB): open it in a browser.")
