"""SAELens folders, both ways: ``cfg.json`` and ``sae_weights.safetensors`` (layout of SAELens 6; older spellings are read)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from cytosae._errors import CytosaeError
from cytosae.sae._model import SparseAutoencoder
from cytosae.sae.formats._plain import plain, read_json, text_or_none, whole_number
from cytosae.sae.formats._weights import Tensors, build, fold_input_bias, read_safetensors, unknown_info

CONFIG, WEIGHTS, SCALER = "cfg.json", "sae_weights.safetensors", "activation_scaler.json"
#: Spellings before SAELens 6.
_OLD_NAMES = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
_ARCHITECTURES = ("standard", "topk", "jumprelu", "batchtopk", "matryoshka_batchtopk")
#: What an export says of itself under ``metadata``, and an import reads back.
OWN = "cytosae"
_KEPT = ("recipe", "semantics", "seed", "token_kinds", "backbone", "layer", "preprocessing", "precision")


def from_saelens(folder: Path) -> SparseAutoencoder:
    """The dictionary in a SAELens folder: an inference model, or a checkpoint of its training.

    ``standard`` becomes ``relu``, ``topk`` ``topk``, ``jumprelu`` ``threshold``; ``batchtopk`` and
    ``matryoshka_batchtopk`` (checkpoints; their inference models are ``jumprelu``) ``threshold`` at the one they have
    learnt. Folded into the weights, so that codes and reconstructions stay the same: ``apply_b_dec_to_input`` false,
    ``expected_average_only_in`` with its scaling factor, ``rescale_acts_by_decoder_norm``.

    Raises
    ------
    CytosaeError
        An architecture or a normalisation that is not read here, or a wrong part.
    """
    config = {_OLD_NAMES.get(key, key): value for key, value in read_json(folder / CONFIG).items()}
    path = folder / WEIGHTS
    architecture, k = _architecture(folder, config)
    tensors = Tensors(path, read_safetensors(path), f"{architecture} dictionary of SAELens")
    W_enc = tensors.take("W_enc", (None, None))
    d, n = W_enc.shape
    for name, size in (("d_in", d), ("d_sae", n)):
        if config.get(name) is not None and whole_number(config[name]) != size:
            raise CytosaeError(
                f"{folder / CONFIG} says {name} {plain(config[name])}, but the weights are {d} x {n}; they are of different "
                "dictionaries."
            )
    w = {"W_enc": W_enc, "b_enc": tensors.take("b_enc", (n,)), "W_dec": tensors.take("W_dec", (n, d)),
         "b_dec": tensors.take("b_dec", (d,))}  # fmt: skip
    threshold = _threshold(architecture, tensors, n)
    if "scaling_factor" in tensors.left and not bool((tensors.take("scaling_factor", (n,)) == 1).all()):
        raise CytosaeError(
            f"{path} holds a fine-tuned scaling_factor, which is not read here; multiply the rows of W_dec by it and save "
            "the folder again."
        )
    tensors.finish()
    changes = _fold(folder, config, w, threshold)
    metadata = config.get("metadata") if isinstance(config.get("metadata"), dict) else {}
    assert isinstance(metadata, dict)
    own = metadata.get(OWN)
    kept = {key: plain(own.get(key)) for key in _KEPT} if isinstance(own, dict) else {}
    info = {
        **unknown_info(), **kept,
        "imported": {"format": f"SAELens {architecture}", "config": plain(config), "dtype": tensors.dtype,
                     "version": text_or_none(config.get("sae_lens_version") or metadata.get("sae_lens_version")),
                     "changes": changes},
    }  # fmt: skip
    activation = {"standard": "relu", "topk": "topk"}.get(architecture, "threshold")
    return build(path, w, activation, info, threshold=threshold, k=k)


def _architecture(folder: Path, config: dict[str, Any]) -> tuple[str, int | None]:
    """The architecture, and `k` for ``topk``, in old and new spelling."""
    path = folder / CONFIG
    given = config.get("architecture")
    if given is None and "W_enc" not in config and not {"d_in", "d_sae"} & set(config):
        raise CytosaeError(f"{path} has neither architecture nor d_in, so it is not of SAELens; get the whole folder.")
    architecture = "standard" if given is None else plain(given)
    arguments = config.get("activation_fn_kwargs")
    k = config.get("k", arguments.get("k") if isinstance(arguments, dict) else None)
    function = config.get("activation_fn", "relu")
    if function == "topk" and architecture == "standard":
        architecture = "topk"
    if architecture not in _ARCHITECTURES:
        raise CytosaeError(
            f"{folder} is a {str(architecture)[:80]!r} of SAELens, which is not read here; "
            f"known are {', '.join(_ARCHITECTURES)}."
        )
    if function not in ("relu", "topk", None):
        raise CytosaeError(
            f"{path} asks for the activation {str(plain(function))[:80]!r}, which this program does not have."
        )
    if architecture != "topk":
        return architecture, None
    number = whole_number(k)
    if number is None or number < 1:
        raise CytosaeError(f"{path} is of a topk dictionary, but its k is {plain(k)!r}; write the whole number it has.")
    return architecture, number


def _threshold(architecture: str, tensors: Tensors, n: int) -> torch.Tensor | None:
    if architecture in ("standard", "topk"):
        return None
    if "topk_threshold" in tensors.left:  # a training checkpoint of BatchTopK
        return torch.full((n,), float(tensors.take("topk_threshold")))
    if "log_threshold" in tensors.left:  # a training checkpoint of JumpReLU
        return tensors.take("log_threshold", (n,)).exp()
    return tensors.take("threshold", (n,))


def _fold(
    folder: Path, config: dict[str, Any], w: dict[str, torch.Tensor], threshold: torch.Tensor | None
) -> list[str]:
    """Fold what SAELens does around the weights into them, in its own order; gives a line on each change."""
    changes = []
    given = config.get("normalize_activations")
    # a truth value before SAELens 3
    normalized = "expected_average_only_in" if given is True else plain(given) if given else "none"
    rescaled = config.get("rescale_acts_by_decoder_norm") is True
    if normalized == "expected_average_only_in":
        scale = read_json(folder / SCALER).get("scaling_factor") if (folder / SCALER).is_file() else None
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < float("inf"):
            raise CytosaeError(
                f"{folder} was trained on scaled tokens (normalize_activations {normalized}), but its {SCALER} with the "
                "scaling_factor is missing; call fold_activation_norm_scaling_factor in SAELens and save the model again."
            )
        w["W_enc"] *= scale
        w["W_dec"] /= scale
        w["b_dec"] /= scale
        if rescaled and threshold is not None:
            threshold /= scale
        changes.append(f"the scaling of tokens by {scale:g} is folded into W_enc, W_dec and b_dec")
    elif normalized != "none":
        raise CytosaeError(
            f"{folder} was trained on tokens normalised by {str(normalized)[:80]}, which a dictionary here does not do; train "
            "it with normalize_activations none or expected_average_only_in (or fold the whitening in SAELens first)."
        )
    if config.get("apply_b_dec_to_input", True) is False:
        w["b_enc"] = fold_input_bias(w["W_enc"], w["b_enc"], w["b_dec"])
        changes.append("the encoder did not subtract b_dec; that is folded into b_enc")
    if rescaled:
        norm = w["W_dec"].norm(dim=1).clamp(min=1e-8)
        w["W_enc"] *= norm
        w["b_enc"] = w["b_enc"] * norm
        w["W_dec"] /= norm[:, None]
        changes.append("codes were rescaled by the length of the decoder's rows; that is folded into the weights")
    return changes


def write_saelens(folder: Path, sae: SparseAutoencoder) -> None:
    """Write ``cfg.json`` and ``sae_weights.safetensors`` into a folder that is being committed as a whole.

    ``relu`` becomes ``standard``, ``threshold`` ``jumprelu``, ``topk`` ``topk``.
    """
    from safetensors.torch import save_file

    from cytosae.storage import created_by, write_json

    tensors = {
        name: getattr(sae, name).detach().cpu().float().contiguous() for name in ("W_enc", "b_enc", "W_dec", "b_dec")
    }
    if sae.threshold is not None:
        tensors["threshold"] = sae.threshold.detach().cpu().float().contiguous()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    backbone = sae.info.get("backbone") or {}
    config: dict[str, Any] = {
        "architecture": {"relu": "standard", "threshold": "jumprelu", "topk": "topk"}[sae.activation],
        "d_in": sae.d_in, "d_sae": sae.n_latents, "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": True,
        "normalize_activations": "none", "reshape_activations": "none",
        "metadata": {
            # the layout of the file, by which SAELens knows that it needs no translation
            "sae_lens_version": "6.0.0", "sae_lens_training_version": None, "model_name": backbone.get("name"),
            OWN: {**{key: sae.info.get(key) for key in _KEPT}, "created_by": created_by(), "sae": sae.hash},
        },
    }  # fmt: skip
    if sae.activation == "topk":
        config |= {"k": sae.k, "rescale_acts_by_decoder_norm": False}
    write_json(folder / CONFIG, config)
