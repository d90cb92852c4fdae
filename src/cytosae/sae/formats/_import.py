"""From somebody else's file to an SAE folder: recognised by content, checked, matched with its backbone, committed whole."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cytosae._errors import CytosaeError, UsageError
from cytosae.backbones import Layer, known_layer, layer_option, layer_text, same_layer
from cytosae.sae._io import KIND, VERSION, load_sae, save_sae
from cytosae.sae._model import SparseAutoencoder
from cytosae.sae.formats import _own, _saelens
from cytosae.sae.formats._dictionary_learning import from_dictionary_learning
from cytosae.sae.formats._published import CLASSES, from_published, looks_published
from cytosae.sae.formats._torch_file import read_torch
from cytosae.storage import commit_folder, hash_file

if TYPE_CHECKING:
    from cytosae.backbones import Backbone
    from cytosae.tokens import TokenStore

#: A folder by the two files it must hold, in the order in which they are looked for.
_FOLDERS = {
    (_saelens.CONFIG, _saelens.WEIGHTS): _saelens.from_saelens,
    (_own.CONFIG, _own.WEIGHTS): _own.from_own,
}


@dataclass(frozen=True)
class Belonging:
    """The tokens that an imported dictionary is for.

    Attributes
    ----------
    name
        Of backbone or token store, for messages.
    d_in
        Width of a token.
    backbone
        Record of the backbone as a token store keeps it.
    preprocessing, precision
        As a token store keeps them.
    layer
        The block; None where only the backbone is known.
    depth
        Blocks of the backbone; None where that is not known.
    """

    name: str
    d_in: int
    backbone: dict[str, Any]
    preprocessing: dict[str, Any]
    precision: str
    layer: Layer | None = None
    depth: int | None = None

    @staticmethod
    def of_tokens(store: TokenStore) -> Belonging:
        """What a token store says of itself."""
        m = store.manifest
        return Belonging(
            str(store.folder), store.d_in, m["backbone"], m["preprocessing"], m["precision"], m["layer"], m.get("depth")
        )

    @staticmethod
    def of_backbone(backbone: Backbone, layer: Layer | None = None) -> Belonging:
        """What a backbone says of itself; which block is left open, unless `layer` is given."""
        width = backbone.d_in if layer is None else backbone.width(layer)
        return Belonging(backbone.name, width, backbone.record, backbone.preprocessing.as_dict(), backbone.precision)


def read_foreign(source: Path | str) -> SparseAutoencoder:
    """The dictionary in a file or folder of another program, nothing in it being executed.

    Parameters
    ----------
    source
        A checkpoint of the published CytoSAE or PatchSAE programs (``.pt``); a folder of SAELens; ``ae.pt`` of
        dictionary_learning or its folder; a folder with ``sae.json`` and ``sae.safetensors``.

    Returns
    -------
    float32, values as trained. ``info["imported"]`` says what it came from, and what was folded into the weights.

    Raises
    ------
    CytosaeError
        Not one of these, not whole, not numbers, or naming classes that would have to be run.
    """
    source = Path(source)
    if source.name in (name for pair in _FOLDERS for name in pair) and source.is_file():
        source = source.parent
    if source.is_dir():
        for names, read in _FOLDERS.items():
            if any((source / name).is_file() for name in names):
                sae = read(source)
                return _signed(sae, source / names[1])
        if not (source / "ae.pt").is_file():
            raise CytosaeError(
                f"{source} holds no dictionary that is read here: neither cfg.json with sae_weights.safetensors (SAELens), "
                "nor ae.pt with config.json (dictionary_learning), nor sae.json with sae.safetensors (CytoSAE)."
            )
        source /= "ae.pt"
    if not source.is_file():
        raise CytosaeError(f"{source} does not exist or is not a file; give the dictionary's file or folder.")
    if source.suffix == ".safetensors":
        raise CytosaeError(
            f"{source} holds tensors alone; give the folder with the settings beside them (cfg.json or sae.json)."
        )
    found = read_torch(source, CLASSES)
    if not isinstance(found, dict):
        raise CytosaeError(f"{source} holds no named tensors; give the checkpoint of a dictionary.")
    sae = from_published(source, found) if looks_published(found) else from_dictionary_learning(source, found)
    return _signed(sae, source)


def _signed(sae: SparseAutoencoder, weights: Path) -> SparseAutoencoder:
    record = {**sae.info["imported"], "file": weights.name, "sha256": hash_file(weights)}
    return replace(sae, info={**_checked(sae.info), "imported": record})


def _checked(info: dict[str, Any]) -> dict[str, Any]:
    """The keys by which a backbone is found again, as other code expects them; what is otherwise is not known."""
    record = info.get("backbone")
    options = record.get("options", {}) if isinstance(record, dict) else None
    known = (
        isinstance(record, dict)
        and isinstance(record.get("name"), str)
        and isinstance(record.get("sha256"), str)
        and re.fullmatch(r"[0-9a-f]{64}", record["sha256"]) is not None
        and isinstance(record.get("file", ""), str)
        and isinstance(options, dict)
        and all(key in ("heads", "image_size") and type(value) is int for key, value in options.items())
    )
    kinds = info.get("token_kinds")
    return {
        **info,
        "backbone": record if known else None,
        "layer": known_layer(info.get("layer")),
        "precision": info.get("precision") if info.get("precision") in ("float32", "bfloat16") else None,
        "preprocessing": info["preprocessing"] if isinstance(info.get("preprocessing"), dict) else None,
        "token_kinds": kinds if isinstance(kinds, list) and all(isinstance(kind, str) for kind in kinds) else None,
        "metrics": info["metrics"] if isinstance(info.get("metrics"), dict) else {},
    }


def import_sae(
    source: Path | str, out: Path | str, *, belongs: Belonging | None = None, layer: Layer | None = None
) -> SparseAutoencoder:
    """Read a dictionary of another program and write it as an SAE folder.

    Parameters
    ----------
    source
        See `read_foreign`.
    out
        The SAE folder to write.
    belongs
        The tokens it is for; without it the backbone stays unknown (null).
    layer
        The block, where the file does not say it or is to be overruled.

    Raises
    ------
    CytosaeError
        See `read_foreign`; or the dictionary is of another width or block than the tokens. Nothing is written then.
    """
    source, out = Path(source), Path(out)
    sae = read_foreign(source)
    if (
        out.exists()
        and source.exists()
        and (out.samefile(source) or (source.is_file() and out.samefile(source.parent)))
    ):
        raise UsageError(f"{out} is where the dictionary comes from; choose another --out.")
    info = dict(sae.info)
    if layer is not None:
        info["layer"] = layer
    if belongs is not None:
        if belongs.d_in != sae.d_in:
            raise CytosaeError(
                f"{source} is a dictionary of {sae.d_in} numbers a token, but {belongs.name} has {belongs.d_in}; it belongs to "
                "another backbone."
            )
        if (
            belongs.layer is not None
            and info["layer"] is not None
            and not same_layer(info["layer"], belongs.layer, belongs.depth)
        ):
            raise CytosaeError(
                f"{source} is of {layer_text(info['layer'])}, but the tokens in {belongs.name} are of {layer_text(belongs.layer)}; "
                f"extract those of its block, or say --layer {layer_option(belongs.layer)} where both name the same one."
            )
        info |= {
            "backbone": belongs.backbone, "preprocessing": belongs.preprocessing, "precision": belongs.precision,
            "layer": info["layer"] if belongs.layer is None else belongs.layer,
        }  # fmt: skip
    record = info["imported"]
    inputs = {"source": record["sha256"]}
    config = {"format": record["format"], "file": record["file"]}
    with commit_folder(out, kind=KIND, version=VERSION, inputs=inputs, config=config) as (folder, extra):
        save_sae(folder, sae, info)
        extra["metrics"] = info["metrics"]
    return load_sae(out)
