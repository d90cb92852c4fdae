"""``cytosae patients`` and ``cytosae patients predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import click

from cytosae.cli._common import chosen_sae, done, find_cells, verb


@verb("patients", device=False, out="The folder of profiles, differential concepts, classification and model to write.")
@click.argument("index", type=click.Path(path_type=Path))
@click.option("--target", default="diagnosis", show_default=True, help="Column of the cells to tell apart.")
@click.option(
    "--cells",
    type=click.Path(path_type=Path),
    help="The cohort's table, over which INDEX was made. [default: the one beside INDEX]",
)
@click.option("--tokens", type=click.Path(path_type=Path), help="Tokens of these cells, for the models made of tokens.")
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
@click.option("--fixed-folds", type=click.Path(path_type=Path),
              help="Folds from a file, in place of drawn ones: a CSV patient,fold or patient,set, or the folder of the published "
              "folds of AML_Hehr.")  # fmt: skip
@click.option("--models", default="all", show_default=True, metavar="NAME,...",
              help="Models beside the concept profile: all, none (nor few concepts), or some of the names in classification.json.")  # fmt: skip
@click.option("--exclude", type=click.Path(path_type=Path),
              help="technical.parquet of 'cytosae evaluate': concepts with a flag in it are neither tested nor fitted.")  # fmt: skip
@click.option("--block", multiple=True, metavar="COLUMN",
              help="Compare diagnoses within the values of this column of the patients (batch, centre, sex, age); repeatable.")  # fmt: skip
@click.option("--pairwise", is_flag=True, help="Compare every diagnosis with every other, not with the rest.")
@click.option(
    "--layer", metavar="NAME", help="Compare a layer of the profiles ('max' for rare cells). [default: share of cells]"
)
def describe(
    index: Path, target: str, cells: Path | None, tokens: Path | None, sae: Path | None, sae_cells: Path | None, folds: int,
    repeats: int, quantile: float | None, fixed_folds: Path | None, models: str, exclude: Path | None, block: tuple[str, ...],
    pairwise: bool, layer: str | None, out: Path, seed: int,
) -> None:  # fmt: skip
    """Describe patients by the concepts of their cells, compare diagnoses, and measure how well they are told apart.

    INDEX is a concept index over the cohort's cells, made with --cells-matrix. What it learns judges new patients:

    \b
    cytosae patients predict PATIENTS INDEX --out PAGES
    """
    from cytosae.cells import read_cells
    from cytosae.concepts import ConceptIndex
    from cytosae.patients import (
        MODELS,
        ClassifyConfig,
        DifferentialConfig,
        ProfileRule,
        read_fixed_folds,
        write_patients,
    )
    from cytosae.sae import is_bundled
    from cytosae.tokens import TokenStore

    sizes = () if models == "none" else ClassifyConfig.n_concepts
    rule = ProfileRule() if quantile is None else ProfileRule(quantile=quantile)
    chosen = {"all": MODELS, "none": ("majority",)}.get(models, (*filter(None, models.split(",")), "majority"))
    opened = ConceptIndex(index)
    if sae is not None or is_bundled(opened.manifest["inputs"].get("sae")):
        sae = chosen_sae(sae, "patients")
    table = read_cells(find_cells(cells, index, opened.manifest["inputs"]["cells"]))
    made = write_patients(
        opened, table, out, store=TokenStore(tokens) if tokens else None, sae=sae,
        sae_cells=read_cells(sae_cells) if sae_cells else None, target=target,
        classification=ClassifyConfig(n_folds=folds, n_repeats=repeats, seed=seed, rule=rule, models=chosen,
                                      n_concepts=sizes),
        comparison=DifferentialConfig(seed=seed, block=block, pairwise=pairwise, layer=layer), exclude=exclude,
        fixed=read_fixed_folds(fixed_folds) if fixed_folds else None,
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


@verb("predict", out="The folder of pages and predictions.json to write.")
@click.argument("patients", type=click.Path(path_type=Path))
@click.argument("index", type=click.Path(path_type=Path))
@click.option("--cells", type=click.Path(path_type=Path),
              help="The new cells' table, over which INDEX was made. [default: the one beside INDEX]")  # fmt: skip
@click.option("--sae", type=click.Path(path_type=Path),
              help="The dictionary, to show the patches. [default: the bundled one, where INDEX was made with it]")  # fmt: skip
@click.option("--named-in", type=click.Path(path_type=Path),
              help="An index by the same dictionary beside which the names of concepts lie, as that of the training cohort. [default: INDEX]")  # fmt: skip
@click.option("--tokens", type=click.Path(path_type=Path),
              help="Tokens of the new cells, to show the patches; computed for the few cells shown if not given.")  # fmt: skip
@click.option("--weights", type=click.Path(path_type=Path), help="Weight file of the backbone, where it came from one.")
@click.option("--reference", metavar="DIAGNOSIS",
              help="Training patients (controls) to compare new ones with. [default: all]")  # fmt: skip
def predict(
    patients: Path, index: Path, cells: Path | None, sae: Path | None, tokens: Path | None, weights: Path | None,
    reference: str | None, named_in: Path | None, out: Path, device: str, seed: int,
) -> None:  # fmt: skip
    """Judge new patients by the model in PATIENTS (what 'cytosae patients' wrote), a page for each.

    INDEX is a concept index over the new cells by the same dictionary, made with --cells-matrix. Research use only.
    """
    from cytosae.cells import read_cells
    from cytosae.concepts import ConceptIndex
    from cytosae.reports import write_predictions
    from cytosae.sae import is_bundled
    from cytosae.tokens import TokenStore

    opened = ConceptIndex(index)
    if sae is not None or is_bundled(opened.manifest["inputs"].get("sae")):
        sae = chosen_sae(sae, "patients predict")
    table = read_cells(find_cells(cells, index, opened.manifest["inputs"]["cells"]))
    found = write_predictions(
        patients, opened, table, out, sae=sae, store=TokenStore(tokens) if tokens else None, weights=weights,
        reference=reference, named_in=named_in, device=device,
    )  # fmt: skip
    first = found[0]
    warned = sum(bool(p.warnings) for p in found)
    done(
        f"Wrote {out}: {len(found)} patient{'s' * (len(found) != 1)} ({first.patient}: {first.predicted}, "
        f"{_share(first.probabilities.max())}{' ...' * (len(found) > 1)}), {warned} with a warning. Research use only."
    )


def _share(probability: float) -> str:
    return ">99%" if 0.995 <= probability < 1 else f"{probability:.0%}"


class _Patients(click.Command):
    """The verb itself, or ``predict`` where the first argument names it (an index of that name: ``./predict``)."""

    words: ClassVar[dict[str, click.Command]] = {"predict": predict}

    def make_context(self, info_name: str | None, args: list[str], parent: click.Context | None = None,
                     **extra: Any) -> click.Context:  # fmt: skip
        if args and args[0] in self.words:
            return self.words[args[0]].make_context(f"{info_name} {args[0]}", args[1:], parent, **extra)
        return describe.make_context(info_name, args, parent, **extra)


command = _Patients("patients", help=describe.help, params=describe.params, callback=describe.callback)
