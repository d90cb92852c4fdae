"""Names of Hugging Face transformers (CLIP, SigLIP and DINOv2 vision towers) -> timm's names."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_RENAMES = [
    (r"^embeddings\.(class_embedding|cls_token)$", "cls_token"),
    (r"^embeddings\.register_tokens$", "register_tokens"),
    (r"^embeddings\.mask_token$", "mask_token"),
    (r"^embeddings\.(patch_embedding|patch_embeddings\.projection)\.", "patch_embed.proj."),
    (r"^embeddings\.(position_embedding\.weight|position_embeddings)$", "pos_embed"),
    (r"^pre_layrnorm\.", "norm_pre."),  # transformers' own spelling
    (r"^(post_layernorm|layernorm)\.", "norm."),
    (r"^encoder\.layers?\.", "blocks."),
    (r"\.self_attn\.out_proj\.|\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.self_attn\.([qkv])_proj\.", r".attn.\1."),
    (r"\.attention\.attention\.([qkv])(uery|ey|alue)\.", r".attn.\1."),
    (r"\.layer_norm([12])\.", r".norm\1."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.mlp\.weights_out\.", ".mlp.fc2."),
]


def is_hugging_face(state: dict[str, torch.Tensor]) -> bool:
    """Whether the names are those of transformers."""
    return any(re.match(r"(vision_model\.|dinov2\.)?encoder\.layers?\.0\.", key) for key in state)


def from_hugging_face(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the vision tower's tensors, and join query, key and value as timm keeps them."""
    import torch

    for prefix in ("vision_model.", "dinov2."):
        if any(key.startswith(prefix) for key in state):
            state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    out: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        if key.startswith("head.") or key.endswith("position_ids"):
            continue
        for pattern, new in _RENAMES:
            key = re.sub(pattern, new, key)
        if key == "cls_token":
            value = value.reshape(1, 1, -1)
        elif key == "pos_embed" and value.ndim == 2:
            value = value[None]
        out[key] = value
    for query in [key for key in out if re.search(r"\.attn\.q\.(weight|bias)$", key)]:
        parts = [query.replace(".attn.q.", f".attn.{part}.") for part in "qkv"]
        if all(part in out for part in parts):
            out[query.replace(".attn.q.", ".attn.qkv.")] = torch.cat([out.pop(part) for part in parts])
    return out
