from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.eva import Eva

import publishers as made
from cytosae import CytosaeError
from cytosae.backbones import Backbone, Preprocessing, _named, load_backbone

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def network(name: str, **options: Any) -> Any:
    return made.randomise(timm.create_model(name, num_classes=0, **options))


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("vit_tiny_patch16_224", ["class"]),
        ("deit_tiny_distilled_patch16_224", ["class", "register"]),
        ("eva02_tiny_patch14_224", ["class"]),
        ("vit_tiny_patch16_dinov3_qkvb", ["class", "register", "register", "register", "register"]),
    ],
)
def test_any_vit_of_timm_loads_from_a_local_file(tmp_path: Path, name: str, kinds: list[str]) -> None:
    small = {} if "dinov3" in name else {"img_size": 56 if "patch14" in name else 64}
    model = network(name, **small)
    save_file(dict(model.state_dict()), tmp_path / "x.safetensors")
    options = {"image_size": 64} if "dinov3" in name else {}
    backbone = load_backbone(f"timm:{name}", weights=tmp_path / "x.safetensors", **options)
    if "dinov3" in name:
        model.set_input_size(img_size=(64, 64))
    made.assert_same_as_timm(backbone, model)
    assert [kind for kind in backbone.token_kinds if kind != "patch"] == kinds
    assert backbone.record["name"] == f"timm:{name}"


def test_depth_dependent_rotary_positions_reach_every_block() -> None:
    model = made.dinov3(rope_type="mixed", rope_rotate_half=False, dynamic_img_size=False)
    assert isinstance(model, Eva)
    backbone = Backbone(model, name="x", weights_sha256="", preprocessing=Preprocessing(side=64))
    made.assert_same_as_timm(backbone, model)


def test_a_224_file_is_never_put_into_a_518_network(tmp_path: Path) -> None:
    model = network("vit_small_patch14_dinov2", img_size=56)
    torch.save({**model.state_dict(), "mask_token": torch.zeros(1, 384)}, tmp_path / "port.bin")
    backbone = load_backbone("timm:vit_small_patch14_dinov2", weights=tmp_path / "port.bin")
    assert (backbone.grid, backbone.preprocessing.side) == ((4, 4), 56)
    assert torch.equal(backbone.model.pos_embed, model.pos_embed)


def test_names_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    model = network("vit_tiny_patch16_224", img_size=64)
    torch.save(model.state_dict(), tmp_path / "x.pth")
    for name, text in [
        ("timm:vit_tinny_patch16_224", "did you mean 'vit_tiny_patch16_224'"),
        ("timm:vit_tiny_patch16_224.augreg", "no weights"),
        ("timm:resnet18", "is a ResNet"),
        ("timm:vit_small_patch14_dinov2", "patches of 16 px"),
        ("timm:vit_small_patch16_224", "choose the backbone"),
    ]:
        with pytest.raises(CytosaeError, match=text):
            load_backbone(name, weights=tmp_path / "x.pth")
    with pytest.raises(CytosaeError, match="position embedding is for 64 px"):
        load_backbone("timm:vit_tiny_patch16_224", weights=tmp_path / "x.pth", image_size=224)
    with pytest.raises(CytosaeError, match="needs its weights"):
        load_backbone("timm:vit_tiny_patch16_224")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache with one repository, and no network."""
    import huggingface_hub.constants as constants

    cache = tmp_path / "hub"
    folder = cache / "models--lab--tiny"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "v1").write_text(COMMIT)
    model = network("vit_tiny_patch16_224", img_size=64)
    save_file(dict(model.state_dict()), tmp_path / "model.safetensors")
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 0, "pretrained_cfg": {
        "input_size": [3, 224, 224], "interpolation": "bilinear", "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]},
        "model_args": {"checkpoint_path": "evil.pth", "pretrained": True}}  # fmt: skip
    files = {
        "model.safetensors": (tmp_path / "model.safetensors").read_bytes(),
        "config.json": json.dumps(config).encode(),
    }
    (folder / "blobs").mkdir()
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for name, content in files.items():
        blob = folder / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / name).symlink_to(os.path.relpath(blob, snapshot))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache


@pytest.mark.parametrize("revision", [COMMIT, "v1"])
def test_a_hub_name_is_pinned_and_recorded_by_its_commit(hub: Path, revision: str) -> None:
    backbone = load_backbone(f"hf-hub:lab/tiny@{revision}")
    made.assert_same_as_timm(backbone, network("vit_tiny_patch16_224", img_size=64))
    assert backbone.name == f"hf-hub:lab/tiny@{COMMIT}"
    assert backbone.preprocessing == Preprocessing(64, "bilinear", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    again = load_backbone(backbone.record["name"])
    assert again.weights_sha256 == backbone.weights_sha256
    assert load_backbone("hf-hub:lab/tiny", revision=revision).name == backbone.name


def test_a_hub_name_without_a_revision_or_out_of_reach_is_refused(hub: Path) -> None:
    with pytest.raises(CytosaeError, match="pin it"):
        load_backbone("hf-hub:lab/tiny")
    with pytest.raises(CytosaeError, match="cannot be reached"):
        load_backbone(f"hf-hub:lab/other@{COMMIT}")
    with pytest.raises(CytosaeError, match="give one"):
        load_backbone("hf-hub:lab/tiny@v1", revision="v2")


def test_a_hub_file_changed_in_the_cache_is_refused(hub: Path) -> None:
    path = hub / "models--lab--tiny" / "snapshots" / COMMIT / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.resolve().write_bytes(bytes(content))
    with pytest.raises(CytosaeError, match="sha256 differs"):
        load_backbone(f"hf-hub:lab/tiny@{COMMIT}")


def test_a_hub_repository_without_a_timm_config_names_the_way_out(hub: Path) -> None:
    path = hub / "models--lab--tiny" / "snapshots" / COMMIT / "config.json"
    path.unlink()
    path.write_text("{}")
    with pytest.raises(CytosaeError, match="--backbone dinobloom --weights FILE"):
        load_backbone(f"hf-hub:lab/tiny@{COMMIT}")


def test_timms_own_repository_is_fetched_at_its_revision(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def fake(repository: str, revision: str | None) -> _named.HubFile:
        asked.append((repository, revision))
        return fetch("lab/tiny", revision)

    fetch = _named.fetch
    monkeypatch.setattr(_named, "fetch", fake)
    backbone = load_backbone(f"timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k@{COMMIT}")
    assert asked == [("timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k", COMMIT)]
    assert backbone.name == f"timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k@{COMMIT}"
