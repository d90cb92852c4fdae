"""A backbone of which some blocks were adapted to cells (``cytosae adapt``): the network it was made from, other weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cytosae._errors import CytosaeError
from cytosae.backbones._preprocess import Preprocessing
from cytosae.storage import hash_file, read_manifest

if TYPE_CHECKING:
    import torch

#: Kind and version of the folder, and the file of weights in it.
ADAPTED, ADAPTED_VERSION, ADAPTED_FILE = "adapted backbone", 1, "backbone.safetensors"


class Adapted(NamedTuple):
    """A network, the sha256 of its weights, its preprocessing, and the record of the one it was made from."""

    model: Any
    sha256: str
    preprocessing: Preprocessing
    base: dict[str, Any]


def build_adapted(folder: Path, build: Callable[[dict[str, Any], dict[str, torch.Tensor], str], Any]) -> Adapted:
    """The network of a folder.

    Parameters
    ----------
    folder
        What ``cytosae adapt`` wrote, or the file of weights in it.
    build
        Makes the network of the base's record, the tensors, and the file's name.

    Raises
    ------
    CytosaeError
        It is no such folder, or is cut or changed.
    """
    from cytosae.backbones._weights import read_weights

    folder = folder.parent if folder.name == ADAPTED_FILE else folder
    manifest = read_manifest(folder, ADAPTED, ADAPTED_VERSION)
    path, base = folder / ADAPTED_FILE, manifest.get("base")
    prepared = manifest.get("preprocessing")
    sha256 = hash_file(path) if path.is_file() else ""
    if sha256 != manifest["files"].get(ADAPTED_FILE, {}).get("sha256"):
        raise CytosaeError(f"{path} is not the file that was written with its manifest.json; adapt again.")
    try:
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in prepared.items()}
        preprocessing = Preprocessing(**values)
        if not isinstance(base["name"], str):
            raise TypeError
    except (TypeError, AttributeError, KeyError) as error:
        raise CytosaeError(
            f"{folder / 'manifest.json'} does not say which backbone was adapted; adapt again."
        ) from error
    model = build(base, read_weights(path), f"{folder.name}/{ADAPTED_FILE}")
    return Adapted(model, sha256, preprocessing, base)
