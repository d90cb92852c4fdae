"""``cytosae patients``."""

from __future__ import annotations

from pathlib import Path

import click

from cytosae.cli._common import chosen_sae, done, find_cells, verb


@verb("patients", out="The folder of profiles, differential concepts, classification and model to write.")
@click.argument("index", type=click.Path(path_type=Path))
@click.option("--target", default="diagnosis", show_default=True, help="Column of the cells to tell apart.")
@click.option(
    "--cells",
    type=click.Path(path_type=Path),
    help="The cohort's table, over which INDEX was made. [default: the one beside INDEX]",
)
@click.option(
    "--tokens", type=click.Path(path_type=Path), help="Tokens of these cells, for the baseline of mean tokens."
)
@click.option(
    "--sae",
    type=click.Path(path_type=Path),
    help="The dictionary, to tell whether it was trained on these cells. [default: the bundled one, where INDEX is of it]",
)
@click.option(
    "--sae-cells", type=click.Path(path_type=Path), help="The table it was trained on, where that is another."
)
@click.option(
    "--folds", type=click.IntRange(2, 100), default=5, show_default=True, help="Folds of the cross-validation."
)
@click.option("--repeats", type=click.IntRange(1, 1000), default=5, show_default=True, help="Repetitions of it.")
@click.option("--quantile", type=click.FloatRange(0, 1, max_open=True), default=None, show_default="the recommended one",
              help="A cell carries a concept above this quantile of all cells' values; 0: any activity.")  # fmt: skip
def command(
    index: Path, target: str, cells: Path | None, tokens: Path | None, sae: Path | None, sae_cells: Path | None, folds: int,
    repeats: int, quantile: float | None, out: Path, device: str, seed: int,
) -> None:  # fmt: skip
    """Describe patients by the concepts of their cells, compare diagnoses, and measure how well they are told apart.

    INDEX is a concept index over the cohort's cells, made with --cells-matrix.
    """
    from cytosae.cells import read_cells
    from cytosae.concepts import ConceptIndex
    from cytosae.patients import ClassifyConfig, DifferentialConfig, ProfileRule, write_patients
    from cytosae.sae import is_bundled
    from cytosae.tokens import TokenStore

    rule = ProfileRule() if quantile is None else ProfileRule(quantile=quantile)
    opened = ConceptIndex(index)
    if sae is not None or is_bundled(opened.manifest["inputs"].get("sae")):
        sae = chosen_sae(sae, "patients")
    table = read_cells(find_cells(cells, index, opened.manifest["inputs"]["cells"]))
    made = write_patients(
        opened, table, out, store=TokenStore(tokens) if tokens else None, sae=sae,
        sae_cells=read_cells(sae_cells) if sae_cells else None, target=target,
        classification=ClassifyConfig(n_folds=folds, n_repeats=repeats, seed=seed, rule=rule),
        comparison=DifferentialConfig(seed=seed),
    )  # fmt: skip
    differences, record = made.differential, made.classification
    f1 = record["models"]["concept_profile"]["metrics"]["macro_f1"]
    hits = differences[differences["q"] < 0.05]
    empty = record["patients_without_cells"]
    setting = record["sae_saw_these_cells"]["setting"]
    words = {"better": "better than", "worse": "worse than", "comparable": "comparable to"}
    done(
        f"Wrote {out}: {len(made.profiles):,} {'simulated ' * made.simulated}patients"
        f"{f' ({len(empty)} without usable cells: {empty[0]} ...)' if empty else ''}, "
        f"{hits['latent'].nunique()} of {differences['latent'].nunique()} concepts differ (q < 0.05), "
        f"macro F1 {f1['value']:.2f} ({f1['low']:.2f} to {f1['high']:.2f}), {words[record['verdict']]} the best baseline "
        f"({record['best_baseline'].replace('_', ' ')}); dictionary: {setting}."
    )
