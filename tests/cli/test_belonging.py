"""Parts that do not belong together: another table's tokens, another dictionary's index."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from cytosae import CytosaeError, SparseAutoencoder, TokenStore, extract_tokens, fit, index_concepts, load_sae
from cytosae.cells import Cells, build_cells
from cytosae.cli._main import run
from cytosae.sae import KIND, VERSION, save_sae
from cytosae.storage import commit_folder
from cytosae.training import override
from stand_in import PatchColours

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def store(few_cells: Cells, tmp_path: Path) -> TokenStore:
    return extract_tokens(few_cells, PatchColours(), tmp_path / "t")  # type: ignore[arg-type]


@pytest.fixture
def other_table(cell_folder: Path, store: TokenStore, tmp_path: Path) -> Cells:
    """As many cells by the same ids, but all others under them."""
    last = sorted(cell_folder.rglob("*.jpg"))[-1]
    shutil.move(last, cell_folder / "a.jpg")  # which comes first
    return build_cells(cell_folder, tmp_path / "other.parquet")


def dictionary(folder: Path, seed: int) -> SparseAutoencoder:
    torch.manual_seed(seed)
    W = torch.randn(8, 3)
    sae = SparseAutoencoder(W, torch.zeros(3), W.T.contiguous(), torch.zeros(8))
    with commit_folder(folder, kind=KIND, version=VERSION, inputs={}, config={"seed": seed}) as (work, _):
        save_sae(work, sae, {"layer": -2})
    return load_sae(folder)


def test_another_table_s_tokens_are_refused_where_the_ids_are_the_same(
    few_cells: Cells, other_table: Cells, store: TokenStore, tmp_path: Path
) -> None:
    said = "holds tokens of another image by the id of cell .* made from another table; give that table"
    recipe = override("small", ["background=1", "batch=64", "presentations=200", "products=float32"])
    with pytest.raises(CytosaeError, match=said):
        fit(store, other_table, recipe, tmp_path / "s", where=(), heldout=())
    sae = dictionary(tmp_path / "d", 0)
    with pytest.raises(CytosaeError, match=said):
        index_concepts(other_table, sae, tmp_path / "i", store=store)
    assert not (tmp_path / "s").exists()
    assert not (tmp_path / "i").exists()
    # the same images in a table that was written again, say with another split, are welcome
    again = Cells(few_cells.frame.assign(split="train"), few_cells.root)
    assert len(store.rows_of(again.ok["cell_id"].to_numpy(), again.ok["sha256"].tolist())) == 12
    assert "image" in pq.read_schema(store.folder / "rows.parquet").names


def test_an_index_of_another_dictionary_explains_nothing(
    cli: Cli, cell_folder: Path, few_cells: Cells, store: TokenStore, tmp_path: Path
) -> None:
    mine, _ = dictionary(tmp_path / "d", 0), dictionary(tmp_path / "e", 1)
    index_concepts(few_cells, mine, tmp_path / "i", store=store)
    image = next(cell_folder.rglob("*.jpg"))
    done = cli("explain", image, "--sae", tmp_path / "e", "--index", tmp_path / "i", "--out", tmp_path / "x")
    assert done.returncode == 2
    assert "is not an index of" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "x").exists()


def test_several_blocks_without_factors_want_their_backbone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["import", "sae", str(tmp_path / "x"), "--layer", "5,8,10", "--out", str(tmp_path / "o")]) == 2
    assert "--layer 5x4,8x2,10x1" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
