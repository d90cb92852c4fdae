from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from cytosae import ConceptIndex, CytosaeError, SparseAutoencoder, concept_map, extract_tokens, index_concepts
from cytosae.cells import Cells, build_cells
from cytosae.concepts import concept_maps, patch_box, rank_concepts, read_cells_by_concepts
from cytosae.tokens import TokenStore
from stand_in import PatchColours


@pytest.fixture
def store(few_cells: Cells, tmp_path: Path) -> TokenStore:
    return extract_tokens(few_cells, PatchColours(), tmp_path / "t", store="float32")  # type: ignore[arg-type]


def test_the_index_equals_a_plain_computation(
    few_cells: Cells, store: TokenStore, colours: SparseAutoencoder, tmp_path: Path
) -> None:
    index = index_concepts(few_cells, colours, tmp_path / "i", store=store, cells_matrix=True)
    codes = colours.encode(store.read(np.arange(12), kind="patch").float()).numpy()
    assert np.allclose(index.concepts["max_activation"], codes.max((0, 1)))
    assert list(index.concepts["n_tokens_active"]) == list((codes > 0).sum((0, 1)))
    assert index.exemplars_of(0)["cell_id"].iloc[0] == codes[:, :, 0].max(1).argmax()
    matrix = read_cells_by_concepts(tmp_path / "i")
    assert np.allclose(matrix.maximum.toarray(), codes.max(1))
    assert np.allclose(matrix.mean.toarray(), codes.mean(1), atol=1e-6)
    assert list(matrix.obs["label"]) == list(few_cells.frame["label"])


def test_which_other_cells_are_indexed_changes_no_value(
    few_cells: Cells, store: TokenStore, colours: SparseAutoencoder, tmp_path: Path
) -> None:
    whole = index_concepts(few_cells, colours, tmp_path / "a", store=store)
    one = index_concepts(few_cells, colours, tmp_path / "b", store=store, where=["cell_id=7"])
    a, b = whole.exemplars.query("cell_id == 7"), one.exemplars
    assert a.set_index("latent")["value"].to_dict() == b.set_index("latent")["value"].to_dict()


def test_the_same_index_has_the_same_bytes_and_is_not_made_twice(
    few_cells: Cells, store: TokenStore, colours: SparseAutoencoder, tmp_path: Path
) -> None:
    a = index_concepts(few_cells, colours, tmp_path / "a", store=store)
    b = index_concepts(few_cells, colours, tmp_path / "b", store=store)
    assert a.hash == b.hash
    stamp = (tmp_path / "a" / "manifest.json").stat().st_mtime_ns
    index_concepts(few_cells, colours, tmp_path / "a", store=store)
    assert (tmp_path / "a" / "manifest.json").stat().st_mtime_ns == stamp


def test_cells_without_labels_are_fine(tmp_path: Path, cell_folder: Path, colours: SparseAutoencoder) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in cell_folder.rglob("*.jpg"):
        (flat / path.name).write_bytes(path.read_bytes())
    cells = build_cells(flat, tmp_path / "flat.parquet")
    store = extract_tokens(cells, PatchColours(), tmp_path / "ft")  # type: ignore[arg-type]
    index = index_concepts(cells, colours, tmp_path / "fi", store=store, cells_matrix=True)
    assert index.concepts["top_label"].isna().all()
    assert index.labels.empty


def test_tokens_of_another_backbone_are_refused(
    few_cells: Cells, store: TokenStore, colours: SparseAutoencoder, tmp_path: Path
) -> None:
    other = dataclasses.replace(colours, info={"backbone": {"name": "other", "sha256": "1"}})
    with pytest.raises(CytosaeError, match="the dictionary reads other; extract them with --backbone other"):
        index_concepts(few_cells, other, tmp_path / "i", store=store)
    narrow = SparseAutoencoder(torch.ones(3, 2), torch.zeros(2), torch.ones(2, 3), torch.zeros(3))
    with pytest.raises(CytosaeError, match="8 wide, but the dictionary wants 3"):
        index_concepts(few_cells, narrow, tmp_path / "i", store=store)


def test_an_index_without_a_file_or_concept_says_so(
    few_cells: Cells, store: TokenStore, colours: SparseAutoencoder, tmp_path: Path
) -> None:
    index = index_concepts(few_cells, colours, tmp_path / "i", store=store)
    with pytest.raises(CytosaeError, match="0 to 2"):
        index.exemplars_of(3)
    with pytest.raises(CytosaeError, match="--cells-matrix"):
        read_cells_by_concepts(tmp_path / "i")
    (tmp_path / "i" / "exemplars.parquet").unlink()
    with pytest.raises(CytosaeError, match=r"exemplars\.parquet is missing"):
        ConceptIndex(tmp_path / "i")


@pytest.mark.parametrize("grid", [(4, 4), (2, 8), (8, 2), (1, 1)])
def test_an_odd_patch_is_found_wherever_it_is(colours: SparseAutoencoder, grid: tuple[int, int]) -> None:
    backbone = PatchColours(grid=grid, side=32)
    h, w = 32 // grid[0], 32 // grid[1]
    for row in range(grid[0]):
        for column in range(grid[1]):
            image = np.zeros((32, 32, 3), np.uint8)
            image[row * h : (row + 1) * h, column * w : (column + 1) * w, 1] = 255
            found = concept_map(colours, backbone.tokens(image[None])[0], 1, grid, n_prefix=1)
            assert np.unravel_index(found.argmax(), grid) == (row, column)
            assert (found > 0).sum() == 1
            assert patch_box(row * grid[1] + column, grid, 64, 16) == (
                column * 64 / grid[1], row * 16 / grid[0], (column + 1) * 64 / grid[1], (row + 1) * 16 / grid[0]
            )  # fmt: skip


@pytest.mark.parametrize("n_prefix", [0, 1, 5])
def test_prefix_tokens_are_no_place_in_the_image(colours: SparseAutoencoder, n_prefix: int) -> None:
    tokens = torch.zeros(n_prefix + 6, 8)
    tokens[:n_prefix, 1] = 9
    tokens[n_prefix + 4, 1] = 1
    found = concept_maps(colours, tokens, [1], (2, 3), n_prefix)
    assert found.shape == (1, 2, 3)
    assert found[0, 1, 1] == 0.5
    assert found.sum() == 0.5
    with pytest.raises(CytosaeError, match="do not fill"):
        concept_maps(colours, tokens, [1], (2, 2), n_prefix)
    with pytest.raises(CytosaeError, match="concepts 0 to 2"):
        concept_maps(colours, tokens, [3], (2, 3), n_prefix)


def test_what_every_cell_has_explains_none(
    few_cells: Cells, store: TokenStore, colours: SparseAutoencoder, tmp_path: Path
) -> None:
    index = index_concepts(few_cells, colours, tmp_path / "i", store=store)
    index.concepts["frequency"] = [1.0, 0.1, 0.5]
    score = rank_concepts(np.ones((16, 3)), None, index)
    assert score[0] == 0
    assert score[1] > score[2] > 0


def test_what_lies_off_the_cell_does_not_explain_it() -> None:
    cell = np.zeros(16)
    cell[5:8] = 1
    codes = np.zeros((16, 3), np.float32)
    codes[5, 0] = 1
    codes[:, 1] = 1
    assert list(rank_concepts(codes, cell) > 0) == [True, False, False]
    assert list(rank_concepts(codes) > 0) == [True, True, False]
