"""Tensors into a network, every one of them: what is missing, left over, misshapen or not a number is said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cytosae._errors import CytosaeError

if TYPE_CHECKING:
    import torch

#: Parts after the tokens (pooling, classifier): a file may hold them or not.
_AFTER = ("head.", "head_dist.", "fc_norm.", "attn_pool.", "mask_token", "lm_head.")

#: A key that only files of this kind have -> the backbone to name.
_SIGNS = {
    "visual.class_embedding": "clip", "vision_model.embeddings.class_embedding": "clip",
    "vision_model.head.probe": "siglip", "visual.trunk.attn_pool.latent": "siglip",
    "storage_tokens": "dinov3", "rope_embed.periods": "dinov3", "register_tokens": "dinov2",
    "blocks.0.ls1.gamma": "dinov2", "W_enc": "no backbone but a sparse autoencoder",
}  # fmt: skip


def fit_weights(model: Any, state: dict[str, torch.Tensor], source: str, name: str) -> None:
    """Load `state` (timm's names) into `model`, strictly but for what comes after the tokens.

    Parameters
    ----------
    model
        timm network.
    state
        Tensors by timm's names.
    source, name
        File and backbone, for the errors.

    Raises
    ------
    CytosaeError
        Another architecture, missing tensors, another shape, or values that are not numbers.
    """
    own = model.state_dict()
    wanted = {k: v for k, v in own.items() if not k.startswith(_AFTER)}
    given = {k: v for k, v in state.items() if not k.startswith(_AFTER)}
    missing = [k for k in wanted if k not in given]
    extra = [k for k in given if k not in wanted]
    if missing and 2 * len(missing) > len(wanted) and extra:
        raise not_this(state, source, name)
    if missing:
        raise CytosaeError(
            f"{source} lacks {len(missing)} of the {len(wanted)} tensors of {name} (the first is {missing[0]!r}); "
            "get the whole file."
        )
    if extra:
        raise CytosaeError(
            f"{source} holds {len(extra)} tensors that {name} does not have (the first is {extra[0]!r}); "
            f"choose the backbone it belongs to{_hint(state, name)}."
        )
    for key, tensor in given.items():
        if tensor.shape != wanted[key].shape:
            raise CytosaeError(
                f"{source}: {key!r} is {list(tensor.shape)} but {name} wants {list(wanted[key].shape)}; choose the "
                "backbone it belongs to."
            )
        if not bool(tensor.isfinite().all()):
            raise CytosaeError(
                f"{source}: {key!r} holds values that are not numbers (NaN or infinite); get the file again."
            )
    fitting = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
    model.load_state_dict(fitting, strict=False)


def not_this(
    state: dict[str, torch.Tensor], source: str, name: str, lacking: Sequence[str] = (), foreign: Sequence[str] = ()
) -> CytosaeError:
    """The error for a checkpoint of another architecture, or one without a tensor that every such network has."""
    if lacking:
        reason = f"it has no {lacking[0]!r} and begins with {next(iter(state), 'nothing')!r}"
    elif foreign:
        reason = f"it has {foreign[0]!r}, which no {name} has"
    else:
        reason = f"it begins with {next(iter(state), 'nothing')!r}"
    return CytosaeError(
        f"{source} is not a whole checkpoint of {name} ({reason}); get the whole file, or choose the backbone it belongs "
        f"to{_hint(state, name)}."
    )


def _hint(state: dict[str, torch.Tensor], name: str) -> str:
    found = next((family for sign, family in _SIGNS.items() if sign in state), None)
    # DinoBloom and RedDino are DINOv2 networks: saying so of their own files would mislead
    if found is None or found == name or (found == "dinov2" and name in ("dinobloom", "reddino")):
        return " ('cytosae backbones' lists them)"
    return f": it looks like {found}"
