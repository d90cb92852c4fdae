"""The AML table from raw images: cells, tokens, dictionary, index, patients, by the verbs themselves.

Usage: ``make reproduce-aml AML_HEHR=... DINOBLOOM=... [SAE=...] [FOLDS=...] [OUT=runs/aml]``, or
``python scripts/reproduce_aml.py AML_HEHR DINOBLOOM --folds FOLDS [--sae SAE] [--annotations CSV] --out runs/aml``.

``AML_HEHR`` holds ``<diagnosis>/<patient>/*.tif``, ``DINOBLOOM`` is its weight file, ``FOLDS`` the folder of the published
folds (``AML_HEHR/folds`` where not given), ``SAE`` the published checkpoint or an SAE folder; without it a dictionary is trained
on the patients of the published training and validation parts. Where ``AML_HEHR/single_cell_annotations.csv`` lies (or
``--annotations`` names it), the rare cells among those that experts labelled are ranked within their patients. Interrupted, it goes on from where it was when called again.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _stages import Stages

#: The whole cohort, for the extrapolation: images used by the published tables, and patients.
FULL_CELLS, FULL_PATIENTS = 81_214, 189
#: What is printed elsewhere, each under its own protocol.
ELSEWHERE = (
    ("mean-pooled DinoBloom + logistic regression (arXiv 2605.29980)", "balanced accuracy", ".78",
     "the same 43 test patients; training, tuning and averaging of its own"),
    ("CytoSAE barcode + L2 logistic regression (arXiv 2507.12464)", "weighted F1", ".832 +/- .044",
     "folds not published; spread over folds, not an interval; counts divided by another number"),
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every stage that is not done, then write ``aml_table.md`` and ``aml_table.json``; gives the exit status."""
    given = _parse(arguments)
    out: Path = given.out
    folds = given.folds or given.aml_hehr / "folds"
    beside = given.aml_hehr / "single_cell_annotations.csv"
    annotations = given.annotations or (beside if beside.exists() else None)
    for path, what in (
        (given.aml_hehr, "the images"),
        (given.dinobloom, "the weights"),
        (folds, "the published folds"),
        (given.sae, "the published checkpoint or an SAE folder"),
        (annotations, "single_cell_annotations.csv"),
    ):
        if path is not None and not path.exists():
            print(f"reproduce-aml: {path} does not exist; give {what}.", file=sys.stderr)
            return 2
    out.mkdir(parents=True, exist_ok=True)
    run = Stages(out)
    cells, tokens, index = out / "cells.parquet", out / "tokens", out / "index"
    backbone = ["--backbone", "dinobloom", "--weights", given.dinobloom]
    sized = ["--heads", given.heads] if given.heads else []
    shared = ["--threads", given.threads] if given.threads else []
    run("cells", cells, "cells", given.aml_hehr, "--layout", "aml_hehr", "--folds", folds, "--no-page", "--out", cells)
    run("tokens", tokens, "tokens", cells, *backbone, *sized, *shared, "--out", tokens)
    sae = out / "sae"
    if given.sae is None:
        settings = [word for setting in given.settings for word in ("--set", setting)]
        chosen = ["--where", "split=train,val", "--heldout", "split=test"]
        run(
            "fit",
            sae,
            "fit",
            tokens,
            "--cells",
            cells,
            "--recipe",
            given.recipe,
            *settings,
            *chosen,
            *shared,
            "--out",
            sae,
        )
    elif (given.sae / "manifest.json").exists():
        sae = given.sae
    else:
        run("import", sae, "import", "sae", given.sae, "--tokens", tokens, "--out", sae)
    run("index", index, "index", cells, "--sae", sae, "--tokens", tokens, "--cells-matrix", *shared, "--out", index)
    base = ["patients", index, "--cells", cells, "--tokens", tokens, "--sae", sae, *shared]
    run(
        "patients, published folds",
        out / "patients-published",
        *base,
        "--fixed-folds",
        folds,
        "--out",
        out / "patients-published",
    )
    drawn = ["--folds", given.n_folds, "--repeats", given.repeats]
    run("patients, repeated CV", out / "patients-repeated", *base, *drawn, "--out", out / "patients-repeated")
    record = table(out, run.record)
    if annotations is not None:
        record["rare_cells"] = rare_cells(out, index, annotations)
    text = markdown(record)
    from cytosae.storage import commit_file

    for name, content in (("aml_table.json", json.dumps(record, indent=1) + "\n"), ("aml_table.md", text)):
        with commit_file(out / name) as temporary:
            temporary.write_text(content, "utf-8")
    print(text)
    return 0


def table(out: Path, stages: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Both protocols side by side, what is printed elsewhere, and the cost, measured and extrapolated."""
    from cytosae.cells import read_cells

    ok = read_cells(out / "cells.parquet").ok
    record: dict[str, Any] = {"n_cells": len(ok), "n_patients": int(ok["patient"].nunique()), "protocols": {}}
    for name in ("published", "repeated"):
        found = json.loads((out / f"patients-{name}" / "classification.json").read_text("utf-8"))
        rows = {}
        for model in found["model_order"]:
            entry = found["models"][model]
            by_fold = entry.get("by_fold", [])
            rows[model] = {
                **{m: entry["metrics"][m] for m in ("balanced_accuracy", "weighted_f1", "macro_f1", "auroc")},
                "mean_over_folds": {m: sum(f[m] for f in by_fold) / len(by_fold) for m in ("balanced_accuracy", "weighted_f1")}
                if by_fold else None,
                "ece": entry["calibration"]["calibrated"]["ece"],
                "concepts_against_it": found["differences"].get(model, {}).get("balanced_accuracy"),
            }  # fmt: skip
        record["protocols"][name] = {
            "protocol": {k: found["protocol"].get(k) for k in ("method", "n_folds", "n_repeats", "chosen_on", "n_patients",
                         "patients_by_class", "patients_left_out", "n_trained_on_only", "folds_from")},
            "dictionary": found["sae_saw_these_cells"], "models": rows, "absent": found["absent"],
            "by_n_concepts": found["by_n_concepts"],
        }  # fmt: skip
    record["elsewhere"] = [dict(zip(("what", "score", "value", "protocol"), row, strict=True)) for row in ELSEWHERE]
    record["stages"] = stages
    record["full_run"] = extrapolate(stages, len(ok), record["n_patients"])
    return record


def rare_cells(out: Path, index: Path, annotations: Path) -> list[dict[str, Any]]:
    """How high the rare kinds of expert-labelled cells rank within their patients: one row a kind.

    Two rankings: by a concept chosen on the other patients, and by what each cell adds to its patient's own diagnosis in the
    model of all patients, which has seen that diagnosis but no label of a cell.
    """
    import numpy as np

    from cytosae.cells import read_cells
    from cytosae.patients import (
        concepts_chosen_elsewhere,
        driving_cells,
        load_model,
        read_annotations,
        read_cohort,
        score_annotations,
    )

    cells, labels = read_cells(out / "cells.parquet"), read_annotations(annotations)
    cohort, model = read_cohort(index, cells), load_model(out / "patients-repeated")
    by_concept = concepts_chosen_elsewhere(labels, cells, cohort)
    driven = np.full(len(cohort.owner), np.nan)
    for patient, diagnosis in zip(cohort.patients["patient"].astype(str), cohort.classes, strict=True):
        if patient in set(by_concept["patient"]):
            found = driving_cells(model, cohort, patient, str(diagnosis))
            driven[found["row"]] = found["contribution"]
    by_model = score_annotations(labels, cells, cohort, {"model": driven})
    rows = []
    for kind, mine in by_concept.groupby("annotation"):
        of_model = by_model[by_model["annotation"] == kind]
        rows.append({
            "annotation": kind, "n_patients": len(mine), "n_cells": int(mine["n_positive"].sum()),
            "average_precision_by_concept": float(mine["average_precision"].mean()),
            "average_precision_by_model": float(of_model["average_precision"].mean()),
            "chance": float(mine["chance"].mean()), "by_patient": mine.drop(columns=["score", "annotation"]).to_dict("records"),
        })  # fmt: skip
    return rows


def extrapolate(stages: dict[str, dict[str, Any]], n_cells: int, n_patients: int) -> dict[str, dict[str, float]]:
    """Hours and gigabytes of each stage on the whole cohort on this machine.

    Reading, tokens and index grow with the cells; patients with the patients (the fits) and the cells (the counts), whichever
    grow more, so that it is rather an upper bound; training sees a fixed number of tokens and does not grow.
    """
    by_cells, by_patients = FULL_CELLS / max(n_cells, 1), FULL_PATIENTS / max(n_patients, 1)
    out = {}
    for name, stage in stages.items():
        grow = (
            1.0
            if name in ("fit", "import")
            else max(by_cells, by_patients)
            if name.startswith("patients")
            else by_cells
        )
        size = 1.0 if name in ("fit", "import") else by_patients if name.startswith("patients") else by_cells
        out[name] = {"hours": stage["seconds"] * grow / 3600, "gigabytes": stage["bytes"] * size / 1e9}
    return out


def markdown(record: dict[str, Any]) -> str:
    """The table for people."""
    published, repeated = record["protocols"]["published"], record["protocols"]["repeated"]
    p, r = published["protocol"], repeated["protocol"]
    lines = [
        "# AML subtypes from concepts", "", "Research use only.", "",
        f"{record['n_cells']:,} cells of {record['n_patients']} patients. **Published folds**: {p['n_folds']} trainings, "
        f"{p['n_patients']} fixed test patients, settings chosen on {p['chosen_on']}, probabilities averaged over the trainings "
        f"(in brackets the mean of the single trainings' scores); dictionary: {published['dictionary']['setting']}. **Ours**: "
        f"{r['n_repeats']} x {r['n_folds']}-fold cross-validation of {r['n_patients']} patients, every choice nested; "
        f"dictionary: {repeated['dictionary']['setting']}. The two protocols are two columns, and not to be compared "
        "with each other. Intervals: 95%, patients drawn again.", "",
        "| model | published folds: balanced accuracy | weighted F1 | concepts against it | ours: balanced accuracy | weighted F1 "
        "| concepts against it |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for model in dict.fromkeys([*published["models"], *repeated["models"]]):
        cells = [model.replace("_", " ")]
        for side in (published, repeated):
            row = side["models"].get(model)
            cells += ["", "", ""] if row is None else [
                _interval(row["balanced_accuracy"], row["mean_over_folds"], "balanced_accuracy"),
                _interval(row["weighted_f1"], row["mean_over_folds"], "weighted_f1"),
                "" if row["concepts_against_it"] is None else row["concepts_against_it"]["verdict"],
            ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(f"Left out: {name.replace('_', ' ')}, since {why}." for name, why in published["absent"].items()), "",
              "Printed elsewhere, under other protocols, so not in a column above:", "",
              "| what | score | value | protocol |", "| --- | --- | --- | --- |",
              *(f"| {e['what']} | {e['score']} | {e['value']} | {e['protocol']} |" for e in record["elsewhere"]), "",
              "Accuracy against the number of concepts (ours, balanced accuracy): " + ", ".join(
                  f"{c['n'] or 'all'}: {c['metrics']['balanced_accuracy']['value']:.2f}" for c in repeated["by_n_concepts"]) + ".",
              *_rare_lines(record.get("rare_cells")),
              "", "| stage | measured | disk | whole cohort here, at most | disk |", "| --- | --- | --- | --- | --- |"]  # fmt: skip
    for name, stage in record["stages"].items():
        full = record["full_run"][name]
        lines.append(f"| {name} | {stage['seconds']:,.0f} s | {stage['bytes'] / 1e6:,.1f} MB | {full['hours']:.2f} h "
                     f"| {full['gigabytes']:.2f} GB |")  # fmt: skip
    total = record["full_run"].values()
    lines.append(f"| all | {sum(s['seconds'] for s in record['stages'].values()):,.0f} s | | "
                 f"{sum(f['hours'] for f in total):.1f} h | {sum(f['gigabytes'] for f in total):.1f} GB |")  # fmt: skip
    return "\n".join(lines) + "\n"


def _rare_lines(rows: list[dict[str, Any]] | None) -> list[str]:
    if rows is None:
        return []
    if not rows:
        return ["", "No rare kind of labelled cell is in two patients or more, so none is ranked."]
    return [
        "", "Rare kinds among the cells that experts labelled (a tenth of them at most), ranked within each patient among its labelled "
        "cells; mean average precision over the patients. The concept is chosen on the other patients' labels; the model (of all "
        "patients) has seen the diagnosis and no label of a cell.", "",
        "| kind | patients | cells | by a concept chosen on the others | by what cells add to the diagnosis | chance |",
        "| --- | --- | --- | --- | --- | --- |",
        *(f"| {r['annotation']} | {r['n_patients']} | {r['n_cells']} | {r['average_precision_by_concept']:.2f} "
          f"| {r['average_precision_by_model']:.2f} | {r['chance']:.2f} |" for r in rows),
    ]  # fmt: skip


def _interval(value: dict[str, float], means: dict[str, float] | None, name: str) -> str:
    text = f"{value['value']:.2f} ({value['low']:.2f} to {value['high']:.2f})"
    return text + (f" [{means[name]:.2f}]" if means else "")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="reproduce-aml", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("aml_hehr", type=Path, help="folder of the images")
    parser.add_argument("dinobloom", type=Path, help="weight file of DinoBloom")
    parser.add_argument("--folds", type=Path, help="folder of the published folds [AML_HEHR/folds]")
    parser.add_argument("--sae", type=Path, help="published checkpoint, or an SAE folder [trained here]")
    parser.add_argument(
        "--annotations",
        type=Path,
        help="expert labels of single cells [AML_HEHR/single_cell_annotations.csv, where it is]",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/aml"), help="run folder [runs/aml]")
    parser.add_argument("--recipe", default="default", help="recipe of the dictionary trained here [default]")
    parser.add_argument(
        "--set", dest="settings", action="append", default=[], help="one field of it, KEY=VALUE; repeatable"
    )
    parser.add_argument("--n-folds", type=int, default=5, help="folds of our cross-validation [5]")
    parser.add_argument("--repeats", type=int, default=5, help="repetitions of it [5]")
    parser.add_argument("--heads", type=int, help="attention heads, where the file's width does not tell them")
    parser.add_argument("--threads", type=int, help="processor threads [all]")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    from cytosae._progress import enable_progress

    enable_progress()
    sys.exit(main())
