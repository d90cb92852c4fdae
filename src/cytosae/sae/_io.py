"""The SAE folder: `sae.safetensors`, `sae.json`, `metrics.jsonl`, and its manifest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from cytosae._errors import CytosaeError
from cytosae.sae._model import SparseAutoencoder
from cytosae.storage import read_manifest, write_json

KIND, VERSION = "sae", 1
_NAMES = ("W_enc", "b_enc", "W_dec", "b_dec")


def save_sae(folder: Path, sae: SparseAutoencoder, info: dict[str, Any]) -> None:
    """Write the weights and `sae.json` into a folder that is being committed as a whole."""
    from safetensors.torch import save_file

    tensors = {name: getattr(sae, name).detach().cpu().float().contiguous() for name in _NAMES}
    if sae.threshold is not None:
        tensors["threshold"] = sae.threshold.detach().cpu().float().contiguous()
    save_file(tensors, folder / "sae.safetensors", metadata={"format": "pt"})
    kept = {"k": sae.k} if sae.activation == "topk" else {}
    shape = {"d_in": sae.d_in, "n_latents": sae.n_latents, "activation": sae.activation}
    write_json(folder / "sae.json", {"schema_version": VERSION, **shape, **kept, **info})


def load_sae(folder: Path | str, *, device: str = "cpu") -> SparseAutoencoder:
    """Read an SAE folder.

    Raises
    ------
    CytosaeError
        Missing, changed since it was written, or of impossible shapes.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
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
