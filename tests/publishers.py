"""Small random networks, and the files their publishers would make of them."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from timm.layers import LayerNorm, SwiGLUPacked
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from cytosae.backbones import Backbone, to_input

State = dict[str, torch.Tensor]
WIDTH, DEPTH, HEADS = 48, 3, 3


def randomise(model: nn.Module, seed: int = 0) -> Any:
    """Every parameter random and of such a size that each changes the output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.1 * noise if name.endswith("norm.weight") or ".norm" in name else 0.2 * noise)
    return model.eval()


def vit(**options: Any) -> VisionTransformer:
    given: dict[str, Any] = {"img_size": 56, "patch_size": 14, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS,
                             "num_classes": 0, **options}  # fmt: skip
    model: VisionTransformer = randomise(VisionTransformer(**given))
    return model


def dino(**options: Any) -> VisionTransformer:
    return vit(**{"init_values": 1.0, **options})


def dino_giant(**options: Any) -> VisionTransformer:
    return dino(mlp_ratio=2.66667 * 2, mlp_layer=SwiGLUPacked, act_layer=nn.SiLU, **options)


def dino_registers() -> VisionTransformer:
    return dino(reg_tokens=4, no_embed_class=True)


def clip(act: str = "quick_gelu") -> VisionTransformer:
    return vit(img_size=64, patch_size=16, pre_norm=True, norm_layer=partial(LayerNorm, eps=1e-5), act_layer=act)


def siglip() -> VisionTransformer:
    return vit(img_size=64, patch_size=16, class_token=False, global_pool="map")


def dinov3(**options: Any) -> Eva:
    given: dict[str, Any] = {
        "img_size": 64, "patch_size": 16, "dynamic_img_size": True, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS,
        "qkv_bias": False, "init_values": 1.0, "rope_type": "dinov3", "rope_temperature": 100, "rope_rotate_half": True,
        "use_rot_pos_emb": True, "use_abs_pos_emb": False, "num_reg_tokens": 4, "use_fc_norm": False,
        "norm_layer": partial(LayerNorm, eps=1e-5), "num_classes": 0,
    }  # fmt: skip
    model: Eva = randomise(Eva(**{**given, **options}))
    return model


def meta_dinov2(model: nn.Module) -> State:
    """As facebookresearch/dinov2 names them; the class token's position stands in the embedding."""
    state = dict(model.state_dict())
    if "reg_token" in state:
        state["register_tokens"] = state.pop("reg_token")
        place = torch.full_like(state["cls_token"], 0.3)
        state["cls_token"] = state["cls_token"] - place
        state["pos_embed"] = torch.cat([place, state["pos_embed"]], dim=1)
    gated = state["blocks.0.mlp.fc1.weight"].shape[0] == 2 * state["blocks.0.mlp.fc2.weight"].shape[1]
    if gated:
        state = {k.replace("mlp.fc1.", "mlp.w12.").replace("mlp.fc2.", "mlp.w3."): v for k, v in state.items()}
    return {**state, "mask_token": torch.zeros(1, WIDTH)}


def dinobloom_pth(model: nn.Module) -> dict[str, State]:
    state = {f"backbone.{k}": v for k, v in meta_dinov2(model).items()}
    return {
        "teacher": {**state, "dino_head.mlp.0.weight": torch.zeros(8, 4), "ibot_head.mlp.0.weight": torch.zeros(8, 4)}
    }


def meta_dinov3(model: nn.Module) -> State:
    """As facebookresearch/dinov3 names them: fused biases with a mask of the keys' part, rotary periods stored."""
    out: State = {"mask_token": torch.zeros(1, WIDTH), "rope_embed.periods": torch.ones(4, dtype=torch.bfloat16)}
    for key, value in model.state_dict().items():
        key = key.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma").replace("reg_token", "storage_tokens")
        key = key.replace("fc1_g", "w1").replace("fc1_x", "w2")
        if "rope" in key or key.endswith(("v_bias", "k_bias")):
            continue
        if ".mlp.w" not in key and "blocks.0.mlp.fc1_g.weight" in model.state_dict():
            key = key.replace("mlp.fc2", "mlp.w3")
        if key.endswith("q_bias"):
            values = model.state_dict()[key.replace("q_bias", "v_bias")]
            key = key.replace("q_bias", "qkv.bias")
            out[key + "_mask"] = torch.full((3 * WIDTH,), float("nan"))
            value = torch.cat([value, torch.zeros_like(value), values])
        out[key] = value
    return out


def openai_clip(model: nn.Module) -> State:
    """As OpenAI and OpenCLIP name them, with a text tower beside."""
    swaps = [("patch_embed.proj", "conv1"), ("blocks.", "transformer.resblocks."), ("norm_pre", "ln_pre"), ("norm1", "ln_1"),
             ("norm2", "ln_2"), ("attn.qkv.", "attn.in_proj_"), ("attn.proj", "attn.out_proj"), ("mlp.fc1", "mlp.c_fc"),
             ("mlp.fc2", "mlp.c_proj"), ("cls_token", "class_embedding"), ("pos_embed", "positional_embedding")]  # fmt: skip
    out: State = {
        "visual.proj": torch.zeros(WIDTH, 8),
        "logit_scale": torch.ones(()),
        "token_embedding.weight": torch.ones(3, 3),
    }
    for key, value in model.state_dict().items():
        if key.startswith("norm."):
            key = key.replace("norm.", "ln_post.")
        for ours, theirs in swaps:
            key = key.replace(ours, theirs)
        out[f"visual.{key}"] = (
            value.flatten() if key == "class_embedding" else (value[0] if key.startswith("posit") else value)
        )
    return out


def hugging_face_clip(model: nn.Module) -> State:
    """As transformers names CLIP's and SigLIP's vision towers."""
    e = "vision_model.embeddings"
    out: State = {"text_model.final_layer_norm.weight": torch.ones(3), "logit_scale": torch.ones(()),
                  f"{e}.position_ids": torch.arange(17)[None]}  # fmt: skip
    for key, value in model.state_dict().items():
        if key.startswith("attn_pool"):
            out[f"vision_model.head.{key.removeprefix('attn_pool.')}"] = value
        elif ".attn.qkv." in key:
            for part, third in zip("qkv", value.chunk(3), strict=True):
                new = key.replace(".attn.qkv.", f".self_attn.{part}_proj.").replace("blocks.", "encoder.layers.")
                out[f"vision_model.{new}"] = third
        elif key == "cls_token":
            out[f"{e}.class_embedding"] = value.flatten()
        elif key == "pos_embed":
            out[f"{e}.position_embedding.weight"] = value[0]
        elif key.startswith("patch_embed.proj"):
            out[key.replace("patch_embed.proj", f"{e}.patch_embedding")] = value
        elif key.startswith("norm"):
            out[
                "vision_model."
                + (
                    "pre_layrnorm." + key.removeprefix("norm_pre.")
                    if "pre" in key
                    else "post_layernorm." + key.removeprefix("norm.")
                )
            ] = value
        else:
            new = key.replace("blocks.", "encoder.layers.").replace("attn.proj", "self_attn.out_proj")
            out["vision_model." + new.replace("norm1", "layer_norm1").replace("norm2", "layer_norm2")] = value
    return out


def hugging_face_dinov2(model: nn.Module) -> State:
    """As transformers names DINOv2."""
    state = meta_dinov2(model)
    out: State = {}
    for key, value in state.items():
        new = key.replace("blocks.", "encoder.layer.").replace("attn.proj", "attention.output.dense")
        for n in "12":
            new = new.replace(f"ls{n}.gamma", f"layer_scale{n}.lambda1")
        new = new.replace("mlp.w12", "mlp.weights_in").replace("mlp.w3", "mlp.weights_out")
        new = new.replace("patch_embed.proj", "embeddings.patch_embeddings.projection")
        if new.startswith("norm."):
            new = "layernorm." + new.removeprefix("norm.")
        names = {"cls_token": "cls_token", "pos_embed": "position_embeddings", "mask_token": "mask_token",
                 "register_tokens": "register_tokens"}  # fmt: skip
        new = f"embeddings.{names[new]}" if new in names else new
        if ".attn.qkv." in new:
            for part, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                out[new.replace(".attn.qkv.", f".attention.attention.{part}.")] = third
        else:
            out[new] = value
    return out


def some_pixels(backbone: Backbone) -> torch.Tensor:
    side = backbone.preprocessing.side
    return torch.as_tensor(np.random.default_rng(3).integers(0, 256, (2, side, side, 3), dtype=np.uint8))


def assert_same_as_timm(backbone: Backbone, model: Any) -> None:
    """Every block, and the rest of the network from every block, against timm's own forward pass."""
    assert backbone.depth == len(model.blocks)
    pixels, seen = some_pixels(backbone), []
    hooks = [block.register_forward_hook(lambda _m, _i, out: seen.append(out)) for block in model.blocks]
    with torch.inference_mode():
        whole = model.forward_features(to_input(pixels, backbone.preprocessing))
    for hook in hooks:
        hook.remove()
    assert backbone.n_tokens == whole.shape[1] == len(backbone.token_kinds)
    assert backbone.n_prefix == model.num_prefix_tokens == whole.shape[1] - backbone.grid[0] * backbone.grid[1]
    for number, reference in enumerate(seen):
        tokens = backbone.tokens(pixels, number)
        assert (tokens - reference).abs().max() <= 1e-5 * reference.abs().max(), f"block {number}"
        rest = backbone.run_from(number, tokens)
        assert (rest - whole).abs().max() <= 1e-4 * whole.abs().max(), f"from block {number}"
