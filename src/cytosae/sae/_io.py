"""The SAE folder: `sae.safetensors`, `sae.json`, `metrics.jsonl`, and its manifest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from cytosae._errors import CytosaeError
from cytosae.sae._bundled import find_sae
from cytosae.sae._model import SparseAutoencoder
from cytosae.storage import commit_folder, read_manifest, write_json

KIND, VERSION = "sae", 1
_NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")


def save_sae(folder: Path, sae: SparseAutoencoder, info: dict[str, Any], *, half: bool = False) -> None:
    """Write the weights and `sae.json` into a folder that is being committed as a whole.

    With `half` the two matrices are stored in float16 (half the size; read back as float32), the vectors as they are.

    Raises
    ------
    CytosaeError
        A weight is too large for float16.
    """
    from safetensors.torch import save_file

    tensors = {name: getattr(sae, name).detach().cpu().float().contiguous() for name in _NAMES}
    if half:
        tensors |= {name: tensors[name].half() for name in ("W_enc", "W_dec")}
        if not all(bool(torch.isfinite(t).all()) for t in tensors.values()):
            raise CytosaeError("The weights are too large for float16; store them in float32.")
    if sae.threshold is not None:
        tensors["threshold"] = sae.threshold.detach().cpu().float().contiguous()
    save_file(tensors, folder / "sae.safetensors", metadata={"format": "pt"})
    kept = {"k": sae.k} if sae.activation == "topk" else {}
    shape = {"d_in": sae.d_in, "n_latents": sae.n_latents, "activation": sae.activation}
    write_json(folder / "sae.json", {"schema_version": VERSION, **shape, **kept, **info})


def load_sae(folder: Path | str, *, device: str = "cpu") -> SparseAutoencoder:
    """Read an SAE folder, or the dictionary in the package by its name, ``default``.

    Parameters
    ----------
    folder
        The folder; a folder that is called like a bundled dictionary goes before it.
    device
        As torch names it.

    Raises
    ------
    CytosaeError
        Missing, changed since it was written, or of impossible shapes.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = find_sae(folder)
    manifest = read_manifest(folder, KIND, VERSION, verify=True)
    try:
        tensors = load_file(folder / "sae.safetensors")
        info = json.loads((folder / "sae.json").read_text("utf-8"))
        weights = {name: tensors[name].float() for name in _NAMES}
        activation, k = str(info["activation"]), int(info.get("k", 0))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise CytosaeError(f"{folder} is not a whole SAE ({type(error).__name__}: {error}); train it again.") from error
    threshold = tensors.get("threshold")
    sae = SparseAutoencoder(**weights, activation=activation, threshold=threshold, k=k, info=info, hash=manifest.hash)
    return sae.to(device) if torch.device(device).type != "cpu" else sae


def round_sae(source: Path, out: Path) -> None:
    """Write a dictionary again with its matrices in float16, to be packaged; what was recorded of its training is kept.

    Its codes differ a little from the source's, so it is a dictionary of its own: an index has to be made with it.

    Raises
    ------
    CytosaeError
        The source is no whole SAE, or holds weights too large for float16.
    """
    sae, manifest = load_sae(source), read_manifest(source, KIND, VERSION)
    own = ("schema_version", "d_in", "n_latents", "activation", "k")
    info = {k: v for k, v in sae.info.items() if k not in own} | {"rounded": {"to": "float16", "from": sae.hash}}
    inputs, config = dict(manifest["inputs"]), dict(manifest["config"])
    with commit_folder(out, kind=KIND, version=VERSION, inputs=inputs, config=config) as (folder, extra):
        save_sae(folder, sae, info, half=True)
        extra["metrics"] = manifest.get("metrics", {})
