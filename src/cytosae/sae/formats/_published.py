"""Checkpoints of the published CytoSAE and PatchSAE programs: a pickled configuration beside a state dict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cytosae._errors import CytosaeError
from cytosae.sae._model import SparseAutoencoder
from cytosae.sae.formats._plain import plain, whole_number
from cytosae.sae.formats._torch_file import Inert
from cytosae.sae.formats._weights import Tensors, build, unknown_info

#: The classes of a configuration in such a file; any other is refused by name.
CLASSES = ("src.sae_training.config.ViTSAERunnerConfig", "src.sae_training.config.Config")
_KEYS = ("cfg", "config")


def looks_published(found: dict[Any, Any]) -> bool:
    """Whether the content of a PyTorch file is laid out as such a checkpoint."""
    return "state_dict" in found or any(isinstance(found.get(key), Inert) for key in _KEYS)


def from_published(path: Path, found: dict[Any, Any]) -> SparseAutoencoder:
    """The dictionary in such a checkpoint, values as trained: decoder rows are one step off unit length and stay so.

    Parameters
    ----------
    path
        The file.
    found
        What `read_torch` gave.

    Raises
    ------
    CytosaeError
        A part is missing, of another shape, contradicts the configuration, or is of a kind that is not read here.
    """
    key = next((key for key in _KEYS if key in found), None)
    if key is None:
        raise CytosaeError(
            f"{path} has a state_dict but no configuration (cfg or config); give the published file whole."
        )
    config = found[key]
    fields: dict[str, Any] = vars(config) if isinstance(config, Inert) else config if isinstance(config, dict) else {}
    if not fields:
        raise CytosaeError(f"{path} has a configuration without fields; give the published file whole.")
    state = found.get("state_dict")
    if not isinstance(state, dict):
        raise CytosaeError(f"{path} has a configuration but no state_dict; give the published file whole.")
    if fields.get("gated_sae"):
        raise CytosaeError(
            f"{path} is a gated dictionary, whose encoder this program does not have; use one with ReLU."
        )
    tensors = Tensors(path, state, "CytoSAE or PatchSAE dictionary")
    W_enc = tensors.take("W_enc", (None, None))
    d, n = W_enc.shape
    for name, size in (("d_in", d), ("d_sae", n)):
        said = fields.get(name)
        if said is not None and whole_number(said) != size:
            raise CytosaeError(
                f"{path} says {name} {plain(said)}, but W_enc is {d} x {n}; its parts are of different dictionaries."
            )
    weights = {
        "W_enc": W_enc, "b_enc": tensors.take("b_enc", (n,)), "W_dec": tensors.take("W_dec", (n, d)),
        "b_dec": tensors.take("b_dec", (d,)),
    }  # fmt: skip
    tensors.finish()
    settings = plain(fields)
    info = {
        **unknown_info(), "semantics": "cytosae-2025", "hyperparameters": settings,
        "token_kinds": ["class"] if fields.get("class_token") else ["class", "patch"],
        "layer": whole_number(fields.get("block_layer")), "seed": whole_number(fields.get("seed")),
        "imported": {"format": "published CytoSAE or PatchSAE", "dtype": tensors.dtype, "changes": []},
    }  # fmt: skip
    return build(path, weights, "relu", info)
