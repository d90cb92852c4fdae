"""Several blocks side by side, from the command line's option to a dictionary that explains a cell."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cytosae import CytosaeError, SparseAutoencoder, extract_tokens, fit, index_concepts, splice
from cytosae.backbones import Backbone, layer_option
from cytosae.cells import Cells, decode_image
from cytosae.concepts import backbone_of, check_tokens, explain_pixels
from cytosae.evaluation import remove_concepts
from cytosae.sae.formats import Belonging, import_sae
from cytosae.sae.formats._hugging_face import write_hugging_face
from cytosae.tokens import balanced, load_images
from cytosae.training import override
from small_vit import small_vit


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return small_vit()


def test_factors_bring_the_blocks_to_one_spread_and_do_not_depend_on_the_cells(
    backbone: Backbone, few_cells: Cells
) -> None:
    layer: Any = balanced(backbone, [0, 2, 1])
    assert [block for block, _ in layer] == [0, 1, 2]
    assert layer[-1][1] == 1
    assert all(math.log2(factor).is_integer() for _, factor in layer)
    tokens = backbone.tokens(load_images(few_cells.ok, few_cells.root, backbone), layer)[:, 1:].flatten(0, 1)
    spread = (tokens - tokens.mean(0)).square().mean(0).view(3, -1).sum(1).sqrt()
    assert float(spread.max() / spread.min()) < 2.5, (
        "powers of two leave at most a factor of two, and other cells a little"
    )
    assert balanced(backbone, layer) == layer
    assert balanced(backbone, [[0, 2], 1]) == [[0, 2.0], [1, 1.0]]
    assert balanced(backbone, -2) == -2
    with pytest.raises(CytosaeError, match="has 3 blocks"):
        balanced(backbone, [0, 7])


def test_the_store_holds_exactly_each_block_times_its_factor(
    backbone: Backbone, few_cells: Cells, tmp_path: Path
) -> None:
    one = extract_tokens(few_cells, backbone, tmp_path / "one", layer=0)
    last = extract_tokens(few_cells, backbone, tmp_path / "last", layer=2)
    both = extract_tokens(few_cells, backbone, tmp_path / "both", layer=[[0, 4], [2, 1]])
    assert both.manifest["layer"] == [[0, 4.0], [2, 1.0]]
    assert (both.d_in, both.n_blocks, one.n_blocks) == (96, 2, 1)
    rows = np.arange(both.n_rows)
    assert torch.equal(both.read(rows).float(), torch.cat([one.read(rows).float() * 4, last.read(rows).float()], -1))


@pytest.fixture(scope="module")
def trained(backbone: Backbone, few: Cells, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    out = tmp_path_factory.mktemp("several")
    store = extract_tokens(few, backbone, out / "tokens", layer=[0, 2])
    recipe = override("small", ["presentations=4000", "batch=64", "k=4"])
    return store, fit(store, few, recipe, out / "sae", where=(), heldout=())


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory, some_jpegs: list[bytes]) -> Cells:
    from cytosae.cells import build_cells

    root = tmp_path_factory.mktemp("few")
    (root / "img" / "a").mkdir(parents=True)
    for i, data in enumerate(some_jpegs[:12]):
        (root / "img" / "a" / f"{i}.jpg").write_bytes(data)
    return build_cells(root / "img", root / "cells.parquet")


def test_width_counts_the_dimensions_of_one_block(trained: tuple[Any, Any]) -> None:
    store, sae = trained
    assert (sae.d_in, sae.n_latents) == (96, 2 * 48)
    assert sae.info["layer"] == store.manifest["layer"]
    check_tokens(sae, store)


def test_index_explain_and_splice_take_the_blocks_from_the_dictionary(
    trained: tuple[Any, Any], backbone: Backbone, few: Cells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cytosae.concepts._stream as stream

    store, sae = trained
    monkeypatch.setattr(stream, "load_backbone", lambda *_, **__: backbone)
    monkeypatch.setattr(backbone, "weights_sha256", sae.info["backbone"]["sha256"])
    again, layer = backbone_of(sae, "cpu")
    assert layer == store.manifest["layer"]
    stored = index_concepts(few, sae, tmp_path / "stored", store=store)
    computed = index_concepts(few, sae, tmp_path / "computed")
    assert stored.n_cells == computed.n_cells == len(few)
    a, b = stored.concepts["n_tokens_active"].sum(), computed.concepts["n_tokens_active"].sum()
    assert abs(a - b) <= 0.02 * a, "float16 in the store and float32 computed"
    pixels = decode_image((Path(few.root) / few.ok["image"].iloc[3]).read_bytes()).pixels
    explained = explain_pixels("cell", pixels, sae, again)
    wanted = sae.encode(backbone.tokens(np.stack([backbone.preprocessing.resize(pixels)]), layer)[0, 1:]).max(0).values
    assert explained.concepts["value"].to_numpy() == pytest.approx(
        wanted[explained.concepts["latent"].tolist()].numpy()
    )
    active = int(explained.concepts["latent"].iloc[0])
    cut = splice(again, sae, pixels, remove_concepts([active]))
    whole = splice(again, sae, pixels, remove_concepts([]))
    assert torch.equal(whole.before, whole.after)
    assert not torch.equal(cut.before, cut.after)


def test_a_dictionary_of_several_blocks_refuses_one(
    trained: tuple[Any, Any], backbone: Backbone, few: Cells, tmp_path: Path
) -> None:
    _, sae = trained
    with pytest.raises(CytosaeError, match="48 wide"):
        check_tokens(sae, extract_tokens(few, backbone, tmp_path / "one"))
    other = extract_tokens(few, backbone, tmp_path / "other", layer=[[0, 16], [2, 1]])
    with pytest.raises(CytosaeError, match=r"--layer 0x[0-9]+,2x1"):
        check_tokens(sae, other)
    with pytest.raises(CytosaeError, match="gives 48"):
        splice(backbone, sae, np.zeros((32, 32, 3), np.uint8), remove_concepts([]), layer=1)
    nowhere = replace(sae, info={k: v for k, v in sae.info.items() if k != "layer"})
    with pytest.raises(CytosaeError, match="does not say which block"):
        splice(backbone, nowhere, np.zeros((32, 32, 3), np.uint8), remove_concepts([]))


def test_a_model_folder_keeps_the_blocks_and_comes_back(
    trained: tuple[Any, Any], backbone: Backbone, tmp_path: Path
) -> None:
    store, sae = trained
    folder = tmp_path / "model"
    folder.mkdir()
    write_hugging_face(folder, sae, title="two blocks", licence="mit")
    assert layer_option(store.manifest["layer"]) in (folder / "README.md").read_text()
    shutil.copytree(folder, tmp_path / "theirs")
    back = import_sae(tmp_path / "theirs", tmp_path / "mine", belongs=Belonging.of_tokens(store))
    assert back.info["layer"] == store.manifest["layer"]
    layer = backbone.tap([[0, 2], [2, 1]]).as_layer()
    again = import_sae(
        tmp_path / "theirs", tmp_path / "other", belongs=Belonging.of_backbone(backbone, layer), layer=layer
    )
    assert again.info["layer"] == layer
    with pytest.raises(CytosaeError, match="96 numbers a token, but small has 48"):
        import_sae(tmp_path / "theirs", tmp_path / "none", belongs=Belonging.of_backbone(backbone))


@pytest.mark.backbone
def test_the_command_line_keeps_several_blocks(cli: Callable[..., Any], few: Cells, tmp_path: Path) -> None:
    table = Path(few.root).parent / "cells.parquet"
    done = cli("tokens", table, "--layer", "5,8,10", "--out", tmp_path / "t")
    assert done.returncode == 0, done.stderr
    assert "257 x 1152 each" in done.stdout
    bad = cli("tokens", table, "--layer", "5,8;10", "--out", tmp_path / "bad")
    assert bad.returncode == 2
    assert "several side by side (5,8,10)" in bad.stderr
    assert not (tmp_path / "bad").exists()


def test_the_same_block_named_in_another_way_is_the_same(backbone: Backbone, few: Cells, tmp_path: Path) -> None:
    last_but_one = extract_tokens(few, backbone, tmp_path / "a")
    by_number = extract_tokens(few, backbone, tmp_path / "b", layer=backbone.depth - 2)
    other = extract_tokens(few, backbone, tmp_path / "c", layer=0)
    d = last_but_one.d_in
    m = last_but_one.manifest
    info = {key: m[key] for key in ("backbone", "layer", "preprocessing")}
    sae = SparseAutoencoder(torch.eye(d), torch.zeros(d), torch.eye(d), torch.zeros(d), info=info)
    check_tokens(sae, last_but_one)
    check_tokens(sae, by_number)
    assert torch.equal(by_number.read(np.arange(2)), last_but_one.read(np.arange(2)))
    with pytest.raises(CytosaeError, match="are of block 0, but the dictionary reads block -2"):
        check_tokens(sae, other)
