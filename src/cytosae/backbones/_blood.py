"""DINOv2-S/14 adapted to blood cells (``cytosae adapt``), kept in the package as a difference to the packaged weights."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from cytosae._errors import CytosaeError
from cytosae.storage import commit_folder, hash_file, hash_json, read_manifest

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

#: Its name, and the name of the network it was made from.
BLOOD, PACKAGED = "dinov2-s-blood", "dinov2-s"
KIND, VERSION = "backbone difference", 1
_FILE = "difference.safetensors"
#: Weights of a row that share a scale, and the largest whole number.
GROUP, _TOP = 32, 7


def blood_folder() -> Path:
    """The folder of the difference inside the package."""
    return Path(str(files("cytosae"))) / "bundled" / BLOOD


def blood_weights(packaged: Mapping[str, torch.Tensor], sha256: str) -> tuple[dict[str, torch.Tensor], str]:
    """The adapted weights, made of the packaged ones and of the difference, and a sha256 that stands for both.

    Raises
    ------
    CytosaeError
        The difference is missing, damaged, or belongs to other weights.
    """
    from safetensors.torch import load_file

    folder = blood_folder()
    manifest = read_manifest(folder, KIND, VERSION)
    if manifest["inputs"]["packaged"] != sha256:
        raise CytosaeError(f"{folder} belongs to other weights of {PACKAGED}; install cytosae again.")
    weights = unpack_difference(load_file(folder / _FILE), packaged)
    return weights, hash_json({"packaged": sha256, "difference": hash_file(folder / _FILE)})


def write_blood(adapted: Path, packaged: Path, out: Path) -> None:
    """Write the difference between two files of weights; what it was adapted with is taken over from the adapted folder.

    Parameters
    ----------
    adapted
        Folder that ``cytosae adapt`` wrote from the packaged network.
    packaged
        File of the packaged weights.
    out
        The folder to write.

    Raises
    ------
    CytosaeError
        It was adapted from another network.
    """
    from safetensors.torch import load_file, save_file

    from cytosae.backbones._adapted import ADAPTED, ADAPTED_FILE, ADAPTED_VERSION

    manifest = read_manifest(adapted, ADAPTED, ADAPTED_VERSION, verify=True)
    sha256 = hash_file(packaged)
    if manifest["base"] != {"name": PACKAGED, "sha256": sha256}:
        raise CytosaeError(f"{adapted} was adapted from another network than {PACKAGED}; adapt that one.")
    inputs = {"packaged": sha256, "adapted": manifest.hash}
    with commit_folder(out, kind=KIND, version=VERSION, inputs=inputs, config={"group": GROUP}) as (folder, extra):
        save_file(pack_difference(load_file(adapted / ADAPTED_FILE), load_file(packaged)), folder / _FILE)
        extra |= {"adaptation": manifest["config"], "cells": manifest["inputs"]["cells"], "n_cells": manifest["n_cells"],
                  "measures": manifest["measures"]}  # fmt: skip


def pack_difference(
    adapted: Mapping[str, torch.Tensor], packaged: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Differences of the tensors that differ: matrices in four bits, a scale for every `GROUP` numbers of a row; others in float16.

    Returns
    -------
    ``NAME.codes`` uint8 [rows, columns / 2] (two numbers each, the first in the low half, plus 8) and ``NAME.scales`` float16
    [rows, columns / GROUP]; or ``NAME`` float16
    """
    import torch

    out: dict[str, torch.Tensor] = {}
    for name, value in adapted.items():
        if torch.equal(value, packaged[name]):
            continue
        d = (value - packaged[name]).float()
        if d.ndim != 2 or d.shape[1] % GROUP:
            out[name] = d.half()
            continue
        grouped = d.view(len(d), -1, GROUP)
        scales = (grouped.abs().amax(-1) / _TOP).half()
        safe = scales.float().clamp_min(1e-12)[..., None]
        codes = ((grouped / safe).round().clamp(-_TOP, _TOP) + 8).to(torch.uint8).view(len(d), -1)
        out[f"{name}.codes"] = codes[:, 0::2] | (codes[:, 1::2] << 4)
        out[f"{name}.scales"] = scales
    return out


def unpack_difference(
    difference: Mapping[str, torch.Tensor], packaged: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """`packaged` with what `pack_difference` gave added; the same float32 numbers everywhere."""
    import torch

    out = dict(packaged)
    for key, value in difference.items():
        if key.endswith(".scales"):
            continue
        name = key.removesuffix(".codes")
        d = value.float()
        if name != key:
            codes = torch.stack([value & 15, value >> 4], -1).view(len(value), -1, GROUP).float() - 8
            d = (codes * difference[f"{name}.scales"].float()[..., None]).view(len(value), -1)
        out[name] = packaged[name] + d
    return out
