"""A folder with ``sae.safetensors`` and ``sae.json``, as the Hugging Face export writes it and people pass it on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cytosae._errors import CytosaeError
from cytosae.sae._model import ACTIVATIONS, SparseAutoencoder
from cytosae.sae.formats._plain import plain, read_json, whole_number
from cytosae.sae.formats._weights import Tensors, build, read_safetensors, unknown_info
from cytosae.storage import hash_file

CONFIG, WEIGHTS = "sae.json", "sae.safetensors"


def from_own(folder: Path) -> SparseAutoencoder:
    """The dictionary in such a folder. Its card may have been edited; its weights and record must be as they were written.

    Raises
    ------
    CytosaeError
        A wrong part, or one that differs from the manifest beside it.
    """
    info: dict[str, Any] = plain(read_json(folder / CONFIG))
    path = folder / WEIGHTS
    tensors = Tensors(path, read_safetensors(path), "dictionary of CytoSAE")
    if (folder / "manifest.json").is_file():
        files = read_json(folder / "manifest.json").get("files")
        for name in (CONFIG, WEIGHTS):
            record = files.get(name) if isinstance(files, dict) else None
            if not isinstance(record, dict) or record.get("sha256") != hash_file(folder / name):
                raise CytosaeError(f"{folder / name} has changed since it was written; get the folder again.")
    activation = info.pop("activation", None)
    if activation not in ACTIVATIONS:
        raise CytosaeError(
            f"{folder / CONFIG} says activation {str(activation)[:80]!r}; this program knows {', '.join(ACTIVATIONS)}."
        )
    W_enc = tensors.take("W_enc", (None, None))
    d, n = W_enc.shape
    said = (whole_number(info.pop("d_in", None)), whole_number(info.pop("n_latents", None)))
    if said != (d, n):
        raise CytosaeError(
            f"{folder / CONFIG} says {said[0]} x {said[1]}, but the weights are {d} x {n}; get the folder again."
        )
    weights = {"W_enc": W_enc, "b_enc": tensors.take("b_enc", (n,)), "W_dec": tensors.take("W_dec", (n, d)),
               "b_dec": tensors.take("b_dec", (d,))}  # fmt: skip
    threshold = tensors.take("threshold", (n,)) if activation == "threshold" else None
    k = whole_number(info.pop("k", None))
    tensors.left.pop("threshold", None)
    tensors.finish()
    info.pop("schema_version", None)
    before = info.get("imported")
    info = {**unknown_info(), **info, "imported": {"format": "CytoSAE", "dtype": tensors.dtype, "changes": []}}
    if isinstance(before, dict):
        info["imported"]["before"] = before
    return build(path, weights, str(activation), info, threshold=threshold, k=k)
