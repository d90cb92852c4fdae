from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from cytosae import CytosaeError, TokenStore, extract_tokens
from cytosae.cells import Cells, select
from cytosae.tokens import TokenOrder, load_images
from stand_in import PatchColours


@pytest.mark.parametrize(("store", "tolerance"), [("float32", 0.0), ("float16", 1e-3), ("bfloat16", 8e-3)])
def test_tokens_come_back_as_they_were_stored(few_cells: Cells, tmp_path: Path, store: str, tolerance: float) -> None:
    backbone = PatchColours()
    tokens = extract_tokens(few_cells, backbone, tmp_path / "t", store=store)  # type: ignore[arg-type]
    wanted = backbone.tokens(load_images(few_cells.ok, few_cells.root, backbone))  # type: ignore[arg-type]
    rows = np.array([5, 0, 11])
    got = tokens.read(rows).float()
    assert torch.allclose(got, wanted[rows], rtol=tolerance, atol=tolerance)
    assert tokens.read(rows, kind="patch").shape == (3, 16, 8)
    assert torch.equal(tokens.read(rows, kind="class").float(), got[:, :1])
    assert tokens.manifest["max_abs"] == pytest.approx(float(wanted.abs().max()))


def test_a_second_run_computes_nothing(few_cells: Cells, tmp_path: Path) -> None:
    backbone = PatchColours()
    extract_tokens(few_cells, backbone, tmp_path / "t")  # type: ignore[arg-type]
    before = backbone.n_calls
    extract_tokens(few_cells, backbone, tmp_path / "t")  # type: ignore[arg-type]
    assert backbone.n_calls == before


def test_a_value_that_does_not_fit_is_refused_not_turned_into_infinity(few_cells: Cells, tmp_path: Path) -> None:
    with pytest.raises(CytosaeError, match="--store bfloat16"):
        extract_tokens(few_cells, PatchColours(scale=1e5), tmp_path / "t", store="float16")  # type: ignore[arg-type]
    extract_tokens(few_cells, PatchColours(scale=1e5), tmp_path / "t", store="bfloat16")  # type: ignore[arg-type]


def test_a_backbone_that_gives_no_numbers_is_named(few_cells: Cells, tmp_path: Path) -> None:
    with pytest.raises(CytosaeError, match="not numbers"):
        extract_tokens(few_cells, PatchColours(scale=float("nan")), tmp_path / "t")  # type: ignore[arg-type]


def test_an_image_changed_since_the_table_is_found(cell_folder: Path, few_cells: Cells, tmp_path: Path) -> None:
    victim = next(cell_folder.rglob("3.jpg"))
    shutil.copy(next(cell_folder.rglob("4.jpg")), victim)
    with pytest.raises(CytosaeError, match=r"3\.jpg has changed since"):
        extract_tokens(few_cells, PatchColours(), tmp_path / "t")  # type: ignore[arg-type]


def test_a_cell_without_tokens_is_named(few_cells: Cells, tmp_path: Path) -> None:
    store = extract_tokens(few_cells, PatchColours(), tmp_path / "t")  # type: ignore[arg-type]
    with pytest.raises(CytosaeError, match="no tokens of cell 99"):
        store.rows_of([1, 99])


def test_a_shard_cut_short_is_found(few_cells: Cells, tmp_path: Path) -> None:
    extract_tokens(few_cells, PatchColours(), tmp_path / "t")  # type: ignore[arg-type]
    shard = tmp_path / "t" / "tokens-00000.bin"
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(CytosaeError, match="cut short"):
        TokenStore(tmp_path / "t")


def test_the_order_is_a_pure_function_and_shows_every_token_once_an_epoch() -> None:
    order = TokenOrder(1003, 100, seed=3)
    epoch = np.concatenate([order.at(step) for step in range(order.steps_per_epoch)])
    assert len(np.unique(epoch)) == 1000
    assert np.array_equal(TokenOrder(1003, 100, seed=3).at(14), order.at(14))
    assert not np.array_equal(order.at(4), order.at(14)), "another epoch, another order"
    assert not np.array_equal(TokenOrder(1003, 100, seed=4).at(4), order.at(4))


def test_where_says_what_is_wrong(few_cells: Cells) -> None:
    assert set(select(few_cells, ["label=neutrophil,eosinophil"])["label"]) <= {"neutrophil", "eosinophil"}
    assert "neutrophil" not in set(select(few_cells, ["label!=neutrophil"])["label"])
    for condition, message in [
        ("label", "column=value"),
        ("lable=x", "did you mean 'label'"),
        ("label=unicorn", "No usable cell"),
    ]:
        with pytest.raises(CytosaeError, match=message):
            select(few_cells, [condition])
