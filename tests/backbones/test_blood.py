"""The backbone adapted to blood cells that the package brings as a difference."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cytosae import CytosaeError
from cytosae.backbones import (
    ADAPTED,
    ADAPTED_FILE,
    BLOOD,
    _blood,
    blood_folder,
    load_backbone,
    pack_difference,
    packaged_weights,
    unpack_difference,
    write_blood,
)
from cytosae.cells import ImageParquet, decode_image
from cytosae.storage import commit_folder, hash_file


def weights(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = {"matrix": (6, 64), "narrow": (4, 5), "vector": (7,), "kernel": (2, 3, 4, 4)}
    return {name: torch.randn(size, generator=generator) for name, size in sizes.items()}


def test_a_difference_gives_back_every_number_within_half_a_step() -> None:
    base, change = weights(0), weights(1)
    adapted = {name: value + 0.01 * change[name] for name, value in base.items()}
    found = unpack_difference(pack_difference(adapted, base), base)
    step = 0.01 * change["matrix"].view(6, 2, 32).abs().amax(-1) / 7
    error = (found["matrix"] - adapted["matrix"]).abs().view(6, 2, 32).amax(-1)
    assert bool((error <= 0.51 * step + 1e-6).all())
    for name in ("narrow", "vector", "kernel"):
        assert torch.allclose(found[name], adapted[name], atol=2e-5)


def test_what_was_not_changed_takes_no_room_and_stays_the_very_bits() -> None:
    base = weights(0)
    adapted = base | {"vector": base["vector"] + 1}
    packed = pack_difference(adapted, base)
    assert set(packed) == {"vector"}
    found = unpack_difference(packed, base)
    assert torch.equal(found["matrix"], base["matrix"])
    assert pack_difference(base, base) == {}


def test_rows_that_did_not_change_or_hardly_survive() -> None:
    base = {"matrix": torch.zeros(3, 32)}
    adapted = {"matrix": torch.cat([torch.zeros(1, 32), torch.full((1, 32), 1e-9), torch.ones(1, 32)])}
    found = unpack_difference(pack_difference(adapted, base), base)["matrix"]
    assert torch.isfinite(found).all()
    assert torch.equal(found[0], torch.zeros(32))
    assert torch.allclose(found[2], torch.ones(32), atol=1e-3)


def test_only_the_packaged_network_gives_a_difference(tmp_path: Path) -> None:
    save_file(weights(0), tmp_path / "packaged.safetensors")
    sha256 = hash_file(tmp_path / "packaged.safetensors")
    for name, base in (
        ("right", {"name": "dinov2-s", "sha256": sha256}),
        ("wrong", {"name": "dinobloom", "sha256": sha256}),
    ):
        with commit_folder(tmp_path / name, kind=ADAPTED, version=1, inputs={"cells": "c"}, config={"seed": 1}) as (
            folder,
            extra,
        ):
            save_file({k: v + 1 for k, v in weights(0).items()}, folder / ADAPTED_FILE)
            extra |= {"base": base, "n_cells": 3, "measures": {}}
    write_blood(tmp_path / "right", tmp_path / "packaged.safetensors", tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["n_cells"], manifest["adaptation"]) == (3, {"seed": 1}), "how it was made is not lost"
    with pytest.raises(CytosaeError, match="adapted from another network than dinov2-s"):
        write_blood(tmp_path / "wrong", tmp_path / "packaged.safetensors", tmp_path / "no")


@pytest.mark.backbone
def test_the_packaged_one_changes_the_later_blocks_and_what_stain_does_to_them(bundle: ImageParquet) -> None:
    blood, plain = load_backbone(BLOOD), load_backbone("dinov2-s")
    assert blood.name == BLOOD
    assert blood.weights_sha256 != plain.weights_sha256
    after, before = blood.model.state_dict(), plain.model.state_dict()
    changed = {k.split(".")[1] for k in before if not torch.equal(before[k], after[k])}
    assert changed == {"6", "7", "8", "9", "10"}
    images = np.stack([decode_image(bundle.read(i)[0] or b"").pixels for i in range(0, 80, 10)])
    darker = (255 * (images / 255.0) ** 1.3 * [1, 0.95, 1]).round().astype(np.uint8)
    moved = {}
    for network in (blood, plain):
        a, b = (network.tokens(x)[:, 1:].reshape(-1, 384).double() for x in (images, darker))
        moved[network.name] = float((a - b).square().sum() / (a - a.mean(0)).square().sum())
    assert moved[BLOOD] < 0.5 * moved["dinov2-s"]
    again = load_backbone(BLOOD)
    assert torch.equal(again.tokens(images[:1]), blood.tokens(images[:1]))


@pytest.mark.backbone
def test_a_difference_that_is_damaged_or_of_other_weights_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    state = load_file(packaged_weights())
    copy = tmp_path / BLOOD
    shutil.copytree(blood_folder(), copy)
    monkeypatch.setattr(_blood, "blood_folder", lambda: copy)
    with pytest.raises(CytosaeError, match="belongs to other weights of dinov2-s"):
        _blood.blood_weights(state, "0" * 64)
    raw = (copy / "difference.safetensors").read_bytes()
    (copy / "difference.safetensors").write_bytes(raw[:-10])
    with pytest.raises(CytosaeError, match=r"difference\.safetensors"):
        load_backbone(BLOOD)
    with pytest.raises(CytosaeError, match="one known network"):
        load_backbone(BLOOD, weights=copy)
