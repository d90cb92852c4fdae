"""Comparisons compare what can be compared, and names stay with what was named."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cytosae import ConceptIndex, CytosaeError, SparseAutoencoder, extract_tokens, index_concepts
from cytosae.cells import Cells
from cytosae.concepts import agreement, compare_indices, name_concept, named_concepts, read_names, relative_entropy
from cytosae.tokens import TokenStore
from stand_in import PatchColours


@pytest.fixture
def store(few_cells: Cells, tmp_path: Path) -> TokenStore:
    return extract_tokens(few_cells, PatchColours(), tmp_path / "t", store="float32")  # type: ignore[arg-type]


@pytest.fixture
def index(few_cells: Cells, store: TokenStore, colours: SparseAutoencoder, tmp_path: Path) -> ConceptIndex:
    return index_concepts(few_cells, colours, tmp_path / "i", store=store)


def test_a_set_agrees_with_itself(index: ConceptIndex) -> None:
    index.concepts["frequency"] = [0.9, 0.5, 0.005]
    found = agreement(index, index)
    assert set(found["jaccard"].values()) == {1.0}
    assert found["frequency_rank_correlation"] == pytest.approx(1)
    assert found["log_frequency_correlation"] == pytest.approx(1)
    assert found["same_top_label"] in (1.0, None)


def test_agreement_by_hand(index: ConceptIndex, few_cells: Cells, store: TokenStore, colours: SparseAutoencoder, tmp_path: Path) -> None:  # fmt: skip
    other = index_concepts(few_cells, colours, tmp_path / "j", store=store, n_exemplars=3)
    index.concepts["frequency"], other.concepts["frequency"] = [0.9, 0.5, 0.005], [0.005, 0.5, 0.9]
    found = agreement(index, other)
    assert found["jaccard"] == {"0.0001": 1.0, "0.001": 1.0, "0.01": pytest.approx(1 / 3)}
    assert found["frequency_rank_correlation"] == pytest.approx(-1)


def test_a_comparison_holds_every_set_and_its_exemplars(
    index: ConceptIndex, few_cells: Cells, store: TokenStore, colours: SparseAutoencoder, tmp_path: Path
) -> None:
    part = index_concepts(few_cells, colours, tmp_path / "p", store=store, where=["cell_id=0,1,2,3,4"])
    table = compare_indices([index, part], tmp_path / "c", ["all", "few"])
    assert list(table["all.frequency"]) == list(index.concepts["frequency"])
    assert list(table["few.rank"]) == list(part.concepts["frequency"].rank(ascending=False, method="min"))
    exemplars = pd.read_parquet(tmp_path / "c" / "exemplars.parquet")
    assert set(exemplars["set"]) == {"all", "few"}
    assert exemplars.loc[exemplars["set"] == "few", "cell_id"].max() <= 4
    pairs = json.loads((tmp_path / "c" / "compare.json").read_text())["pairs"]
    assert pairs[0]["sets"] == ["all", "few"]
    assert (tmp_path / "c" / "compare.png").stat().st_size > 5_000
    with pytest.raises(CytosaeError, match="name of its own"):
        compare_indices([index, part], tmp_path / "d", ["a", "a"])


def test_other_dictionaries_and_semantics_are_not_compared(
    index: ConceptIndex, few_cells: Cells, store: TokenStore, colours: SparseAutoencoder, tmp_path: Path
) -> None:
    other = dataclasses.replace(colours, hash="other")
    strange = index_concepts(few_cells, other, tmp_path / "o", store=store)
    with pytest.raises(CytosaeError, match="different dictionaries"):
        compare_indices([index, strange], tmp_path / "c")
    published = index_concepts(few_cells, colours, tmp_path / "q", store=store, semantics="cytosae-2025")
    with pytest.raises(CytosaeError, match="--semantics"):
        compare_indices([index, published], tmp_path / "c")
    with pytest.raises(CytosaeError, match="at least two"):
        compare_indices([index], tmp_path / "c")


def test_relative_entropy_takes_the_number_of_labels_out(index: ConceptIndex) -> None:
    n = len(index.manifest["labels"])
    index.concepts["class_entropy"] = [np.log(n), 0.0, np.nan]
    found = relative_entropy(index)
    assert found[0] == pytest.approx(1)
    assert found[1] == 0
    assert np.isnan(found[2])


def test_a_name_says_who_when_and_of_which_index(
    index: ConceptIndex, few_cells: Cells, store: TokenStore, colours: SparseAutoencoder, tmp_path: Path
) -> None:
    path = tmp_path / "names.parquet"
    assert named_concepts(index)["name"].isna().all()
    name_concept(path, index, 1, "granules", "A. Expert", when="2026-01-01T00:00:00+00:00")
    name_concept(path, index, 1, "eosinophilic granules", "B. Expert")
    name_concept(path, index, 2, "vacuole", "A. Expert")
    name_concept(path, index, 2, "", "A. Expert", note="was a bubble")
    found = named_concepts(index)
    assert list(found["name"].fillna("-")) == ["-", "eosinophilic granules", "-"]
    assert found["named_by"][1] == "B. Expert"
    assert read_names(path, index)["when"][0] > "2026"
    assert len(pd.read_parquet(path)) == 4, "nothing that was said is lost"
    other = index_concepts(few_cells, colours, tmp_path / "o", store=store, n_exemplars=3)
    with pytest.raises(CytosaeError, match="another index"):
        read_names(path, other)
    with pytest.raises(CytosaeError, match="another index"):
        name_concept(path, other, 0, "x", "y")
    with pytest.raises(CytosaeError, match="no concept 7"):
        name_concept(path, index, 7, "x", "y")
    with pytest.raises(CytosaeError, match="say who"):
        name_concept(path, index, 0, "x", " ")
