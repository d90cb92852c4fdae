"""Stores that keep some kinds of token, or some patches, and readers that want others."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from cytosae import CytosaeError, SparseAutoencoder, TokenStore, extract_tokens, index_concepts
from cytosae._errors import UsageError
from cytosae.cells import Cells
from cytosae.patients._cohort import mean_tokens
from cytosae.tokens import TokenStream, load_images, parse_keep, sample_patches
from stand_in import PatchColours

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def everything(cells: Cells) -> torch.Tensor:
    backbone = PatchColours()
    return backbone.tokens(load_images(cells.ok, cells.root, backbone)).half()  # type: ignore[arg-type]


def stored(cells: Cells, out: Path, **options: object) -> TokenStore:
    return extract_tokens(cells, PatchColours(), out, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("keep", "part"), [("class", slice(0, 1)), ("patch", slice(1, None)), ("patch+class", slice(None))]
)
def test_the_kinds_asked_for_are_kept_and_no_others(few_cells: Cells, tmp_path: Path, keep: str, part: slice) -> None:
    store = stored(few_cells, tmp_path / "t", keep=parse_keep(keep))
    wanted = everything(few_cells)[:, part]
    assert torch.equal(store.read(np.arange(12)), wanted)
    assert store.token_kinds == (["class"] + ["patch"] * 16)[part]
    assert torch.equal(torch.from_numpy(np.concatenate(store.shards)), wanted), "what numpy maps"
    assert (tmp_path / "t" / "tokens-00000.bin").stat().st_size == wanted.numel() * 2
    if "patch" in keep:
        assert torch.equal(store.read(np.array([7, 2]), kind="patch"), everything(few_cells)[[7, 2], 1:])


@pytest.mark.parametrize("keep", ["all", "patch"])
def test_random_patches_are_where_the_store_says(few_cells: Cells, tmp_path: Path, keep: str) -> None:
    store = stored(few_cells, tmp_path / "t", keep=parse_keep(keep), patches=5, seed=3)
    assert store.sampled
    assert store.n_prefix == (keep == "all")
    positions = np.array(pq.read_table(tmp_path / "t" / "rows.parquet")["patches"].to_pylist())
    assert np.array_equal(positions, store.patches)
    assert (np.diff(positions, axis=1) > 0).all()
    wanted = everything(few_cells)
    got = store.read(np.arange(12), kind="patch", partial=True)
    for cell in range(12):
        assert torch.equal(got[cell], wanted[cell, 1 + positions[cell]])
    if keep == "all":
        assert torch.equal(store.read(np.arange(12), kind="class"), wanted[:, :1])


def test_a_cells_patches_do_not_depend_on_the_other_cells() -> None:
    ids = np.array([4, 9, -2, 2**40])
    together = sample_patches(ids, 256, 20, seed=1)
    for i in range(len(ids)):
        assert np.array_equal(sample_patches(ids[i : i + 1], 256, 20, seed=1)[0], together[i])
    assert not np.array_equal(sample_patches(ids, 256, 20, seed=2), together)
    assert sample_patches(np.array([7]), 16, 4, seed=0).tolist() == [[2, 9, 11, 12]], "the same in every version"


def test_sampled_patches_cover_the_grid_evenly() -> None:
    counts = np.bincount(sample_patches(np.arange(4000), 16, 4, seed=0).ravel(), minlength=16)
    assert abs(counts - 1000).max() < 5 * np.sqrt(1000)


def test_a_kind_that_is_not_there_is_refused_by_name(few_cells: Cells, tmp_path: Path) -> None:
    patches = stored(few_cells, tmp_path / "p", keep=("patch",))
    with pytest.raises(CytosaeError, match=r"holds no class token \(it holds 16 patch\)"):
        patches.read(np.arange(2), kind="class")
    with pytest.raises(CytosaeError, match="holds no patch token"):
        stored(few_cells, tmp_path / "c", keep=("class",)).read(np.arange(2), kind="patch")


def test_who_needs_all_patches_says_so_of_a_sample(few_cells: Cells, tmp_path: Path) -> None:
    store = stored(few_cells, tmp_path / "t", patches=5)
    sae = SparseAutoencoder(torch.randn(8, 6), torch.zeros(6), torch.randn(6, 8), torch.zeros(8))
    for use in (
        lambda: index_concepts(few_cells, sae, tmp_path / "i", store=store),
        lambda: mean_tokens(store, few_cells.ok["cell_id"].to_numpy()),
        lambda: next(store.chunks(np.arange(3), 2, kind="patch")),
    ):
        with pytest.raises(CytosaeError, match="holds 5 random patches of each cell, but all 16 are needed"):
            use()
    assert not (tmp_path / "i").exists()
    assert TokenStream(store, np.arange(12), None, 60).n_tokens == 60, "training does not need all"


def test_what_cannot_be_kept_is_said_before_anything_is_computed(few_cells: Cells, tmp_path: Path) -> None:
    for options, message in [
        ({"keep": ("register",)}, r"no register token; it has 1 class, 16 patch \(--keep\)"),
        ({"patches": 17}, "gives 16 patches a cell"),
        ({"patches": 3, "keep": ("class",)}, "leaves them all out"),
    ]:
        with pytest.raises(UsageError, match=message):
            stored(few_cells, tmp_path / "t", **options)
    with pytest.raises(UsageError, match="did you mean 'patch'"):
        parse_keep("class+patches")
    assert not (tmp_path / "t").exists()
    assert not list(tmp_path.glob(".t.*"))


def test_all_patches_asked_for_by_number_are_the_whole_store(few_cells: Cells, tmp_path: Path) -> None:
    assert stored(few_cells, tmp_path / "a", patches=16).hash == stored(few_cells, tmp_path / "b").hash


def test_an_older_program_refuses_a_store_it_would_misread(few_cells: Cells, tmp_path: Path) -> None:
    assert stored(few_cells, tmp_path / "a").manifest["version"] == 1
    assert stored(few_cells, tmp_path / "b", keep=("patch",)).manifest["version"] == 2
    assert stored(few_cells, tmp_path / "c", patches=4).manifest["version"] == 2
