"""The paper (arXiv 2507.12464) from the data sets on your disk: two dictionaries trained on MLL23, shown on every set there is.

Usage: ``python scripts/reproduce_paper.py --mll23 FOLDER --dinobloom FILE [--acevedo FOLDER] [--matek19 FOLDER] [--bmc FOLDER]
[--aml-hehr FOLDER [--folds FOLDER]] [--out runs/paper]``, or ``make reproduce-paper MLL23=... DINOBLOOM=... [...]``

Writes cells, tokens, dictionaries, indices and comparisons by the verbs of the command line (each goes on where it was stopped), then
the figures of the paper and ``paper.md``: its numbers beside these. ``--set default:key=value`` changes a recipe (short runs);
``--cells NAME=TABLE`` takes a finished cells.parquet in the place of a data set's folder. Research use only.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _paper_figures import barcodes, disease_scatter, exemplars, kept_concepts
from _stages import Stages, cost_table
from cytosae import ConceptIndex, CytosaeError, TokenStore, load_sae, read_cells
from cytosae.concepts import active_jaccard, draw_landscape, landscape_numbers
from cytosae.concepts._compare import agreement
from cytosae.storage import commit_file, write_json

#: Name of a set -> its title; the first one trains.
SETS = {"mll23": "MLL23", "acevedo": "Acevedo", "matek19": "Matek19", "bmc": "BMC (marrow)", "aml-hehr": "AML_Hehr"}
#: Recipe -> the semantics under which it is counted.
RECIPES = {"cytosae-2025": "cytosae-2025", "default": "default"}
#: What the paper or its released statistics say (docs/released.md has how those were read).
PAPER: dict[str, dict[str, float | str]] = {
    "concepts with mean activation > 0.001, MLL23": {"": 3801.0},
    "share of idle latents, MLL23": {"": 0.92},
    "latents active in a cell, lowest to highest set": {"": "1,850 to 2,830"},
    "Jaccard with MLL23": {"acevedo": 0.977, "matek19": 0.920, "bmc": 0.940, "aml-hehr": 0.980},
    "AML_Hehr, weighted F1 of the L2 profile (folds not published)": {"": "0.832 +/- 0.044"},
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, then draw and write the table."""
    given = parse(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    stages = Stages(given.out)
    tables = {name: cells_of(name, given, stages) for name in SETS if source_of(name, given)}
    weights = ["--backbone", given.backbone, *(["--weights", given.dinobloom] if given.dinobloom else [])]
    for name, table in tables.items():
        made = given.out / f"tokens-{name}"
        stages(f"tokens {name}", made, "tokens", table, *weights, "--precision", given.precision, *threads(given), "--out", made,
               n=n_cells(table))  # fmt: skip
    results = {recipe: one_recipe(recipe, tables, given, stages) for recipe in RECIPES}
    titles = {name: given.titles[name] for name in tables}
    record = {
        "sets": {n: n_cells(t) for n, t in tables.items()},
        "titles": titles,
        "recipes": results,
        "stages": stages.record,
    }
    with commit_file(given.out / "paper.json") as temporary:
        write_json(temporary, record)
    with commit_file(given.out / "paper.md") as temporary:
        temporary.write_text(page(record), "utf-8")
    print(f"Wrote {given.out / 'paper.md'}, {given.out / 'paper.json'} and the figures beside them.")


def threads(given: argparse.Namespace) -> list[str]:
    """The option, where it was given."""
    return ["--threads", str(given.threads)] if given.threads else []


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What was given, checked before anything long begins."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, title in SETS.items():
        parser.add_argument(f"--{name}", type=Path, metavar="FOLDER", help=f"{title} as it was published")
    parser.add_argument("--cells", action="append", default=[], metavar="NAME=TABLE", help="a finished table of a set")
    parser.add_argument(
        "--title", action="append", default=[], metavar="NAME=TEXT", help="what stands in place of a set"
    )
    parser.add_argument("--folds", type=Path, help="published folds of AML_Hehr")
    parser.add_argument("--dinobloom", type=Path, metavar="FILE", help="weight file of the backbone")
    parser.add_argument("--backbone", default="dinobloom", help="another backbone")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="RECIPE:KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path("runs/paper"))
    parser.add_argument("--threads", type=int, default=0)
    given = parser.parse_args(arguments)
    for entry in given.cells:
        name, sign, path = entry.partition("=")
        if name not in SETS or not sign:
            parser.error(f"--cells {entry} is not of the form NAME=TABLE with a name of {', '.join(SETS)}.")
        setattr(given, f"table_{name}", Path(path))
    given.titles = dict(SETS)
    for entry in given.title:
        name, sign, text = entry.partition("=")
        if name not in SETS or not (sign and text):
            parser.error(f"--title {entry} is not of the form NAME=TEXT with a name of {', '.join(SETS)}.")
        given.titles[name] = text
    if not source_of("mll23", given):
        parser.error(
            "MLL23 trains the dictionaries; give its folder with --mll23 (or a table with --cells mll23=TABLE)."
        )
    if given.backbone == "dinobloom" and not given.dinobloom:
        parser.error("Give DinoBloom's weight file with --dinobloom, or another backbone with --backbone dinov2-s.")
    for path in [*(source_of(name, given) for name in SETS), given.dinobloom, given.folds]:
        if path and not path.exists():
            parser.error(f"{path} is not there.")
    return given


def source_of(name: str, given: argparse.Namespace) -> Path | None:
    """The folder of a data set, or its finished table; None where it was not given."""
    table: Path | None = getattr(given, f"table_{name}", None)
    folder: Path | None = getattr(given, name.replace("-", "_"))
    return table or folder


def cells_of(name: str, given: argparse.Namespace, stages: Stages) -> Path:
    """The table of a set, made where only its folder was given."""
    finished: Path | None = getattr(given, f"table_{name}", None)
    if finished is not None:
        return finished
    table: Path = given.out / f"cells-{name}.parquet"
    folds = ["--folds", given.folds] if name == "aml-hehr" and given.folds else []
    layout = name.replace("-", "_")
    stages(f"cells {name}", table, "cells", source_of(name, given), "--layout", layout, *folds, "--out", table)
    return table


def n_cells(table: Path) -> int:
    """Cells of a table."""
    return len(read_cells(table).frame)


def one_recipe(recipe: str, tables: dict[str, Path], given: argparse.Namespace, stages: Stages) -> dict[str, Any]:
    """Train on MLL23, index every set, compare, describe patients, draw; the numbers of this recipe."""
    out = given.out / recipe
    out.mkdir(exist_ok=True)
    settings = [v for s in given.settings if s.startswith(f"{recipe}:") for v in ("--set", s.partition(":")[2])]
    trained = tables["mll23"]
    stages(f"fit {recipe}", out / "sae", "fit", given.out / "tokens-mll23", "--cells", trained, "--recipe", recipe, *settings,
           *threads(given), "--out", out / "sae", n=n_cells(trained))  # fmt: skip
    for name, table in tables.items():
        made, matrix = out / f"index-{name}", ["--cells-matrix"] if name == "aml-hehr" else []
        stages(f"index {name} {recipe}", made, "index", table, "--sae", out / "sae", "--tokens", given.out / f"tokens-{name}", "--semantics",
               RECIPES[recipe], *matrix, *threads(given), "--out", made, n=n_cells(table))  # fmt: skip
    indices = {name: ConceptIndex(out / f"index-{name}") for name in tables}
    titles = [given.titles[name] for name in tables]
    first, numbers = indices["mll23"], {name: landscape_numbers(i) for name, i in indices.items()}
    draw_landscape(list(indices.values()), titles).savefig(out / "landscape.png", dpi=130)
    kept_concepts(list(indices.values()), titles).savefig(out / "kept.png", dpi=130)
    stores = {name: TokenStore(given.out / f"tokens-{name}") for name in tables}
    cells = {name: read_cells(table) for name, table in tables.items()}
    exemplars(load_sae(out / "sae"), indices, cells, stores, given.titles).savefig(out / "exemplars.png", dpi=130)
    result: dict[str, Any] = {"landscape": numbers, "metrics": load_sae(out / "sae").info.get("metrics")}
    if len(tables) > 1:
        stages(
            f"compare {recipe}",
            out / "compare",
            "compare",
            *(out / f"index-{n}" for n in tables),
            "--out",
            out / "compare",
        )
        result["jaccard"] = {n: active_jaccard(first, i) for n, i in indices.items() if n != "mll23"}
        result["log_frequency_correlation"] = {
            n: agreement(first, i)["log_frequency_correlation"] for n, i in indices.items() if n != "mll23"
        }
    if "aml-hehr" in tables:
        made, table = out / "patients", tables["aml-hehr"]
        stages(f"patients {recipe}", made, "patients", out / "index-aml-hehr", "--cells", table, "--tokens", given.out / "tokens-aml-hehr",
               "--sae", out / "sae", "--sae-cells", trained, *threads(given), "--out", made, n=n_cells(table))  # fmt: skip
        from cytosae.patients import read_patients

        patients = read_patients(out / "patients")
        barcodes(patients.profiles).savefig(out / "barcodes.png", dpi=130)
        disease_scatter(patients.profiles).savefig(out / "diseases.png", dpi=130)
        result["classification"] = {
            n: m["metrics"]["weighted_f1"] for n, m in patients.classification["models"].items()
        }
    return result


def page(record: dict[str, Any]) -> str:
    """The table of the paper's numbers beside these, and what it cost."""
    of = record["recipes"]
    rows = []
    for what, published in PAPER.items():
        for name, value in published.items():
            ours = [_ours(what, name, of[r]) for r in RECIPES]
            said = (
                f"{value:,.3g}"
                if isinstance(value, float) and value < 1
                else f"{value:,.0f}"
                if isinstance(value, float)
                else value
            )
            rows.append(f"| {what}{f', {SETS[name]}' if name else ''} | {said} | " + " | ".join(ours) + " |")
    lines = [
        "# The paper's numbers beside these", "",
        "Research use only. The paper's dictionary is wider and was trained for longer unless the recipes were left as they are; "
        "its folds of AML_Hehr were not published, so the last line compares two protocols.", "",
        f"| what | paper | {' | '.join(RECIPES)} |", f"| --- | --- | {' | '.join('---' for _ in RECIPES)} |", *rows, "",
        *(line for n, title in record["titles"].items() if title != SETS[n]
          for line in (f"**{SETS[n]} was not given; in its place stand: {title}.**", "")),
        "Cells: " + ", ".join(f"{record['titles'][n]} {count:,}" for n, count in record["sets"].items()) + ".", "", "## Cost", "",
        cost_table(record["stages"]), "",
    ]  # fmt: skip
    return "\n".join(lines)


def _ours(what: str, name: str, result: dict[str, Any]) -> str:
    """One of our numbers, as text; why there is none."""
    land = result["landscape"]
    if what.startswith("concepts with"):
        return f"{land['mll23']['n_above']:,} of {land['mll23']['n_latents']:,}"
    if what.startswith("share of idle"):
        return f"{land['mll23']['idle_share']:.2f}"
    if what.startswith("latents active"):
        active = [one["active_a_cell"] for one in land.values()]
        return f"{min(active):,.0f} to {max(active):,.0f}"
    if what.startswith("Jaccard"):
        value = result.get("jaccard", {}).get(name)
        return "set not given" if value is None else f"{value:.3f}"
    found = result.get("classification", {}).get("concept_profile")
    if found is None:
        return "set not given"
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


if __name__ == "__main__":
    try:
        main()
    except CytosaeError as error:
        sys.exit(f"reproduce_paper: {error}")
