"""Files that must not be loaded: each refused in one sentence that names it, what is wrong, and what to do."""

from __future__ import annotations

import pickle
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import publishers as made
from cytosae import CytosaeError
from cytosae.backbones import BACKBONES, _registry, load_backbone
from cytosae.cells import Cells


def refusal(name: str, path: Path, **options: Any) -> str:
    with pytest.raises(CytosaeError) as found:
        load_backbone(name, weights=path, **options)
    text = str(found.value)
    assert path.name in text
    assert "\n" not in text
    assert text.endswith((".", ")"))
    return text


def bloom(path: Path, change: Any = None) -> Path:
    saved = made.dinobloom_pth(made.dino())
    if change:
        change(saved["teacher"])
    torch.save(saved, path)
    return path


@pytest.mark.parametrize(
    ("state", "looks"),
    [
        (lambda: made.openai_clip(made.clip()), "clip"),
        (lambda: made.hugging_face_clip(made.clip()), "clip"),
        (lambda: made.meta_dinov3(made.dinov3()), "dinov3"),
        (lambda: dict(made.siglip().state_dict()), "backbone it belongs to"),
        (lambda: made.meta_dinov2(made.dino_registers()), "dinov2"),
        (lambda: {"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.bias": torch.zeros(9)}, "conv1.weight"),
        (lambda: {"W_enc": torch.zeros(4, 8), "b_enc": torch.zeros(8)}, "sparse autoencoder"),
    ],
)
def test_another_architecture_is_named(tmp_path: Path, state: Any, looks: str) -> None:
    torch.save(state(), tmp_path / "other.pth")
    assert looks in refusal("dinobloom", tmp_path / "other.pth")


@pytest.mark.parametrize("family", ["dinov3", "clip", "siglip", "openclip", "dinov2"])
def test_no_family_takes_anothers_file(tmp_path: Path, family: str) -> None:
    states: dict[str, Any] = {
        "dinov3": made.meta_dinov3(made.dinov3()),
        "clip": made.openai_clip(made.clip()),
        "siglip": dict(made.siglip().state_dict()),
        "dinov2": made.meta_dinov2(made.dino_registers()),
    }
    same = {"openclip": "clip"}.get(family, family)
    for name, state in states.items():
        if name != same:
            torch.save(state, tmp_path / f"{name}.pth")
            refusal(family, tmp_path / f"{name}.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"x{suffix}"
    if suffix == ".pth":
        bloom(path)
    else:
        save_file(dict(made.dino().state_dict()), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert "cut short" in refusal("dinobloom", path)


def test_values_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    def spoil(state: dict[str, torch.Tensor]) -> None:
        state["backbone.blocks.1.mlp.fc1.weight"][3, 4] = float("nan")

    assert "'blocks.1.mlp.fc1.weight' holds values that are not numbers" in refusal(
        "dinobloom", bloom(tmp_path / "x.pth", spoil)
    )


@pytest.mark.parametrize("keep", ["even", "odd", "first"])
def test_half_of_the_keys_missing_is_refused(tmp_path: Path, keep: str) -> None:
    def halve(state: dict[str, torch.Tensor]) -> None:
        keys = list(state)
        half = {"even": keys[::2], "odd": keys[1::2], "first": keys[: len(keys) // 2]}[keep]
        for key in set(keys) - set(half):
            del state[key]

    assert "whole file" in refusal("dinobloom", bloom(tmp_path / "x.pth", halve))


def test_a_published_width_with_too_few_blocks_is_refused(tmp_path: Path) -> None:
    model = made.dino(embed_dim=384, num_heads=6, depth=2)
    torch.save({"teacher": {f"backbone.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "x.pth")
    assert "has 2 blocks, but a dinobloom of width 384 has 12" in refusal("dinobloom", tmp_path / "x.pth")


def test_a_position_embedding_that_is_no_square_is_refused(tmp_path: Path) -> None:
    def cut(state: dict[str, torch.Tensor]) -> None:
        state["backbone.pos_embed"] = state["backbone.pos_embed"][:, :-2]

    assert "15 places" in refusal("dinobloom", bloom(tmp_path / "x.pth", cut))


class Evil:
    """Writes a marker when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        import os

        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("kind", ["zip", "legacy", "raw 2", "raw 4"])
def test_a_malicious_pickle_is_named_and_not_executed(tmp_path: Path, kind: str) -> None:
    marker, path = tmp_path / "marker", tmp_path / "evil.pth"
    content = {"teacher": {"backbone.cls_token": torch.zeros(1, 1, 48)}, "extra": Evil(marker)}
    if kind.startswith("raw"):
        path.write_bytes(pickle.dumps(content["extra"], protocol=int(kind[-1])))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    text = refusal("dinobloom", path)
    assert "posix.system" in text or "nt.system" in text
    assert "safetensors" in text
    assert not marker.exists()
    # the file is as dangerous as it says: plain unpickling runs it
    with path.open("rb") as file:
        if kind.startswith("raw"):
            pickle.load(file)
        else:
            torch.load(file, weights_only=False)
    assert marker.exists()


def test_old_and_plain_pytorch_files_still_load(tmp_path: Path) -> None:
    torch.save(made.dinobloom_pth(made.dino()), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    made.assert_same_as_timm(load_backbone("dinobloom", weights=tmp_path / "old.pth"), made.dino())


def test_torchscript_is_named(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "ViT-B-16.pt")
    assert "TorchScript" in refusal("clip", tmp_path / "ViT-B-16.pt")


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    assert "check the path" in refusal("dinobloom", tmp_path / "absent.pth")
    (tmp_path / "text.pth").write_text("this is no checkpoint at all")
    assert "not a PyTorch checkpoint" in refusal("dinobloom", tmp_path / "text.pth")
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    assert "no named tensors" in refusal("dinobloom", tmp_path / "empty.pth")


def test_a_file_whose_known_sha256_differs_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = bloom(tmp_path / "DinoBloom-S.pth")
    monkeypatch.setitem(
        _registry.BACKBONES, "dinobloom", replace(BACKBONES["dinobloom"], sha256={"DinoBloom-S.pth": "0" * 64})
    )
    assert "sha256 differs" in refusal("dinobloom", path)
    path.rename(tmp_path / "my.pth")  # another name is another file, of which nothing is known
    load_backbone("dinobloom", weights=tmp_path / "my.pth")


def test_unknown_sha256_stay_empty() -> None:
    assert {name for name, info in BACKBONES.items() if info.sha256} == {"dinov2-s"}


def test_options_that_do_not_belong_are_refused(tmp_path: Path) -> None:
    for name, options, text in [
        ("dinobloom", {}, "needs its weight file"),
        ("dinov2-s", {"weights": tmp_path / "x"}, "use --backbone dinov2 --weights"),
        ("dinobloom:x", {}, "no backbone"),
        ("dinobloon", {}, "did you mean 'dinobloom'"),
        ("timm:", {}, "name after a colon"),
    ]:
        with pytest.raises(CytosaeError, match=text):
            load_backbone(name, **options)


def test_the_command_line_refuses_in_one_line_without_a_traceback(tmp_path: Path, few_cells: Cells) -> None:
    torch.save({"model": Evil(tmp_path / "marker")}, tmp_path / "evil.pth")
    command = [
        "tokens",
        tmp_path / "cells.parquet",
        "--backbone",
        "dinobloom",
        "--weights",
        tmp_path / "evil.pth",
        "--out",
        tmp_path / "t",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "cytosae", *map(str, command)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 1
    assert "posix.system" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "marker").exists()
    assert not (tmp_path / "t").exists()


def test_a_changed_byte_at_the_end_of_an_archive_is_one_sentence(tmp_path: Path) -> None:
    whole = bloom(tmp_path / "x.pth").read_bytes()
    # torch.save ends an archive with a ZIP64 record, its locator, and the plain end; zipfile checks them against each other
    record, locator, end = (whole.rfind(mark) for mark in (b"PK\x06\x06", b"PK\x06\x07", b"PK\x05\x06"))
    if record < 0:
        pytest.skip("this torch writes no ZIP64 record")
    refused = []
    for place in (*range(record, record + 56, 3), *range(locator, locator + 20), *range(end, end + 22)):
        (tmp_path / "x.pth").write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            load_backbone("dinobloom", weights=tmp_path / "x.pth")
        except CytosaeError as error:  # not every byte matters
            refused.append(str(error))
    assert refused
    assert all("x.pth" in text and "\n" not in text for text in refused)


def test_an_archive_whose_end_contradicts_itself_is_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def contradicts(_path: object) -> bool:
        raise zipfile.BadZipFile("Corrupt zip64 end of central directory locator")

    bloom(tmp_path / "x.pth")
    monkeypatch.setattr(zipfile, "is_zipfile", contradicts)
    assert "cut short" in refusal("dinobloom", tmp_path / "x.pth")
