"""Published families whose sizes are read from the tensors of a file; a new one is a `Family` in this file.

What tensors cannot tell (number of heads, activation, epsilon of the norms, how images are prepared) is the family's. Key
names go through timm's own checkpoint filters where timm has one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from cytosae._errors import CytosaeError, UsageError
from cytosae._progress import say
from cytosae.backbones._fit_weights import fit_weights, not_this
from cytosae.backbones._hugging_face import from_hugging_face, is_hugging_face
from cytosae.backbones._preprocess import Preprocessing
from cytosae.backbones._resample import resample_positions

if TYPE_CHECKING:
    import torch

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
#: Width -> heads and blocks. Not always 64 a head: read from the publishers' definitions in timm.
DINO_SIZES = {384: (6, 12), 768: (12, 12), 1024: (16, 24), 1536: (24, 40)}
DINOV3_SIZES = {384: (6, 12), 768: (12, 12), 1024: (16, 24), 1280: (20, 32), 4096: (32, 40)}
CLIP_SIZES = {768: (12, 12), 1024: (16, 24), 1280: (16, 32), 1408: (16, 40), 1664: (16, 48)}
SIGLIP_SIZES = {768: (12, 12), 1024: (16, 24), 1152: (16, 27), 1536: (16, 40)}
#: The patches' weights, by the names of those who publish.
_PATCHES = ("patch_embed.proj.weight", "visual.trunk.patch_embed.proj.weight", "visual.conv1.weight")
#: The narrowest vision transformer anyone publishes; below it a file is somebody's test.
_NARROWEST = 192


@dataclass(frozen=True)
class Family:
    """What the files of one publisher have in common.

    Attributes
    ----------
    name
        As on the command line.
    sizes
        Published widths -> (heads, blocks).
    preprocessing
        The publisher's; its side is replaced by that of the file's position embedding.
    class_token, registers
        Whether its networks begin with a class token; whether register tokens may follow.
    pre_norm, layer_scale
        Whether they norm the embedded patches; whether they scale what each block adds.
    act, acts, eps
        Activation of the MLP by timm's name (None: exact GELU), published widths that have another, epsilon of the norms.
    rotary
        DINOv3: the position is turned into queries and keys, and no embedding is stored.
    resampled
        Whether its publisher uses it at other image sizes by resampling the position embedding.
    """

    name: str
    sizes: Mapping[int, tuple[int, int]]
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    class_token: bool = True
    registers: bool = False
    pre_norm: bool = False
    layer_scale: bool = False
    act: str | None = None
    acts: Mapping[int, str] = field(default_factory=dict)
    eps: float = 1e-6
    rotary: bool = False
    resampled: bool = False


_BICUBIC = Preprocessing(interpolation="bicubic")
_SIGLIP = replace(_BICUBIC, mean=HALF, std=HALF)
_CLIP = replace(_BICUBIC, mean=CLIP_MEAN, std=CLIP_STD)
FAMILIES = {
    family.name: family
    for family in [
        Family("dinobloom", DINO_SIZES, layer_scale=True),
        Family("reddino", DINO_SIZES, layer_scale=True),
        Family("dinov2", DINO_SIZES, _BICUBIC, registers=True, layer_scale=True, resampled=True),
        Family(
            "dinov3", DINOV3_SIZES, replace(_BICUBIC, side=256), registers=True, layer_scale=True, eps=1e-5, rotary=True
        ),
        # the activation is not in the file: OpenAI trained with QuickGELU, OpenCLIP (LAION) with GELU
        Family("clip", CLIP_SIZES, _CLIP, pre_norm=True, act="quick_gelu", eps=1e-5),
        Family("openclip", CLIP_SIZES, _CLIP, pre_norm=True, eps=1e-5),
        Family("siglip", SIGLIP_SIZES, _SIGLIP, class_token=False, acts={1536: "gelu_tanh"}),
    ]
}


def build_family(
    family: Family, state: dict[str, torch.Tensor], source: str, *, heads: int | None, image_size: int | None
) -> tuple[Any, Preprocessing]:
    """The timm network for a file's tensors, with them in it.

    Parameters
    ----------
    family
        Whose file.
    state
        Tensors by the publisher's names.
    source
        The file, for the errors.
    heads, image_size
        Where the family's rule or the file's own size is not wanted.

    Raises
    ------
    CytosaeError
        Another architecture, missing tensors, or an image size that the position embedding does not fit.
    """
    state = to_timm(family, state, source)
    width, patch = int(state["patch_embed.proj.weight"].shape[0]), int(state["patch_embed.proj.weight"].shape[-1])
    depth = 1 + max(int(found[1]) for found in (re.match(r"blocks\.(\d+)\.", key) for key in state) if found)
    if width in family.sizes and depth != family.sizes[width][1]:
        raise CytosaeError(
            f"{source} has {depth} blocks, but a {family.name} of width {width} has {family.sizes[width][1]}; get the "
            "whole file."
        )
    n_heads = _heads(family, width, heads, source)
    if family.rotary:
        side = image_size or family.preprocessing.side
        if side % patch:
            raise UsageError(f"--image-size {side} is no multiple of the {patch} px patches of {source}.")
        model = _rotary_vit(family, state, width, depth, n_heads, patch, side)
    else:
        side = _fit_positions(family, state, patch, image_size, source)
        model = _vit(family, state, width, depth, n_heads, patch, side)
    fit_weights(model, state, source, family.name)
    return model, replace(family.preprocessing, side=side)


def to_timm(family: Family, state: dict[str, torch.Tensor], source: str) -> dict[str, torch.Tensor]:
    """The publisher's names -> timm's, by timm's filters."""
    from timm.models import eva, vision_transformer

    original = state
    if is_hugging_face(state):
        state = from_hugging_face(state)
    state = dict(state)
    if family.rotary:
        # timm's filter knows DINOv3 by its registers: one without gets none, so that the rest is renamed too
        if "reg_token" not in state:
            some = state.get("cls_token", next(iter(state.values())))
            state.setdefault("storage_tokens", some.new_zeros(1, 0, some.shape[-1]))
        state = {k: v for k, v in state.items() if k != "local_cls_norm"}
    elif "register_tokens" in state:
        # likewise DINOv2 by its mask token, which a file made for inference may lack
        state.setdefault("mask_token", state["register_tokens"].new_zeros(1, 1))
    proj = next((state[k] for k in _PATCHES if k in state), None)
    if proj is None or proj.ndim != 4:
        raise not_this(original, source, family.name, ["patch_embed.proj.weight"] if proj is None else [])
    # the filters look at the model's patch size and position embedding, to resample them: nothing is to be resampled
    stub = SimpleNamespace(
        patch_embed=SimpleNamespace(proj=SimpleNamespace(weight=proj)),
        pos_embed=None,
        head=None,
        get_parameter=lambda name: None,
    )
    room = eva if family.rotary else vision_transformer
    try:
        state = dict(room.checkpoint_filter_fn(state, stub))
    except (KeyError, IndexError, ValueError, RuntimeError) as error:  # a tensor it builds upon is missing or misshapen
        raise not_this(original, source, family.name) from error
    if "reg_token" in state and state["reg_token"].shape[1] == 0:
        del state["reg_token"]
    # DINOv2 Giant without a mask token: timm's filter would have renamed it
    state = {k.replace("mlp.w12.", "mlp.fc1.").replace("mlp.w3.", "mlp.fc2."): v for k, v in state.items()}
    scale = "blocks.0.gamma_1" if family.rotary else "blocks.0.ls1.gamma"
    traits = {"pos_embed": not family.rotary, "cls_token": family.class_token, "norm_pre.weight": family.pre_norm,
              scale: family.layer_scale, "blocks.0.norm1.weight": True}  # fmt: skip
    lacking = [key for key, has in traits.items() if has and key not in state]
    foreign = [key for key, has in traits.items() if not has and key in state]
    if lacking or foreign:
        raise not_this(original, source, family.name, lacking, foreign)
    if "reg_token" in state and not family.registers:
        raise CytosaeError(
            f"{source} has {state['reg_token'].shape[1]} register tokens, but {family.name} has none; use --backbone dinov2."
        )
    return state


def _heads(family: Family, width: int, wanted: int | None, source: str) -> int:
    """The number of attention heads, which no tensor tells."""
    if wanted is not None:
        if wanted < 1 or width % wanted:
            raise UsageError(f"--heads {wanted} does not divide the width {width} of {source}; choose a divisor.")
        return wanted
    if width in family.sizes:
        return family.sizes[width][0]
    if width >= _NARROWEST and width % 64 == 0:
        return width // 64
    if width < _NARROWEST and width % 16 == 0:
        say(f"{source} is {width} wide, narrower than any published {family.name}, and no tensor tells its number of "
            f"heads: {width // 16} are assumed (16 numbers each); say otherwise with --heads")  # fmt: skip
        return width // 16
    raise CytosaeError(
        f"{source} is {width} wide, which is no published {family.name}, and no tensor tells its number of heads; "
        "give it with --heads."
    )


def _fit_positions(
    family: Family, state: dict[str, torch.Tensor], patch: int, image_size: int | None, source: str
) -> int:
    """The image size of the file's position embedding; resampled in `state` where another is wanted and the publisher does so."""
    if state["pos_embed"].ndim != 3:
        raise not_this(state, source, family.name)
    n_positions = int(state["pos_embed"].shape[1])
    n_prefix = 0 if "reg_token" in state else int(family.class_token)  # timm adds none to class token and registers
    grid = math.isqrt(max(n_positions - n_prefix, 0))
    if grid == 0 or grid * grid + n_prefix != n_positions:
        raise CytosaeError(
            f"{source}: the position embedding has {n_positions} places, which is not {n_prefix} + a square of patches; "
            "get the whole file, or choose the backbone it belongs to."
        )
    side = grid * patch
    if image_size is None:
        return side
    if image_size // patch == grid:  # SigLIP So400m/14: 384 px make 27 patches a side, and 6 px are left over
        return image_size
    if not family.resampled:
        raise UsageError(
            f"--image-size {image_size} does not fit {source}: its position embedding is for {side} px, and {family.name} "
            "is not resampled; leave the option out."
        )
    if image_size % patch or image_size < patch:
        raise UsageError(f"--image-size {image_size} is no multiple of the {patch} px patches of {source}.")
    state["pos_embed"] = resample_positions(
        state["pos_embed"], image_size // patch, n_prefix, registers="reg_token" in state
    )
    return image_size


def _vit(
    family: Family, state: dict[str, torch.Tensor], width: int, depth: int, heads: int, patch: int, side: int
) -> Any:
    from timm.layers import LayerNorm, SwiGLUPacked
    from timm.models.vision_transformer import VisionTransformer
    from torch import nn

    hidden, out = _hidden(state, "blocks.0.mlp.fc1.weight", 0), _hidden(state, "blocks.0.mlp.fc2.weight", 1)
    gated = (
        {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU}
        if hidden == 2 * out
        else {"act_layer": family.acts.get(width, family.act)}
    )
    return VisionTransformer(
        img_size=side, patch_size=patch, embed_dim=width, depth=depth, num_heads=heads, num_classes=0, global_pool="",
        mlp_ratio=(hidden + 0.5) / width,  # timm rounds the product down
        qkv_bias="blocks.0.attn.qkv.bias" in state,
        init_values=1e-5 if "blocks.0.ls1.gamma" in state else None,
        class_token=family.class_token,
        reg_tokens=int(state["reg_token"].shape[1]) if "reg_token" in state else 0,
        no_embed_class="reg_token" in state,
        pre_norm="norm_pre.weight" in state,
        norm_layer=partial(LayerNorm, eps=family.eps),
        weight_init="skip", **gated,
    )  # fmt: skip


def _rotary_vit(
    family: Family, state: dict[str, torch.Tensor], width: int, depth: int, heads: int, patch: int, side: int
) -> Any:
    from timm.layers import LayerNorm
    from timm.models.eva import Eva

    gated = "blocks.0.mlp.fc1_g.weight" in state
    hidden = _hidden(state, "blocks.0.mlp.fc1_g.weight" if gated else "blocks.0.mlp.fc1.weight", 0)
    return Eva(
        img_size=side, patch_size=patch, embed_dim=width, depth=depth, num_heads=heads, num_classes=0, global_pool="token",
        mlp_ratio=(hidden + 0.5) / width, swiglu_mlp=gated, swiglu_align_to=int(gated),
        qkv_bias="blocks.0.attn.q_bias" in state,
        init_values=1e-5 if "blocks.0.gamma_1" in state else None,
        num_reg_tokens=int(state["reg_token"].shape[1]) if "reg_token" in state else 0,
        rope_type="dinov3", rope_temperature=100, rope_rotate_half=True, use_rot_pos_emb=True, use_abs_pos_emb=False,
        use_fc_norm=False, norm_layer=partial(LayerNorm, eps=family.eps),
    )  # fmt: skip


def _hidden(state: dict[str, torch.Tensor], key: str, axis: int) -> int:
    return int(state[key].shape[axis]) if key in state else 0
