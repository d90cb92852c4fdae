"""A dictionary finds its backbone again when that came from a file."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import publishers as made
from cytosae import CytosaeError, extract_tokens
from cytosae.backbones import load_backbone
from cytosae.cells import Cells
from cytosae.concepts import backbone_of, check_tokens


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.save(made.dinobloom_pth(made.dino(num_heads=6)), tmp_path / "DinoBloom-X.pth")
    return tmp_path / "DinoBloom-X.pth"


def dictionary(store: Any) -> Any:
    """What a dictionary keeps of the tokens it was trained on."""
    keys = ("backbone", "layer", "precision", "preprocessing")
    return SimpleNamespace(info={key: store.manifest[key] for key in keys}, d_in=store.d_in)


def test_name_file_sha256_and_options_are_kept_and_lead_back(tmp_path: Path, few_cells: Cells, weights: Path) -> None:
    backbone = load_backbone("dinobloom", weights=weights, heads=6)
    store = extract_tokens(few_cells, backbone, tmp_path / "tokens")
    assert store.manifest["backbone"] == {
        "name": "dinobloom", "sha256": backbone.weights_sha256, "file": "DinoBloom-X.pth", "options": {"heads": 6},
    }  # fmt: skip
    sae = dictionary(store)
    with pytest.raises(CytosaeError, match=r"weights of DinoBloom-X\.pth; give that file with --weights"):
        backbone_of(sae, "cpu")
    again, layer = backbone_of(sae, "cpu", weights)
    pixels = made.some_pixels(backbone)
    assert torch.equal(again.tokens(pixels, layer), backbone.tokens(pixels, layer))


def test_other_weights_are_refused_and_a_renamed_file_is_not(tmp_path: Path, few_cells: Cells, weights: Path) -> None:
    sae = dictionary(
        extract_tokens(few_cells, load_backbone("dinobloom", weights=weights, heads=6), tmp_path / "tokens")
    )
    renamed = weights.rename(tmp_path / "mine.pth")
    assert backbone_of(sae, "cpu", renamed)[0].weights_sha256 == sae.info["backbone"]["sha256"]
    store = extract_tokens(few_cells, load_backbone("dinobloom", weights=renamed, heads=6), tmp_path / "tokens2")
    check_tokens(sae, store)
    torch.save(made.dinobloom_pth(made.randomise(made.dino(), seed=5)), tmp_path / "other.pth")
    with pytest.raises(CytosaeError, match="sha256 differs"):
        backbone_of(sae, "cpu", tmp_path / "other.pth")


def test_another_number_of_heads_is_other_work(tmp_path: Path, few_cells: Cells, weights: Path) -> None:
    first = extract_tokens(few_cells, load_backbone("dinobloom", weights=weights, heads=6), tmp_path / "six")
    second = extract_tokens(few_cells, load_backbone("dinobloom", weights=weights, heads=3), tmp_path / "three")
    assert first.hash != second.hash
    with pytest.raises(CytosaeError, match=r"of dinobloom with heads 3.*with heads 6"):
        check_tokens(dictionary(first), second)
