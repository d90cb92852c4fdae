"""A report tells what is known of a dictionary, and says so where something is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from cytosae import SparseAutoencoder, extract_tokens, index_concepts
from cytosae.cells import Cells
from cytosae.concepts import name_concept
from cytosae.reports import write_report
from cytosae.sae.formats import import_sae
from stand_in import PatchColours

Made = Callable[..., str]


@pytest.fixture
def made(few_cells: Cells, few_colours: SparseAutoencoder, tmp_path: Path) -> Made:
    """The report of a run in `tmp_path` whose dictionary was imported with this record."""

    def make(names: bool = False, **info: Any) -> str:
        (tmp_path / "foreign").mkdir()
        weights = {name: getattr(few_colours, name).contiguous() for name in ("W_enc", "b_enc", "W_dec", "b_dec")}
        save_file(weights, tmp_path / "foreign" / "sae.safetensors")
        d_in, n_latents = few_colours.W_enc.shape
        record = {"activation": "relu", "d_in": d_in, "n_latents": n_latents, **info}
        (tmp_path / "foreign" / "sae.json").write_text(json.dumps(record))
        sae = import_sae(tmp_path / "foreign", tmp_path / "sae")
        store = extract_tokens(few_cells, PatchColours(), tmp_path / "tokens", store="float32")  # type: ignore[arg-type]
        index = index_concepts(few_cells, sae, tmp_path / "index", store=store, cells_matrix=True)
        if names:
            name_concept(tmp_path / "names.parquet", index, 0, "<b>red</b> granules", "A. Expert")
            name_concept(tmp_path / "names.parquet", index, 1, "green", "A. Expert")
            name_concept(tmp_path / "names.parquet", index, 2, "blue", "A. Expert")
        return write_report(tmp_path).read_text("utf-8")

    return make


def test_a_report_on_an_imported_dictionary_says_what_is_not_known(made: Made) -> None:
    page = made()
    assert "which cells trained the dictionary: it was imported" in page
    assert "may be among those that trained it" in page
    assert "which tokens it was trained on is not known" in page
    assert "imported from CytoSAE" in page
    assert "None" not in page.split("</style>")[1]
    assert "outside the training part" not in page


def test_metrics_that_came_along_are_shown_as_far_as_they_go(made: Made) -> None:
    page = made(metrics={"explained_variance": 0.75, "l0": 3.0}, token_kinds=["patch"], n_cells_train=5)
    assert "0.750" in page
    assert "principal components" not in page
    assert "Measured on" not in page
    assert "trained on patch tokens only" in page
    assert "cells trained the dictionary</span>" in page


def test_names_are_shown_with_who_gave_them(made: Made) -> None:
    page = made(names=True)
    assert "Named so by A. Expert" in page
    assert "&lt;b&gt;red&lt;/b&gt; granules" in page or "green" in page
    assert "<b>red</b>" not in page
    assert "3 of these concepts have names, which people gave" in page
    assert "has been checked by a morphologist" not in page
