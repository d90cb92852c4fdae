"""Dictionaries of the package dictionary_learning (0.1.0): ``ae.pt``, a state dict, and ``config.json`` beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from cytosae._errors import CytosaeError
from cytosae.sae._model import SparseAutoencoder
from cytosae.sae.formats._plain import plain, read_json, whole_number
from cytosae.sae.formats._weights import Tensors, build, fold_input_bias, unknown_info

_CLASSES = (
    "AutoEncoder",
    "AutoEncoderNew",
    "AutoEncoderTopK",
    "BatchTopKSAE",
    "JumpReluAutoEncoder",
    "MatryoshkaBatchTopKSAE",
)


def from_dictionary_learning(path: Path, found: dict[Any, Any]) -> SparseAutoencoder:
    """The dictionary in an ``ae.pt``.

    ``AutoEncoder`` and ``AutoEncoderNew`` become ``relu``, ``AutoEncoderTopK`` ``topk`` (its own default; the threshold it
    also keeps goes to ``sae.json``), ``BatchTopKSAE`` and ``MatryoshkaBatchTopKSAE`` ``threshold`` with the one they have
    learnt, ``JumpReluAutoEncoder`` ``threshold``. Where the encoder does not subtract the decoder's bias, that is folded
    into ``b_enc``.

    Raises
    ------
    CytosaeError
        A class or a layout that is not read here, no ``config.json`` where it is needed, or a wrong part.
    """
    config = _config(path)
    trainer = next((config[key] for key in ("trainer", "trainer_config") if isinstance(config.get(key), dict)), config)
    named = trainer.get("dict_class")
    kind = _kind(path, set(map(str, found)), named if isinstance(named, str) else None)
    tensors = Tensors(path, found, kind)
    if kind in ("JumpReluAutoEncoder", "MatryoshkaBatchTopKSAE"):
        W_enc = tensors.take("W_enc", (None, None))
        d, n = W_enc.shape
        weights = {"W_enc": W_enc, "b_enc": tensors.take("b_enc", (n,)), "W_dec": tensors.take("W_dec", (n, d)),
                   "b_dec": tensors.take("b_dec", (d,))}  # fmt: skip
    else:
        W_enc = tensors.take("encoder.weight", (None, None)).T.contiguous()
        d, n = W_enc.shape
        bias = {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias"}.get(kind, "b_dec")
        weights = {
            "W_enc": W_enc, "b_enc": tensors.take("encoder.bias", (n,)),
            "W_dec": tensors.take("decoder.weight", (d, n)).T.contiguous(), "b_dec": tensors.take(bias, (d,)),
        }  # fmt: skip
    for name, size in (("activation_dim", d), ("dict_size", n)):
        if trainer.get(name) is not None and whole_number(trainer[name]) != size:
            raise CytosaeError(
                f"{path.parent / 'config.json'} says {name} {plain(trainer[name])}, but {path.name} is {d} x {n}; they are "
                "of different dictionaries."
            )
    changes = []
    if kind in ("JumpReluAutoEncoder", "AutoEncoderNew"):
        weights["b_enc"] = fold_input_bias(weights["W_enc"], weights["b_enc"], weights["b_dec"])
        changes.append("the encoder did not subtract b_dec; that is folded into b_enc")
    activation, k, threshold = "relu", None, None
    record: dict[str, Any] = {}
    if kind == "JumpReluAutoEncoder":
        activation, threshold = "threshold", tensors.take("threshold", (n,))
    elif kind in ("AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
        k = whole_number(float(tensors.take("k")))
        learnt = float(tensors.take("threshold"))
        tensors.left.pop("group_sizes", None)
        if kind == "AutoEncoderTopK":
            activation, record = "topk", {"threshold": learnt if learnt >= 0 else None}
        else:
            if learnt < 0:
                raise CytosaeError(
                    f"{path} is a {kind} whose threshold was never set (it is {learnt:g}), so it has no codes for single "
                    "tokens; train it past threshold_start_step."
                )
            activation, threshold, record, k = "threshold", torch.full((n,), learnt), {"k": k}, None
    tensors.finish()
    info = {
        **unknown_info(), "hyperparameters": plain(config), "layer": whole_number(trainer.get("layer")),
        "seed": whole_number(trainer.get("seed")),
        "imported": {"format": f"dictionary_learning {kind}", "dtype": tensors.dtype,
                     "changes": changes, **record},
    }  # fmt: skip
    return build(path, weights, activation, info, threshold=threshold, k=k)


def _config(path: Path) -> dict[str, Any]:
    """The configuration beside the weights (one folder up for a checkpoint); empty where there is none."""
    for folder in (path.parent, path.parent.parent if path.parent.name == "checkpoints" else path.parent):
        if (folder / "config.json").is_file():
            return read_json(folder / "config.json")
    return {}


def _kind(path: Path, keys: set[str], named: str | None) -> str:
    """Which class wrote the file: by its tensors, and where two have the same ones by the configuration."""
    if "gate_bias" in keys or "r_mag" in keys or named == "GatedAutoEncoder":
        raise CytosaeError(
            f"{path} is a GatedAutoEncoder, whose two-part encoder this program does not have; use another dictionary."
        )
    if {"W_enc", "W_dec"} <= keys:
        fits = ["MatryoshkaBatchTopKSAE"] if "k" in keys or "group_sizes" in keys else ["JumpReluAutoEncoder"]
    elif "encoder.weight" in keys and "b_dec" in keys:
        fits = ["AutoEncoderTopK", "BatchTopKSAE"]
    elif "encoder.weight" in keys:
        fits = ["AutoEncoderNew"] if "decoder.bias" in keys else ["AutoEncoder"]
    else:
        have = ", ".join(sorted(keys)[:6])[:200] or "nothing"
        raise CytosaeError(f"{path} holds {have}, which is no dictionary that is read here; give the file of an SAE.")
    if named is not None and named not in _CLASSES:
        raise CytosaeError(f"{path} is a {named[:80]}, which is not read here; known are {', '.join(_CLASSES)}.")
    if named is not None and named not in fits:
        raise CytosaeError(
            f"{path} has the tensors of {' or '.join(fits)}, but its config.json says {named}; they do not belong together."
        )
    if named is None and len(fits) > 1:
        raise CytosaeError(
            f"{path} may be a {' or a '.join(fits)}, which have the same tensors; put its config.json beside it."
        )
    return named or fits[0]
