"""Do the patients' methods find what is there, and nothing where there is nothing? Simulated cohorts of real cell codes.

Usage: ``python benchmarks/cohorts.py CELLS INDEX [--sae SAE] [--part null|coverage|vacuoles|rare|batch]
[--out benchmarks/results/cohorts.json]``

CELLS is a table of cells with the labels of Acevedo and the attributes of WBCAtt, INDEX its concept index with
``--cells-matrix``; ``batch`` also wants the dictionary and the packaged backbone, since its pictures are rendered anew.
Patients are drawn by the program's own specifications; codes are those of the index.

- null: 100 cohorts of one mixture with diagnoses by chance (and 100 with a batch that differs in mixture, confounded with
  diagnosis, blocked): in how many is there any hit at 5% FDR.
- coverage: 200 cohorts of two mixtures: how often the 95% interval holds the difference that the mixtures imply.
- vacuoles: two diagnoses of one mixture, in one of which most monocytes have vacuoles: which part of the effects is it.
- rare: three cells of a rare type in every patient of a diagnosis: are the type's concepts, fixed on cells outside of the
  cohort, found, and do the cells come out on top.
- batch: one mixture, two laboratories that differ in colour, focus and compression, confounded with diagnosis.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench_decode import machine
from cytosae.cells import Cells, read_cells
from cytosae.concepts import CellsByConcepts, read_cells_by_concepts
from cytosae.patients import (
    ClassifyConfig,
    Cohort,
    DifferentialConfig,
    ProfileRule,
    average_precision,
    classify,
    differential,
    draw_cohort,
    driving_cells,
    hit_cells,
    parse_spec,
    planted_concepts,
    precision_within_patients,
    profile_patients,
)
from cytosae.patients._effects import blocked_interval, effect_interval
from cytosae.patients._profiles import CellValues

PARTS = ("null", "coverage", "vacuoles", "rare", "batch")
MIX = {"neutrophil": 0.4, "lymphocyte": 0.2, "monocyte": 0.2, "eosinophil": 0.1, "basophil": 0.1}
OTHER = {"neutrophil": 0.25, "lymphocyte": 0.2, "monocyte": 0.2, "eosinophil": 0.25, "basophil": 0.1}
FAST = DifferentialConfig(n_permutations=399_999, n_bootstrap=100, stop_after=500)


def spec_of(*diagnoses: dict[str, Any], n: int = 30, **more: Any) -> Any:
    return parse_spec({"name": "bench", "cells_per_patient": n, "from": ["dataset=acevedo"],
                       "diagnoses": list(diagnoses), **more})  # fmt: skip


def group(code: str, n_patients: int = 12, mixture: dict[str, float] | None = None, **more: Any) -> dict[str, Any]:
    return {"code": code, "name": "made", "n_patients": n_patients, "mixture": mixture or MIX, **more}


def cohort_of(frame: pd.DataFrame, matrix: CellsByConcepts) -> Cohort:
    """A drawn cohort with the codes that its cells have in the index."""
    rows = np.searchsorted(matrix.cell_ids, frame["source_cell_id"].to_numpy())
    names, owner = np.unique(frame["patient"].to_numpy(str), return_inverse=True)
    first = frame.groupby("patient").first().loc[names]
    patients = pd.DataFrame({"patient": names, "diagnosis": first["diagnosis"].to_numpy(object),
                             "n_cells": np.bincount(owner), "simulated": True})  # fmt: skip
    if "batch" in frame:
        patients["batch"] = first["batch"].to_numpy(object)
    maximum = matrix.maximum[rows]
    assert matrix.patch_share is not None
    return Cohort(
        patients, "diagnosis", owner.astype(np.int64), maximum, matrix.mean[rows], matrix.patch_share[rows],
        frame["label"].to_numpy(object), pd.DataFrame({"latent": np.arange(maximum.shape[1])}), None,
        {"simulated": True}, frame["source_cell_id"].to_numpy(np.int64),
    )  # fmt: skip


def null(cells: Cells, matrix: CellsByConcepts, sae: Path | None) -> dict[str, Any]:
    found, blocked, unblocked, tests = 0, 0, 0, []
    for seed in range(100):
        cohort = cohort_of(draw_cohort(spec_of(group("A"), group("B")), cells, seed), matrix)
        table = differential(profile_patients(cohort), FAST)
        found += bool((table["q"] < 0.05).any())
        tests.append(len(table))
        # nine of the twelve of A in one laboratory, three of B; the laboratories see other mixtures
        spec = spec_of(group("1"), group("2", mixture=OTHER))
        frame = draw_cohort(spec, cells, 1000 + seed)
        number = frame["patient"].str[-2:].astype(int)
        frame["batch"] = frame["diagnosis"]
        frame["diagnosis"] = np.where((number > 9) == (frame["batch"].str.contains(" 1 ")), "B", "A")
        profiles = profile_patients(cohort_of(frame, matrix))
        config = DifferentialConfig(n_permutations=399_999, n_bootstrap=100, stop_after=500, block=("batch",))
        blocked += bool((differential(profiles, config)["q"] < 0.05).any())
        unblocked += bool((differential(profiles, FAST)["q"] < 0.05).any()) if seed < 20 else 0
    return {"cohorts": 100, "with_a_hit": found, "confounded_blocked_with_a_hit": blocked,
            "confounded_not_blocked_with_a_hit_of_20": unblocked, "mean_tests": float(np.mean(tests)),
            "must_hold": "at most 11 of 100"}  # fmt: skip


def coverage(cells: Cells, matrix: CellsByConcepts, sae: Path | None) -> dict[str, Any]:
    spec = spec_of(group("A", 8), group("B", 16, OTHER), reuse=True)
    pool = cells.frame[(cells.frame["dataset"] == "acevedo") & (cells.frame["status"] == "ok")]
    rows = np.searchsorted(matrix.cell_ids, pool["cell_id"].to_numpy())
    whole = matrix.maximum[rows]
    thresholds = CellValues(whole, np.zeros(len(rows), np.int64), 1).thresholds(0.9)
    carried = matrix.maximum.copy()
    carried.data = (carried.data > thresholds[carried.indices]).astype(np.float64)
    carried.eliminate_zeros()
    of_label = {label: np.asarray(carried[rows[(pool["label"] == label).to_numpy()]].mean(0)).ravel() for label in MIX}
    rates = np.array([of_label[k] for k in MIX])
    one, two = np.array(list(MIX.values())), np.array([OTHER[k] for k in MIX])
    truth, overall = (one - two) @ rates, (one + two) / 2 @ rates
    keep = np.flatnonzero((overall > 0.02) & (overall < 0.98))
    inside, within = [], []
    for seed in range(200):
        frame = draw_cohort(spec, cells, seed)
        names, owner = np.unique(frame["patient"].to_numpy(str), return_inverse=True)
        at = np.searchsorted(matrix.cell_ids, frame["source_cell_id"].to_numpy())
        share = np.zeros((len(names), len(keep)))
        np.add.at(share, owner, carried[at][:, keep].toarray() / 30)
        a = np.array([n.startswith("sim-A") for n in names])
        low, high = effect_interval(share[a], share[~a], 1_000, seed)
        inside.append((low <= truth[keep]) & (truth[keep] <= high))
        block = np.arange(len(names)) % 2
        low, high = blocked_interval(share, a, block)
        within.append((low <= truth[keep]) & (truth[keep] <= high))
    by_concept = np.mean(inside, 0)
    return {"cohorts": 200, "concepts": len(keep), "coverage": float(np.mean(inside)),
            "coverage_with_two_blocks": float(np.mean(within)),
            "concepts_5th_and_95th_percentile": [float(v) for v in np.percentile(by_concept, [5, 95])],
            "largest_true_effect": float(np.abs(truth[keep]).max()), "patients": [8, 16], "must_hold": "0.95 +/- 0.04"}  # fmt: skip


def vacuoles(cells: Cells, matrix: CellsByConcepts, sae: Path | None) -> dict[str, Any]:
    vacuole = "cytoplasm_vacuole"
    out = []
    for seed in range(5):
        half = {"monocyte": 0.5, "neutrophil": 0.3, "lymphocyte": 0.2}
        spec = spec_of(group("A", mixture=half, within={"monocyte": {vacuole: {"no": 1}}}),
                       group("B", mixture=half, within={"monocyte": {vacuole: {"yes": 4, "no": 1}}}), n=40)  # fmt: skip
        frame = draw_cohort(spec, cells, seed)
        cohort = cohort_of(frame, matrix)
        table = differential(profile_patients(cohort), FAST, cohort=cohort)
        table = table[table["diagnosis"].str.contains(" B ")]
        top = table.sort_values("p_within").iloc[0]
        of_type = (frame["label"] == "monocyte").to_numpy()
        yes = (frame[vacuole] == "yes").to_numpy()[of_type]
        value = cohort.maximum[of_type][:, [int(top["latent"])]].toarray()[:, 0]
        out.append({
            "hits": int((table["q"] < 0.05).sum()), "hits_within": int((table["q_within"] < 0.05).sum()),
            "hits_composition": int((table["q_composition"] < 0.05).sum()), "top_latent": int(top["latent"]),
            "top_q_within": float(top["q_within"]), "top_effect_within": float(top["effect_within"]),
            "top_effect_composition": float(top["effect_composition"]), "top_p_composition": float(top["p_composition"]),
            "auroc_of_top_for_vacuoles_among_monocytes": _auroc(value, yes),
        })  # fmt: skip
    return {"cohorts": out}


def _auroc(value: np.ndarray[Any, Any], yes: np.ndarray[Any, Any]) -> float:
    above = value[yes][:, None] - value[~yes]
    return float(((above > 0) + 0.5 * (above == 0)).mean())


def rare(cells: Cells, matrix: CellsByConcepts, sae: Path | None) -> dict[str, Any]:
    out: dict[str, Any] = {}
    at = np.searchsorted(matrix.cell_ids, cells.frame["cell_id"].to_numpy())
    for kind in ("promyelocyte", "myelocyte", "erythroblast", "platelet", "basophil"):
        column = "fine_label" if kind.endswith("myelocyte") else "label"
        mixture = {k: v for k, v in MIX.items() if k != kind}
        frame = draw_cohort(spec_of(group("A", 8, mixture), group("B", 8, mixture),
                                    group("C", 8, mixture, fixed={column: {kind: 3}})), cells, 0)  # fmt: skip
        is_type = (cells.frame[column] == kind).to_numpy(bool)
        mine = cells.frame["cell_id"].isin(frame["source_cell_id"]).to_numpy(bool)
        outside = (cells.frame["dataset"] == "acevedo").to_numpy(bool) & ~mine
        values = matrix.maximum[at[outside]]
        planted = planted_concepts(values, is_type[outside])
        best = planted_concepts(values, is_type[outside], least=0.01).iloc[0]
        cohort = cohort_of(frame, matrix)
        profiles = profile_patients(cohort)
        table = differential(profiles, FAST)
        hits = table[(table["q"] < 0.05) & table["diagnosis"].str.contains(" C ")]
        ranked = table[table["diagnosis"].str.contains(" C ")].sort_values(["p", "effect"], ascending=[True, False])
        positive = (frame[column] == kind).to_numpy(bool)
        latents = planted["latent"].to_numpy()[:1] if len(planted) else np.array([int(best["latent"])])
        score = cohort.maximum[:, latents].toarray().max(1).astype(float)
        model = classify(cohort, ClassifyConfig(n_folds=4, n_repeats=1, n_bootstrap=100)).final
        title = next(c for c in model.classes if " C " in c)
        marked = np.flatnonzero(cohort.classes == title)
        driven = np.full(len(positive), np.nan)
        for name in cohort.patients["patient"].iloc[marked]:
            one = driving_cells(model, cohort, name, title)
            driven[one["row"]] = one["contribution"]
        there = ~np.isnan(driven)
        by_max = differential(profiles, replace(FAST, layer="max"))
        by_max = by_max[by_max["diagnosis"].str.contains(" C ")].sort_values(["p", "effect"], ascending=[True, False])
        strict = differential(profile_patients(cohort, ProfileRule(quantile=0.97)), FAST)
        strict = strict[strict["diagnosis"].str.contains(" C ") & (strict["q"] < 0.05)]
        traced = hit_cells(table[table["latent"].isin(latents)], profiles, cohort, n_cells=3)
        of_type = dict(zip(frame["source_cell_id"], positive, strict=True))
        out[kind] = {
            "planted_concepts": len(planted), "best_ap_outside": float(best["average_precision"]),
            "hits_of_the_diagnosis": len(hits), "planted_among_hits": int(planted["latent"].isin(hits["latent"]).sum()),
            "best_rank_of_a_planted_concept": int(np.flatnonzero(ranked["latent"].isin(latents))[0]) + 1
            if ranked["latent"].isin(latents).any() else None,
            "concepts_tested": len(ranked),
            "smallest_p_of_a_planted_concept": float(ranked["p"][ranked["latent"].isin(latents)].min()),
            "hits_by_largest_code": int((by_max["q"] < 0.05).sum()),
            "planted_among_hits_by_largest_code": int(
                planted["latent"].isin(by_max["latent"][by_max["q"] < 0.05]).sum()),
            "hits_at_quantile_0.97": len(strict),
            "planted_among_hits_at_quantile_0.97": int(planted["latent"].isin(strict["latent"]).sum()),
            "best_rank_by_largest_code": int(np.flatnonzero(by_max["latent"].isin(latents))[0]) + 1
            if by_max["latent"].isin(latents).any() else None,
            "ap_of_cells_by_the_concept": average_precision(positive, score),
            "ap_within_patients_by_the_concept": float(
                precision_within_patients(positive, score, cohort.owner)["average_precision"].mean()),
            "ap_within_patients_by_the_model": float(
                precision_within_patients(positive[there], driven[there], cohort.owner[there])["average_precision"].mean()),
            "share_of_the_type_among_traced_cells": float(np.mean([of_type[i] for i in traced["cell_id"]]))
            if len(traced) else None,
            "chance": 0.1,
        }  # fmt: skip
    return out


def batch(cells: Cells, matrix: CellsByConcepts, sae: Path | None) -> dict[str, Any]:
    from cytosae import extract_tokens, index_concepts, load_backbone, load_sae
    from cytosae.patients import read_cohort, simulate_cohort

    if sae is None:
        raise SystemExit("--part batch wants --sae")
    spec = spec_of(group("A", 16), group("B", 16), n=20, batches=[
        {"name": "one", "share": {"A": 13, "B": 3}},
        {"name": "two", "share": {"A": 3, "B": 13}, "cast": [1.08, 0.97, 0.9], "blur": 1.0, "jpeg": 40},
    ])  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        cohort = simulate_cohort(spec, cells, work / "cohort.parquet")
        store = extract_tokens(cohort, load_backbone("dinov2-s"), work / "tokens")
        index_concepts(cohort, load_sae(sae), work / "index", store=store, cells_matrix=True)
        profiles = profile_patients(read_cohort(work / "index", cohort))
        out = {"patients": profiles.n_obs, "cells": len(cohort)}
        exact = FAST
        blocked = replace(FAST, block=("batch",))
        for name, config in (("not_blocked", exact), ("blocked", blocked)):
            table = differential(profiles, config)
            hits = table["latent"][table["q"] < 0.05]
            out[f"concepts_that_differ_{name}"] = int(hits.nunique())
            out[f"smallest_p_{name}"], out[f"least_attainable_{name}"] = (
                float(table["p"].min()),
                float(table["smallest_p"].min()),
            )
        profiles.obs["diagnosis"] = profiles.obs["batch"].astype(str)
        by_batch = differential(profiles, exact)
        out["concepts_that_differ_between_batches"] = int(by_batch["latent"][by_batch["q"] < 0.05].nunique())
        out["concepts_tested"] = int(by_batch["latent"].nunique())
    return out


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("cells", type=Path)
    parser.add_argument("index", type=Path)
    parser.add_argument("--sae", type=Path)
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cohorts.json"))
    options = parser.parse_args()
    cells, matrix = read_cells(options.cells), read_cells_by_concepts(options.index)
    record = json.loads(options.out.read_text("utf-8")) if options.out.exists() else {"parts": {}}
    record["machine"], record["n_latents"] = machine(), int(matrix.maximum.shape[1])
    for part in options.part or PARTS:
        record["parts"][part] = globals()[part](cells, matrix, options.sae)
        print(part, json.dumps(record["parts"][part], indent=1))
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n", "utf-8")


if __name__ == "__main__":
    main()
