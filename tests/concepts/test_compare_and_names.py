"""Comparisons compare what can be compared, and names stay with what was named."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cytosae import ConceptIndex, CytosaeError, SparseAutoencoder, extract_tokens, index_concepts
from cytosae.cells import Cells
from cytosae.cli._main import run
from cytosae.concepts import (
    agreement,
    compare_indices,
    explain,
    name_concept,
    named_concepts,
    read_names,
    relative_entropy,
)
from cytosae.reports import save_explanation
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


def names(index: ConceptIndex, *arguments: str | Path) -> int:
    return run(["names", str(index.folder), *map(str, arguments)])


def test_names_are_given_listed_and_carried_over_from_the_command_line(
    index: ConceptIndex, few_cells: Cells, store: TokenStore, colours: SparseAutoencoder, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert (
        names(
            index, "--set", "1=eosinophilic  granules", "--set", "2=vacuole, large", "--by", "A. Expert", "--note", "n"
        )
        == 0
    )
    assert "2 names added; 2 of 3 concepts have a name" in capsys.readouterr().out
    assert names(index, "--set", "2=", "--by", "B. Expert") == 0
    capsys.readouterr()
    assert names(index, "--set", "0=größer", "--by", "B. Expert") == 0
    capsys.readouterr()
    assert names(index) == 0
    listed = capsys.readouterr().out
    found = pd.read_csv(io.StringIO(listed))
    assert list(found["latent"]) == [0, 1]
    assert list(found["name"]) == ["größer", "eosinophilic granules"]
    assert list(found["who"]) == ["B. Expert", "A. Expert"]
    other = index_concepts(few_cells, colours, tmp_path / "other" / "i", store=store, n_exemplars=3)
    (tmp_path / "names.csv").write_text(listed, "utf-8")
    assert names(other, "--from", tmp_path / "names.csv") == 0
    again = read_names(tmp_path / "other" / "names.parquet", other)
    assert again.equals(read_names(tmp_path / "names.parquet", index)), "who and when are kept"
    (tmp_path / "short.csv").write_text("latent,name\n2,bubble\n", "utf-8-sig")
    assert names(other, "--from", tmp_path / "short.csv", "--by", "C", "--out", tmp_path / "mine.parquet") == 0
    assert list(read_names(tmp_path / "mine.parquet", other)["who"]) == ["C"]


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--set", "1=x"], 2, "say who with --by"),
        (["--set", "1 x", "--by", "A"], 2, "LATENT=NAME"),
        (["--set", "-1=x", "--by", "A"], 2, "LATENT=NAME"),
        (["--set", "3=x", "--by", "A"], 2, "no concept 3"),
        (["--set", "0=good", "--set", "9=bad", "--by", "A"], 2, "no concept 9"),
        (["--list", "--set", "1=x"], 2, "leave out"),
        ([], 2, "Nobody has named"),
        (["--from", "none.csv"], 1, "cannot be read"),
    ],
)
def test_wrong_names_are_refused_in_one_sentence_and_none_is_kept(
    index: ConceptIndex,
    arguments: list[str],
    status: int,
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert names(index, *arguments) == status
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "names.parquet").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"latent,title\n1,x\n", "column 'title'"),
        (b"latent\n1\n", "no column 'name'"),
        (b"latent,name\none,x\n", "line 2: 'one' is not the number"),
        (b"latent,name\n1,x,y\n", "line 2 has not 2 values"),
        (b"latent,name,who\n1,x\n", "line 2 has not 3 values"),
        (b"latent,name\n1,\xff\n", "not a CSV file in UTF-8"),
        (b'latent,name\n1,"x\n', "mend the CSV file"),
        (b"latent,name\n", "holds no names"),
        (b"", "no column 'latent'"),
        (b"latent,name,when\n1,x,yesterday\n", "'yesterday' is not a time"),
        (b"latent,name,who\n0,good,A\n2,x,\n1,bad, \n", "say who"),
    ],
)
def test_a_wrong_list_of_names_says_what_is_wrong_and_where(
    index: ConceptIndex, content: bytes, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "names.csv").write_bytes(content)
    by = ["--by", "A"] if b"who" not in content else []
    assert names(index, "--from", tmp_path / "names.csv", *by) in (1, 2)
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "names.parquet").exists()


def test_a_damaged_or_foreign_table_of_names_is_refused_when_given_and_left_out_when_found(
    index: ConceptIndex, few_cells: Cells, store: TokenStore, colours: SparseAutoencoder, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    other = index_concepts(few_cells, colours, tmp_path / "o", store=store, n_exemplars=3)
    name_concept(tmp_path / "names.parquet", index, 1, "granules", "A")
    capsys.readouterr()
    assert named_concepts(other)["name"].isna().all(), "another index beside the same table"
    assert "is of another index" in capsys.readouterr().err
    with pytest.raises(CytosaeError, match="another index"):
        named_concepts(other, tmp_path / "names.parquet")
    assert names(other, "--list") == 1
    (tmp_path / "names.parquet").write_bytes(b"PAR1 and no more")
    assert names(index, "--list") == 1
    assert "names.parquet" in capsys.readouterr().err


def test_an_explanation_says_the_name_of_a_concept(
    index: ConceptIndex, colours: SparseAutoencoder, cell_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cytosae.concepts._explain.cell_share_of_patches", lambda _, grid: np.ones(grid))
    index.concepts["frequency"] = 0.1  # else these three are in every cell, which explains nothing
    image = next(cell_folder.rglob("*.jpg"))
    plain = explain(image, colours, PatchColours(), index=index)  # type: ignore[arg-type]
    assert plain.concepts["name"].isna().all()
    latent = int(plain.concepts["latent"][0])
    name_concept(
        tmp_path / "names.parquet", index, latent, "a very red patch of a cell, and some more words", "A. Expert"
    )
    found = explain(image, colours, PatchColours(), index=index)  # type: ignore[arg-type]
    assert found.concepts["name"][0].startswith("a very red")
    assert found.concepts["named_by"][0] == "A. Expert"
    save_explanation(found, tmp_path / "e.png")
    assert (tmp_path / "e.png").stat().st_size > 5_000
