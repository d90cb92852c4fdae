"""Any vision transformer that timm knows: ``timm:NAME`` with a file, or a repository of the Hugging Face hub at a revision.

A hub name is pinned: a revision must be given, and the commit it stands for is recorded. Files already in the hub's cache are
used without the network.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cytosae._errors import CytosaeError, UsageError, nearest
from cytosae.backbones._fit_weights import fit_weights, not_this
from cytosae.backbones._preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from cytosae.storage import hash_file

if TYPE_CHECKING:
    import torch

#: Weights in a hub repository, the safe format first.
_FILES = ("model.safetensors", "pytorch_model.bin")
#: Arguments of timm that a repository's config may not set: where weights come from, and what is ours to choose.
_OURS = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "num_classes", "img_size",
         "scriptable", "exportable", "no_jit", "in_chans", "dynamic_img_size"}  # fmt: skip


@dataclass(frozen=True)
class HubFile:
    """A repository's weights in the local cache, the commit they are of, and its config."""

    path: Path
    commit: str
    config: dict[str, Any]


def fetch(repository: str, revision: str | None) -> HubFile:
    """Config and weights of a hub repository at one revision; from the cache where they are there.

    Raises
    ------
    UsageError
        No revision.
    CytosaeError
        Not in the cache and not to be had, no timm config, or a file that is not what the hub's checksum says.
    """
    if not revision:
        raise UsageError(
            f"{repository} on the Hugging Face hub may change any day; pin it: --backbone hf-hub:{repository}@REVISION "
            "(a commit of its history)."
        )
    config_path = _download(repository, "config.json", revision)
    config = json.loads(config_path.read_text("utf-8")) if config_path else {}
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        raise CytosaeError(
            f"hf-hub:{repository} has no timm config (config.json with 'architecture'); download its weight file and give "
            "it with --weights and the family's name, as in --backbone dinobloom --weights FILE."
        )
    for name in _FILES:
        path = _download(repository, name, revision)
        if path is not None:
            _check_hub_hash(path)
            return HubFile(path, path.parent.name, config)
    raise CytosaeError(
        f"hf-hub:{repository} at {revision} holds neither {' nor '.join(_FILES)}; choose another revision."
    )


def _download(repository: str, name: str, revision: str) -> Path | None:
    """A file of the hub in the local cache; None where the repository has no such file."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, name, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, ValueError, OSError):
        pass
    try:
        return Path(hf_hub_download(repository, name, revision=revision))
    except LocalEntryNotFoundError as error:  # a kind of EntryNotFoundError: neither cached nor to be reached
        raise CytosaeError(
            f"hf-hub:{repository} at {revision} is not in the hub's cache and cannot be reached; fetch it once where there is "
            "a network, or give its weight file with --weights."
        ) from error
    except EntryNotFoundError:
        return None
    except (
        Exception
    ) as error:  # no such repository or revision, a licence not accepted, a network down: httpx or OSError
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CytosaeError(
            f"hf-hub:{repository} at {revision} cannot be fetched ({reason}); check the name and the revision, or give "
            "its weight file with --weights."
        ) from error


def _check_hub_hash(path: Path) -> None:
    """The hub's cache names a large file by its sha256: hold it to that."""
    known = path.resolve().name
    if re.fullmatch(r"[0-9a-f]{64}", known) and hash_file(path) != known:
        raise CytosaeError(f"{path} is not the file of the hub (its sha256 differs); delete it and fetch it again.")


def build_timm(
    name: str,
    state: dict[str, torch.Tensor],
    source: str,
    *,
    config: dict[str, Any] | None = None,
    image_size: int | None = None,
) -> tuple[Any, Preprocessing]:
    """The timm network `name` with the tensors of a file in it, at the image size of the file's position embedding.

    Parameters
    ----------
    name
        timm's name of the architecture, with or without a tag.
    state
        Tensors by timm's or the publisher's names.
    source
        The file, for the errors.
    config
        ``config.json`` of a hub repository: its preprocessing and arguments count before timm's.
    image_size
        Another image size, for networks without a position embedding of fixed size.

    Raises
    ------
    UsageError
        timm knows no such network, or it does not work on that image size.
    CytosaeError
        It is no plain vision transformer, or the file does not fit it.
    """
    import timm
    from timm.models import eva, vision_transformer

    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        raise UsageError(f"timm has no network {architecture!r}{nearest(architecture, timm.list_models())}.")
    config = config or {}
    arguments = {k: v for k, v in config.get("model_args", {}).items() if k not in _OURS}
    try:
        known = timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # another training of the network would mean another preprocessing
        tags = timm.list_pretrained(f"{architecture}.*")
        raise UsageError(f"timm has no weights {name!r}{nearest(name, tags)}.") from error
    cfg = {**(known.to_dict() if known else {}), **config, **config.get("pretrained_cfg", {})}
    model = timm.create_model(architecture, num_classes=0, **arguments)
    if not isinstance(model, vision_transformer.VisionTransformer | eva.Eva):
        raise CytosaeError(
            f"timm:{name} is a {type(model).__name__}, which cannot be cut between its blocks here; choose a plain vision "
            "transformer (timm's VisionTransformer or Eva)."
        )
    side = _side(model, state, cfg, image_size, name, source)
    if side != model.patch_embed.img_size[0]:
        model = timm.create_model(architecture, num_classes=0, img_size=side, **arguments)
    room = eva if isinstance(model, eva.Eva) else vision_transformer
    scaled = {"adapt_layer_scale": True} if any(".gamma_" in k for k in state) and room is vision_transformer else {}
    try:
        fitted = room.checkpoint_filter_fn(dict(state), model, **scaled)
    except (KeyError, ValueError, RuntimeError, AttributeError) as error:
        raise not_this(state, source, f"timm:{name}") from error
    fit_weights(model, fitted, source, f"timm:{name}")
    method = str(cfg.get("interpolation") or "bicubic")
    return model, Preprocessing(
        side=side,
        interpolation="bilinear" if method == "random" else method,
        mean=_three(cfg.get("mean") or IMAGENET_MEAN),
        std=_three(cfg.get("std") or IMAGENET_STD),
    )


def _side(
    model: Any, state: dict[str, torch.Tensor], cfg: dict[str, Any], wanted: int | None, name: str, source: str
) -> int:
    """The image size: that of the file's position embedding, else the one wanted, else the published one."""
    patch = int(model.patch_embed.patch_size[0])
    given = next((v for k, v in state.items() if k.endswith(("patch_embed.proj.weight", "visual.conv1.weight"))), None)
    # timm's filter would resample the patches' weights silently
    if given is not None and given.ndim == 4 and given.shape[-1] != patch:
        raise CytosaeError(
            f"{source} has patches of {given.shape[-1]} px, but timm:{name} has {patch}; choose the network it belongs to."
        )
    table = next((v for k, v in state.items() if re.search(r"(^|\.)(pos_embed|positional_embedding)$", k)), None)
    if table is None or model.pos_embed is None:
        side = wanted or int((cfg.get("input_size") or (3, 224, 224))[-1])
        if side % patch:
            raise UsageError(f"--image-size {side} is no multiple of the {patch} px patches of timm:{name}.")
        return side
    rows, columns = model.patch_embed.grid_size
    prefix = model.pos_embed.shape[1] - rows * columns
    # a publisher's file keeps a place for the class token that timm's register networks add up beforehand
    prefix = 1 if "register_tokens" in state else prefix
    grid = math.isqrt(max(table.shape[-2] - prefix, 0))
    if grid == 0 or grid * grid + prefix != table.shape[-2]:
        raise CytosaeError(
            f"{source}: the position embedding has {table.shape[-2]} places, which is not {prefix} + a square of patches as "
            f"timm:{name} wants; choose the network it belongs to."
        )
    if wanted is not None and wanted // patch != grid:
        raise UsageError(
            f"--image-size {wanted} does not fit {source}: its position embedding is for {grid * patch} px; leave the "
            "option out."
        )
    # a published size may leave pixels over: 384 = 27 patches of 14 px and 6
    return wanted or (int(model.patch_embed.img_size[0]) if grid == rows else grid * patch)


def _three(values: Any) -> tuple[float, float, float]:
    r, g, b = (float(v) for v in values)
    return r, g, b
