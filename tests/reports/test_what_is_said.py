"""What a page claims is what is known: labels, training cells, names, shares."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cytosae import CytosaeError, SparseAutoencoder, TokenStore, extract_tokens, index_concepts, load_sae
from cytosae.cells import Cells, read_cells, write_cells
from cytosae.concepts import name_concept
from cytosae.reports import write_report
from cytosae.reports._patient_page import _names
from cytosae.reports._report import _percent
from cytosae.sae import KIND as SAE
from cytosae.sae import save_sae
from cytosae.storage import commit_folder
from stand_in import PatchColours

INFO = {"recipe": "default", "seed": 0, "semantics": "default", "token_kinds": ["patch"], "n_cells_train": 3, "n_cells_heldout": 0,
        "hyperparameters": {}, "metrics": {}}  # fmt: skip


def run_of(
    cells: Cells, sae: SparseAutoencoder, folder: Path, trained: str, shown: str = "", matrix: bool = True
) -> str:
    """The page of a run whose dictionary was trained on the cells for which `trained` holds."""
    store = extract_tokens(cells, PatchColours(), folder / "tokens", store="float32")  # type: ignore[arg-type]
    inputs = {"tokens": store.hash, "cells": cells.hash}
    with commit_folder(folder / "sae", kind=SAE, version=1, inputs=inputs, config={"where": [trained]}) as (out, _):
        save_sae(out, sae, INFO)
    index_concepts(
        cells,
        load_sae(folder / "sae"),
        folder / "index",
        store=store,
        cells_matrix=matrix,
        where=[shown] if shown else [],
    )
    return write_report(folder).read_text("utf-8").split("</style>")[1]


def without_labels(cells: Cells, folder: Path) -> Cells:
    frame = cells.frame.assign(label=None)
    write_cells(folder / "cells.parquet", frame, root=str(cells.root), inputs={}, config={"root": str(cells.root)})
    return read_cells(folder / "cells.parquet")


@pytest.mark.parametrize("matrix", [True, False])
def test_cells_without_labels_are_said_to_have_none(
    few_cells: Cells, few_colours: SparseAutoencoder, tmp_path: Path, matrix: bool
) -> None:
    page = run_of(without_labels(few_cells, tmp_path), few_colours, tmp_path, "split=none", matrix=matrix)
    assert "Not tied to a cell type" not in page
    assert "no cell has a label" in page
    said = re.sub(r"data:[^\"]*", "", page)
    assert not re.search(r"\bnan\b", said)
    assert 'class="bars"' not in page


def test_exemplars_of_one_type_are_not_called_tied_to_none(
    few_cells: Cells, few_colours: SparseAutoencoder, tmp_path: Path
) -> None:
    page = run_of(few_cells, few_colours, tmp_path, "split=none", matrix=False)
    assert "Not tied to a cell type" not in page
    assert re.search(r"<h3>\d+ of the \d+ strongest cells: \w+", page)
    name = few_cells.frame["image"].iloc[0].rsplit("/", 1)[-1]
    assert re.search(rf"cell \d+ \({re.escape(name)}\), activation", page), "a person can find the file"


def test_cells_that_trained_are_counted_and_others_are_called_so(
    few_cells: Cells, few_colours: SparseAutoencoder, tmp_path: Path
) -> None:
    label = few_cells.frame["label"].iloc[0]
    n, own = len(few_cells.frame), int((few_cells.frame["label"] == label).sum())
    assert 0 < own < n
    page = run_of(few_cells, few_colours, tmp_path, f"label={label}")
    assert f"{own} of them trained it" in page
    assert f"{own} of the {n} cells shown trained the dictionary" in page
    assert "outside the training part" not in page
    for part in ("tokens", "sae", "index"):
        (tmp_path / part).rename(tmp_path / f"first-{part}")
    page = run_of(few_cells, few_colours, tmp_path, f"label={label}", f"label!={label}")
    assert "other cells: every number" in page
    assert "All figures are from cells outside the training part" in page


def test_names_of_another_index_of_the_same_dictionary_are_taken_and_of_another_refused(
    few_cells: Cells, few_colours: SparseAutoencoder, tmp_path: Path
) -> None:
    (tmp_path / "old").mkdir(), (tmp_path / "new").mkdir(), (tmp_path / "other").mkdir()
    store = extract_tokens(few_cells, PatchColours(), tmp_path / "tokens", store="float32")  # type: ignore[arg-type]
    found = {}
    for name, scale in (("old", 1.0), ("new", 1.0), ("other", 2.0)):
        sae = SparseAutoencoder(few_colours.W_enc * scale, few_colours.b_enc, few_colours.W_dec, few_colours.b_dec)
        with commit_folder(tmp_path / f"sae-{name}", kind=SAE, version=1, inputs={}, config={"scale": scale}) as (
            out,
            _,
        ):
            save_sae(out, sae, INFO)
        where = ["status=ok"] if name == "new" else []
        found[name] = index_concepts(
            few_cells, load_sae(tmp_path / f"sae-{name}"), tmp_path / name / "index", store=store, where=where
        )
    name_concept(tmp_path / "old/names.parquet", found["old"], 1, "green", "A. Expert")
    assert _names(found["new"], None) == {}
    assert _names(found["new"], found["old"]) == {"1": "green"}
    with pytest.raises(CytosaeError, match="another dictionary"):
        _names(found["other"], tmp_path / "old/index")
    assert isinstance(store, TokenStore)


def test_a_share_is_not_rounded_to_all_or_none() -> None:
    said = [_percent(v) for v in (1.0, 0.9999, 0.995, 0.994, 0.5, 0.05, 0.0004, 0.0, float("nan"))]
    assert said == ["100%", ">99%", ">99%", "99%", "50%", "5.0%", "<0.1%", "0%", "–"]
