"""``make train-default`` in small: from cells to a whole bundle, with what was kept out and what has no licence."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from scipy import stats

from cytosae import CytosaeError, extract_tokens, read_cells
from cytosae.backbones import packaged_weights, unpack_difference
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
    assert bundle.sae.n_latents == 64
    assert bundle.index.manifest["inputs"]["sae"] == bundle.sae.hash
    assert set(bundle.index.manifest["groups"]["dataset"]) == {"acevedo_pbc", "bmc_marrow"}
    assert 20 <= len(bundle.reference.cells) <= 40
    assert "immature granulocyte" in set(bundle.reference.cells["label"])
    assert bundle.sae.info["n_cells_train"] == 240
    assert "40 cells of bmc_marrow" in bundle.card
    assert "Kept out of training: bmc_marrow" in bundle.card
    assert str(folder) not in bundle.card
    assert bundle.reference.manifest["unusual_block"] is None
    script.main([*given, "--unusual-block", "1", "--class-tokens", str(folder / "tokens")])
    assert Bundle(folder / "out").reference.manifest["unusual_block"] == 1


def test_cells_without_a_free_licence_do_not_get_in(script: ModuleType, folder: Path, tmp_path: Path) -> None:
    given = ["--cells", str(folder / "cells.parquet"), "--credit", "bmc_marrow=Somebody, GPL-3.0", "--work", str(tmp_path / "w"),
             "--out", str(tmp_path / "o")]  # fmt: skip
    with pytest.raises(CytosaeError, match="The cells of bmc_marrow have no free licence on record"):
        script.main(given)
    assert not (tmp_path / "o").exists()


def scorecard(value: float, what: str = "best single concept, AP") -> dict[str, object]:
    one = {"what": what, "dictionary": {"value": value, "low": value - 0.01, "high": value + 0.01}, "verdict": "better",
           "controls": [{"name": "raw", "title": "raw dimensions", "value": 0.5}]}  # fmt: skip
    return {
        "cells": {"n": 100, "n_score": 50},
        "sections": [{"title": "Attributes", "comparisons": [one]}],
        "skipped": {},
    }


def test_the_card_says_what_another_training_would_score(script: ModuleType) -> None:
    card = sys.modules["model_card"]
    lines = card._scores("Acevedo", scorecard(0.8), [scorecard(0.7), scorecard(0.9), scorecard(0.1, "something else")])
    # mean .8, s .1, t(2) = 4.303, sqrt(4/3): .8 -/+ .497
    assert (
        lines[-2]
        == "| Attributes | best single concept, AP | 0.8 (0.79 to 0.81) | raw dimensions: 0.5 | better | 0.303 to 1 |"
    )
    assert "another training (4 dictionaries)" in lines[-4]
    alone = card._scores("Acevedo", scorecard(0.8))
    assert alone[-2].endswith("| better |")
    assert not any("another training" in line for line in alone)


def test_the_interval_for_another_training_holds_as_often_as_it_says(script: ModuleType) -> None:
    text = sys.modules["model_card"].another_training
    rng = np.random.default_rng(0)
    inside = []
    for values in rng.normal(0.5, 0.03, (2000, 5)):
        low, high = (float(part) for part in text(list(values[:4])).split(" to "))
        inside.append(low <= values[4] <= high)
    assert 0.935 < np.mean(inside) < 0.965
    assert text([0.5, 0.6]) == ""


def test_the_card_says_what_longer_training_would_score(script: ModuleType) -> None:
    card = sys.modules["model_card"]
    repeats, longer = [scorecard(0.7), scorecard(0.9)], [scorecard(v) for v in (0.9, 1.0, 1.1)]
    lines = card._scores("Acevedo", scorecard(0.8), repeats, longer)
    # means .8 and 1.0, s .1 each: t(4) = 2.776 times sqrt(.02 / 3)
    assert lines[-2].endswith("| 0.303 to 1 | +0.200 (-0.027 to +0.427) |")
    assert "trained for longer (3), less this (3)" in lines[-4]
    assert any("Of 1 scores the interval lies above 0 (longer is better) 0 times" in line for line in lines)
    far = [scorecard(v) for v in (1.9, 2.0, 2.1)]
    assert any("above 0 (longer is better) 1 times" in line for line in card._scores("A", scorecard(0.8), repeats, far))
    for few in (longer[:2], [scorecard(0.9, "something else")] * 3):  # too few of them, or none of this score
        assert "+" not in card._scores("Acevedo", scorecard(0.8), repeats, few)[-2]


def test_the_interval_of_a_difference_agrees_with_scipys(script: ModuleType) -> None:
    difference = sys.modules["model_card"].difference
    rng = np.random.default_rng(0)
    for _ in range(20):
        ours, theirs = rng.normal(0.5, 0.03, 3), rng.normal(0.6, 0.1, 4)
        welch = stats.ttest_ind(theirs, ours, equal_var=False).confidence_interval()
        gap, low, high = difference(list(ours), list(theirs))
        assert (gap, low, high) == pytest.approx((theirs.mean() - ours.mean(), welch.low, welch.high))
    assert difference([0.5] * 3, [0.6] * 3) == pytest.approx((0.1, 0.1, 0.1))
    assert difference([0.5, 0.6], [0.6] * 3) is None


def test_what_is_no_scorecard_is_refused_before_any_work(script: ModuleType, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{"kind": "sae"}', "utf-8")
    for option, path in (
        ("--repeat", tmp_path / "none.json"),
        ("--longer", tmp_path / "none.json"),
        ("--scorecard", tmp_path / "other.json"),
    ):
        value = f"Title={path}" if option == "--scorecard" else str(path)
        with pytest.raises(CytosaeError, match=r"(none|other)\.json .*scorecard"):
            script.main(["--cells", str(folder / "cells.parquet"), option, value, "--work", str(tmp_path / "w")])
    (tmp_path / "card.json").write_text(json.dumps(scorecard(0.8)), "utf-8")
    with pytest.raises(CytosaeError, match="three dictionaries a side"):
        script.main(["--longer", str(tmp_path / "card.json"), "--work", str(tmp_path / "w")])
    assert not (tmp_path / "w").exists()


@pytest.mark.backbone
def test_the_backbone_of_the_bundle_is_adapted_and_packed(folder: Path, tmp_path: Path) -> None:
    sys.path.insert(0, str(SCRIPTS))
    try:
        import adapt_default
    finally:
        sys.path.remove(str(SCRIPTS))
    settings = ("steps=2", "views=2", "same=1", "batch=2", "frozen=0.8", "lr=1e-3", "warmup=0", "momentum=0")
    few = [word for setting in settings for word in ("--set", setting)]
    frame = read_cells(folder / "cells.parquet").frame.iloc[:12]
    write_cells(tmp_path / "cells.parquet", frame, root=str(folder / "images"), inputs={}, config={})
    given = ["--cells", str(tmp_path / "cells.parquet"), "--threads", "1", "--work", str(tmp_path / "w"), "--out", str(tmp_path / "blood")]  # fmt: skip
    adapt_default.main([*given, *few])
    manifest = json.loads((tmp_path / "blood" / "manifest.json").read_text("utf-8"))
    assert manifest["kind"] == "backbone difference"
    assert manifest["adaptation"]["blocks"] == [10, 10]
    packed = load_file(tmp_path / "blood" / "difference.safetensors")
    assert {name.split(".")[1] for name in packed} == {"10"}
    adapted, state = load_file(tmp_path / "w/backbone/backbone.safetensors"), load_file(packaged_weights())
    found = unpack_difference(packed, state)
    moved = sum(float((adapted[k] - state[k]).square().sum()) for k in state)
    left = sum(float((adapted[k] - found[k]).square().sum()) for k in state)
    assert 0 < left < 0.02 * moved
    write_cells(
        tmp_path / "other.parquet", frame.assign(dataset="secret"), root=str(folder / "images"), inputs={}, config={}
    )
    with pytest.raises(CytosaeError, match="The cells of secret have no free licence on record"):
        adapt_default.main(["--cells", str(tmp_path / "other.parquet"), "--work", str(tmp_path / "v"), *few])
