"""Stores with turned and mirrored views: what stands where, who reads them, and who does not."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from cytosae import SparseAutoencoder, TokenStore, extract_tokens, fit, index_concepts
from cytosae._errors import UsageError
from cytosae.cells import Cells, build_cells, bundled_path
from cytosae.reports._fit_page import write_fit_page
from cytosae.tokens import TokenStream, turned
from cytosae.training import override
from cytosae.training._fit import _stream
from stand_in import PatchColours

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def stored(cells: Cells, out: Path, **options: object) -> TokenStore:
    return extract_tokens(cells, PatchColours(), out, **options)  # type: ignore[arg-type]


def grids(store: TokenStore, rows: np.ndarray) -> np.ndarray:
    return store.read(rows, kind="patch").float().numpy().reshape(len(rows), *store.grid, -1)


def test_views_are_turned_pictures_behind_the_cells_as_they_are(few_cells: Cells, tmp_path: Path) -> None:
    plain, store = stored(few_cells, tmp_path / "a"), stored(few_cells, tmp_path / "b", views=8)
    rows = np.array([7, 2])
    assert torch.equal(store.read(np.arange(12)), plain.read(np.arange(12)))
    assert store.views_of(rows).tolist() == [7, 2, 19, 14, 31, 26, 43, 38, 55, 50, 67, 62, 79, 74, 91, 86]
    assert plain.views_of(rows).tolist() == [7, 2]
    seen = grids(store, store.views_of(rows)).reshape(8, 2, *store.grid, -1)
    for view in range(8):
        np.testing.assert_allclose(seen[view], turned(grids(plain, rows), view), atol=2e-3)
    apart = [abs(a - b).max() for i, a in enumerate(seen) for b in seen[:i]]
    assert min(apart) > 0.05, "no view is another again"
    assert store.manifest["version"] == 3, "an older program would miscount its rows"
    assert (store.n_rows, store.n_views, plain.n_views) == (12, 8, 1)


def test_the_first_turn_is_counterclockwise_and_odd_views_are_mirrored() -> None:
    letter = np.arange(4).reshape(1, 2, 2)
    assert turned(letter, 0).tolist() == [[[0, 1], [2, 3]]]
    assert turned(letter, 1).tolist() == [[[1, 0], [3, 2]]]
    assert turned(letter, 2).tolist() == [[[1, 3], [0, 2]]]
    assert turned(letter, 3).tolist() == [[[3, 1], [2, 0]]]


def test_only_training_reads_the_further_views(few_cells: Cells, tmp_path: Path) -> None:
    plain, store = stored(few_cells, tmp_path / "a"), stored(few_cells, tmp_path / "b", views=3)
    d = plain.d_in
    sae = SparseAutoencoder(torch.eye(d), torch.zeros(d), torch.eye(d), torch.zeros(d))
    index_concepts(few_cells, sae, tmp_path / "i", store=plain)
    index_concepts(few_cells, sae, tmp_path / "j", store=store)
    a, b = (pd.read_parquet(tmp_path / name / "concepts.parquet") for name in "ij")
    pd.testing.assert_frame_equal(a, b)
    assert a["n_cells_active"].max() == 12
    recipe = override("small", ["presentations=500", "expansion=2", "background=1", "batch=16", "k=1"])
    trained = fit(store, few_cells, recipe, tmp_path / "sae", where=(), heldout=())
    assert trained.info["n_views"] == 3
    assert trained.info["n_cells_train"] == 12
    assert trained.info["n_tokens_train"] == 3 * 12 * 16
    assert "n_views" not in fit(plain, few_cells, recipe, tmp_path / "plain", where=(), heldout=()).info


def test_the_mask_of_the_cell_turns_with_it(few_cells: Cells, tmp_path: Path) -> None:
    store = stored(few_cells, tmp_path / "t", views=4)
    rows = np.arange(12)
    stream = _stream(store, few_cells, (), rows, override("small", ["background=0", "batch=1"]), 0)
    assert isinstance(stream, TokenStream)
    n = stream.n_tokens // 4
    assert 0 < n < 12 * 16, "some patches are off the cell"
    parts = stream.take(np.arange(stream.n_tokens)).float().numpy().reshape(4, n, -1)
    for part in parts[1:]:  # the same patches of each cell, in another order
        np.testing.assert_allclose(part.sum(0), parts[0].sum(0), rtol=1e-3)
        assert abs(part - parts[0]).max() > 0.05


def test_a_sample_of_the_patches_has_views_too(few_cells: Cells, tmp_path: Path) -> None:
    store = stored(few_cells, tmp_path / "t", views=2, patches=5)
    whole = stored(few_cells, tmp_path / "w", views=2)
    rows = store.views_of(np.arange(12))
    got, every = store.read(rows, kind="patch", partial=True), whole.read(rows, kind="patch")
    for i, row in enumerate(rows):
        assert torch.equal(got[i], every[i, store.patches[row % 12]])
    kept = np.zeros((24, 16), bool)
    kept[:, store.patches[0, :2]] = True
    assert TokenStream(store, rows, kept, 4).n_tokens == sum(
        np.isin(store.patches[0, :2], store.patches[row % 12]).sum() for row in rows
    )


def test_a_stop_between_two_views_is_gone_on_from(tmp_path: Path) -> None:
    cells = build_cells(bundled_path(), tmp_path / "cells.parquet")

    class Stops(PatchColours):
        left = 40

        def tokens(self, images, layer=-2):  # type: ignore[no-untyped-def]
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt
            return super().tokens(images, layer)

    with pytest.raises(KeyboardInterrupt):
        extract_tokens(cells, Stops(), tmp_path / "a", views=2, compile="off")  # type: ignore[arg-type]
    assert not (tmp_path / "a").exists()
    assert list(tmp_path.glob(".a.*.partial/tokens-00001.bin")), "whole shards stay"
    went_on = stored(cells, tmp_path / "a", views=2, compile="off")
    assert went_on.hash == stored(cells, tmp_path / "b", views=2, compile="off").hash


@pytest.mark.parametrize("views", [0, 9])
def test_more_views_than_a_square_has_are_refused(few_cells: Cells, tmp_path: Path, views: int, cli: Cli) -> None:
    with pytest.raises(UsageError, match="a cell has 8"):
        stored(few_cells, tmp_path / "t", views=views)
    done = cli("tokens", tmp_path / "cells.parquet", "--views", str(views), "--out", tmp_path / "t")
    assert done.returncode == 2
    assert "--views" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "t").exists()


def test_the_manifest_says_how_many_views(few_cells: Cells, tmp_path: Path) -> None:
    stored(few_cells, tmp_path / "t", views=2)
    manifest = json.loads((tmp_path / "t" / "manifest.json").read_text())
    assert manifest["config"]["views"] == manifest["n_views"] == 2
    stored(few_cells, tmp_path / "p")
    assert "n_views" not in json.loads((tmp_path / "p" / "manifest.json").read_text())


def test_the_page_of_a_training_names_the_views(few_cells: Cells, tmp_path: Path) -> None:
    store = stored(few_cells, tmp_path / "t", views=2)
    recipe = override("small", ["presentations=4000", "expansion=2", "background=1", "batch=16", "k=1"])
    trained = fit(store, few_cells, recipe, tmp_path / "sae", where=(), heldout=())
    page = write_fit_page(tmp_path / "sae", trained).read_text()
    assert "trained on 384 tokens of 12 cells in 2 views" in page
