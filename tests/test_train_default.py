"""``make train-default`` in small: from cells to a whole bundle, with what was kept out and what has no licence."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from cytosae import CytosaeError, extract_tokens, read_cells
from cytosae.cells import build_cells, write_cells
from cytosae.concepts import Bundle
from stand_in import PatchColours

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    sys.path.insert(0, str(SCRIPTS))
    try:
        spec = importlib.util.spec_from_file_location("train_default", SCRIPTS / "train_default.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(SCRIPTS))
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 small pictures of one data set and 40 of another, with tokens of the stand-in."""
    folder = tmp_path_factory.mktemp("train")
    rng = np.random.default_rng(0)
    for n in range(280):
        colour = rng.integers(60, 200, 3)
        pixels = np.clip(colour + rng.normal(0, 30, (32, 32, 3)), 0, 255).astype(np.uint8)
        path = folder / "images" / ("ig" if n % 2 else "lymphocyte") / f"{n:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    every = build_cells(folder / "images", folder / "all.parquet")
    number = every.frame["image"].str[-7:-4].astype(int)
    some = every.frame.assign(dataset=np.where(number < 240, "acevedo_pbc", "bmc_marrow"))
    write_cells(folder / "cells.parquet", some, root=every.root, inputs={}, config={})
    extract_tokens(read_cells(folder / "cells.parquet"), PatchColours(), folder / "tokens")  # type: ignore[arg-type]
    return folder


def test_a_bundle_is_made_whole_and_holds_the_marrow_out(script: ModuleType, folder: Path) -> None:
    given = ["--cells", str(folder / "cells.parquet"), "--tokens", str(folder / "tokens"), "--hold-out", "dataset=bmc_marrow",
             "--presentations", "4096", "--label", "ig=immature granulocyte", "--reference-cells", "40",
             "--work", str(folder / "work"), "--out", str(folder / "out")]  # fmt: skip
    script.main(given)
    bundle = Bundle(folder / "out")
    assert bundle.sae.n_latents == 32
    assert bundle.index.manifest["inputs"]["sae"] == bundle.sae.hash
    assert set(bundle.index.manifest["groups"]["dataset"]) == {"acevedo_pbc", "bmc_marrow"}
    assert 20 <= len(bundle.reference.cells) <= 40
    assert "immature granulocyte" in set(bundle.reference.cells["label"])
    assert bundle.sae.info["n_cells_train"] == 240
    assert "40 cells of bmc_marrow" in bundle.card
    assert "Kept out of training: bmc_marrow" in bundle.card
    assert str(folder) not in bundle.card


def test_cells_without_a_free_licence_do_not_get_in(script: ModuleType, folder: Path, tmp_path: Path) -> None:
    given = ["--cells", str(folder / "cells.parquet"), "--credit", "bmc_marrow=Somebody, GPL-3.0", "--work", str(tmp_path / "w"),
             "--out", str(tmp_path / "o")]  # fmt: skip
    with pytest.raises(CytosaeError, match="The cells of bmc_marrow have no free licence on record"):
        script.main(given)
    assert not (tmp_path / "o").exists()
