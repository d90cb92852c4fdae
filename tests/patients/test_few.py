"""Patients with few cells, concepts left out, the published counting, and scanpy on profiles."""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from small_cohorts import memory_cohort
from test_profiles import rows

from cytosae import CytosaeError
from cytosae.cells import SCHEMA, Cells, read_cells
from cytosae.concepts import ConceptIndex
from cytosae.patients import (
    DifferentialConfig,
    Rarefaction,
    differential,
    profile_patients,
    published_profiles,
    rarefied_profiles,
    read_cohort,
    shrunken_profiles,
)
from cytosae.patients._few import beta_by_moments
from cytosae.storage import write_table

QUICK = DifferentialConfig(n_permutations=2_000, n_bootstrap=100)


def uneven(seed: int = 0):
    """Patients of 5 to 20 cells."""
    cohort = memory_cohort(seed, n_patients=12, n_latents=15)
    keep = np.arange(len(cohort.owner)) % 20 < 5 + cohort.owner * 3 // 2
    cohort = rows(cohort, np.flatnonzero(keep))
    cohort.patients["n_cells"] = cohort.n_cells
    return cohort


def test_a_rarefied_profile_is_the_mean_over_draws_of_equally_many_cells():
    cohort = uneven()
    made = rarefied_profiles(cohort, Rarefaction(5, 4_000))
    plain = profile_patients(cohort)
    assert np.array_equal(made.var["threshold"], plain.var["threshold"])
    assert np.abs(made.X - plain.X).max() < 0.02, "a mean share does not depend on the number of cells"
    value = cohort.maximum[np.flatnonzero(cohort.owner == 2)].toarray().astype(float)
    draws = [value[list(some)] for some in combinations(range(len(value)), 5)]
    assert np.allclose(made.layers["max"][2], np.mean([d.max(0) for d in draws], 0))
    over = plain.var["threshold"].to_numpy()
    assert np.abs(made.layers["presence"][2] - np.mean([(d > over).any(0) for d in draws], 0)).max() < 0.04
    assert np.abs(made.layers["draw_sd"][2] - np.std([(d > over).mean(0) for d in draws], 0)).max() < 0.02


def test_the_same_draws_come_again_whoever_else_is_in_the_cohort():
    cohort = uneven()
    first = rarefied_profiles(cohort, Rarefaction(6, 20))
    assert np.array_equal(first.X, rarefied_profiles(cohort, Rarefaction(6, 20)).X, equal_nan=True)
    assert not np.array_equal(first.X, rarefied_profiles(cohort, Rarefaction(6, 20, seed=1)).X, equal_nan=True)


def test_patients_with_fewer_cells_take_no_part_and_are_listed():
    cohort = uneven()
    made = rarefied_profiles(cohort, Rarefaction(8, 10))
    few = [str(v) for v in cohort.patients["patient"][cohort.n_cells < 8]]
    assert few
    assert json.loads(made.uns["cytosae"])["patients_with_fewer_cells"] == few
    assert np.isnan(made.X[cohort.n_cells < 8]).all()
    table = differential(made, QUICK)
    assert (table["n_in"] + table["n_out"] == 12 - len(few)).all()
    with pytest.raises(CytosaeError, match="No patient has 99 cells"):
        rarefied_profiles(cohort, Rarefaction(99))
    with pytest.raises(CytosaeError, match="Only plain shares are split"):
        differential(made, QUICK, cohort=cohort)


def test_the_beta_of_the_patients_is_found_again():
    rng = np.random.default_rng(0)
    n = rng.integers(5, 200, 400)
    rate = rng.beta(3, 7, (400, 8))
    mean, strength = beta_by_moments(rng.binomial(n[:, None], rate) / n[:, None], n.astype(float))
    assert np.abs(mean - 0.3).max() < 0.03
    assert np.abs(strength - 10).max() < 3
    same = rng.binomial(n[:, None], np.full((400, 8), 0.3)) / n[:, None]
    assert (beta_by_moments(same, n.astype(float))[1] > 100).all()


def test_shrinkage_brings_patients_with_few_cells_nearer_to_their_rates():
    rng = np.random.default_rng(1)
    n = np.where(np.arange(100) < 50, 5, 200)
    rate = rng.beta(2, 8, (100, 60))
    share = rng.binomial(n[:, None], rate) / n[:, None]
    cohort = memory_cohort(n_patients=100, n_cells=3)
    profiles = profile_patients(cohort)
    profiles.X, profiles.obs["n_cells"] = share, n
    made = shrunken_profiles(profiles)
    few = slice(0, 50)
    error = [((x[few] - rate[few]) ** 2).mean() for x in (share, made.X)]
    assert error[1] < 0.6 * error[0]
    assert np.abs(made.X[50:] - share[50:]).max() < 0.06
    assert np.array_equal(made.layers["share"], share)
    order = rng.permutation(100)
    assert np.allclose(shrunken_profiles(profiles[order].copy()).X, made.X[order])


def technical(folder: Path, sae: str, n: int, flagged: list[int]) -> Path:
    flags = ["position" if i in flagged else "" for i in range(n)]
    table = pa.table({"latent": np.arange(n, dtype=np.int32), "flags": flags})
    write_table(folder / "technical.parquet", table, kind="technical", version=1, inputs={"sae": sae}, config={})
    return folder / "technical.parquet"


def test_flagged_concepts_are_neither_tested_nor_hidden(study, tmp_path):
    cells, index = read_cells(study[0]), ConceptIndex(study[1])
    sae, n = index.manifest["inputs"]["sae"], len(index.concepts)
    plain = profile_patients(read_cohort(index, cells))
    tested = plain.var["latent"][plain.var["tested"]].tolist()
    path = technical(tmp_path, sae, n, tested[:2])
    for exclude in (path, tmp_path, tested[:2]):
        cohort = read_cohort(index, cells, exclude=exclude)
        made = profile_patients(cohort)
        assert set(tested) - set(made.var["latent"][made.var["tested"]]) == set(tested[:2])
        assert np.array_equal(made.X, plain.X)
        assert not set(differential(made, QUICK)["latent"]) & set(tested[:2])
        assert json.loads(made.uns["cytosae"])["excluded"]["n"] == 2
    (tmp_path / "other").mkdir()
    with pytest.raises(CytosaeError, match="speaks of another dictionary"):
        read_cohort(index, cells, exclude=technical(tmp_path / "other", "0" * 64, n, []))
    with pytest.raises(CytosaeError, match="cannot be left out"):
        read_cohort(index, cells, exclude=[n])


def test_scanpy_ranks_the_planted_concept_first():
    scanpy = pytest.importorskip("scanpy")
    profiles = profile_patients(memory_cohort())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scanpy.tl.rank_genes_groups(profiles, "diagnosis", method="t-test")
    table = scanpy.get.rank_genes_groups_df(profiles, "simulated C")
    assert table["names"].iloc[0] == "0"
    assert table["pvals_adj"].iloc[0] < 0.05


def test_golden_patients_are_counted_as_published_under_that_name_only(tmp_path: Path, study) -> None:
    golden = Path(os.environ.get("CYTOSAE_GOLDEN") or Path(__file__).parents[1] / "golden")
    import torch

    from cytosae import SparseAutoencoder, index_concepts
    from cytosae.storage import commit_folder
    from cytosae.tokens import TokenStore

    with np.load(golden / "statistics.npz", allow_pickle=False) as found:
        reference = dict(found)
    tokens, n = reference["tokens"].astype("<f4"), len(reference["tokens"])
    frame = pd.DataFrame({name: [None] * n for name in SCHEMA.names})
    frame["cell_id"], frame["status"], frame["image"] = np.arange(n), "ok", ""
    width = len(str(reference["patients"].max()))
    frame["patient"] = [f"{k:0{width}d}" for k in reference["patients"]]
    frame["diagnosis"] = np.where(reference["patients"] % 2 == 0, "even", "odd")
    cells = Cells(frame, str(tmp_path), "made")
    head = {"n_rows": n, "n_tokens": tokens.shape[1], "n_prefix": 1, "d_in": tokens.shape[2], "grid": [1, tokens.shape[1] - 1],
            "dtype": "float32", "layer": -2, "precision": "float32", "backbone": {}, "preprocessing": {},
            "token_kinds": ["class"] + ["patch"] * (tokens.shape[1] - 1)}  # fmt: skip
    with commit_folder(tmp_path / "t", kind="tokens", version=1, inputs={"cells": "made"}, config={}) as (work, extra):
        tokens.tofile(work / "tokens-00000.bin")
        write_table(
            work / "rows.parquet", pa.table({"cell_id": np.arange(n)}), kind="token rows", version=1, atomic=False
        )
        extra |= head
    W = {k: torch.from_numpy(reference[k].astype(np.float32)) for k in ("W_enc", "b_enc", "W_dec", "b_dec")}
    sae = SparseAutoencoder(W["W_enc"], W["b_enc"], W["W_dec"], W["b_dec"], "relu", hash="made")
    index = index_concepts(cells, sae, tmp_path / "i", store=TokenStore(tmp_path / "t"), semantics="cytosae-2025",
                           thresholds=[float(reference["threshold"])])  # fmt: skip
    made = published_profiles(index, cells)
    off = np.abs(made.X - reference["ref.patient_counts"]) * sae.n_latents
    assert off.max() <= 1
    assert (off > 0.5).mean() < 0.002
    assert json.loads(made.uns["cytosae"])["semantics"] == "cytosae-2025"
    even = np.unique(reference["patients"]) % 2 == 0
    assert np.allclose(made.varm["diseases"]["even"], made.X[even].mean(0))
    with pytest.raises(CytosaeError, match="not in the cytosae-2025 semantics"):
        published_profiles(ConceptIndex(study[1]), read_cells(study[0]))


def test_profiles_without_exclusion_are_what_they_were():
    cohort = memory_cohort()
    none = replace(cohort, excluded=np.zeros(60, bool))
    assert np.array_equal(profile_patients(cohort).var["tested"], profile_patients(none).var["tested"])
