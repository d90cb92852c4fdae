"""Tensors from elsewhere become a dictionary: types, sizes, shapes and values checked, in the names of their file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from cytosae._errors import CytosaeError
from cytosae.sae._model import SparseAutoencoder
from cytosae.sae.formats._torch_file import damaged


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file.

    Raises
    ------
    CytosaeError
        Missing, cut short, or not safetensors.
    """
    from safetensors.torch import load_file

    if not path.is_file():
        raise CytosaeError(f"{path} is missing; get the whole folder.")
    try:
        return dict(load_file(path))
    except Exception as error:  # SafetensorError, but also OS, Key, Value, Type for odd headers
        raise CytosaeError(f"{path} is cut short or is not safetensors; get the file again.") from error


class Tensors:
    """The tensors of one file, taken out by name; what is left over at the end is refused.

    Parameters
    ----------
    path
        The file, for messages and as the bound on what its tensors can hold.
    found
        What the file holds by name.
    kind
        What the file should be, for messages.
    """

    def __init__(self, path: Path, found: Mapping[Any, Any], kind: str) -> None:
        self.path, self.kind = path, kind
        self.left = {str(key): value for key, value in found.items()}
        self._size = path.stat().st_size
        self.dtype = ""

    def take(self, name: str, shape: Sequence[int | None] = (), *, only: bool = True) -> torch.Tensor:
        """One tensor, removed from what is left: a float32 copy of its own.

        Parameters
        ----------
        name
            As in the file.
        shape
            What it must be; None where any length above 0 will do.
        only
            Whether the values must be finite.

        Raises
        ------
        CytosaeError
            Missing, no plain tensor of numbers, of another shape, or not finite.
        """
        if name not in self.left:
            have = ", ".join(sorted(self.left)[:8]) or "nothing"
            raise CytosaeError(f"{self.path} has no {name}, so it is not a whole {self.kind} (it holds {have[:200]}).")
        value = self.left.pop(name)
        try:
            whole = (
                isinstance(value, torch.Tensor)
                and type(value) in (torch.Tensor, torch.nn.Parameter)
                and value.layout == torch.strided
                and value.device.type == "cpu"
                and not value.is_complex()
                and not value.is_quantized
                and value.dtype != torch.bool
            )
        except Exception as error:
            raise damaged(self.path) from error
        if not whole:
            raise CytosaeError(f"{self.path}: {name} is not a plain tensor of numbers; this file cannot be used.")
        # strides of zero make a few bytes look like any number of them
        if value.numel() * value.element_size() > self._size:
            raise CytosaeError(f"{self.path}: {name} claims to be larger than the file; get the file again.")
        found = list(value.shape)
        if len(found) != len(shape) or any(n < 1 if w is None else n != w for n, w in zip(found, shape, strict=True)):
            wanted = [("any" if w is None else w) for w in shape]
            raise CytosaeError(
                f"{self.path}: {name} has the shape {found}, but {str(wanted).replace(chr(39), '')} is wanted; "
                f"this is not a whole {self.kind}."
            )
        self.dtype = self.dtype or str(value.dtype).removeprefix("torch.")
        try:
            copy: torch.Tensor = value.detach().to(torch.float32, copy=True).contiguous()
        except Exception as error:
            raise damaged(self.path) from error
        if only and not bool(torch.isfinite(copy).all()):
            raise CytosaeError(
                f"{self.path}: {name} holds values that are not numbers; this dictionary cannot be used."
            )
        return copy

    def finish(self) -> None:
        """Refuse a file that holds tensors which this program would have to ignore."""
        if self.left:
            names = ", ".join(name[:80] for name in sorted(self.left)[:4])
            raise CytosaeError(
                f"{self.path} also holds {names}, which a {self.kind} does not have: it is of a kind that is not read here."
            )


def fold_input_bias(W_enc: torch.Tensor, b_enc: torch.Tensor, b_dec: torch.Tensor) -> torch.Tensor:
    """``b_enc`` for an encoder that does not subtract ``b_dec``, so that it may be subtracted: same codes."""
    return (b_enc.double() + b_dec.double() @ W_enc.double()).float()


def build(
    path: Path,
    weights: Mapping[str, torch.Tensor],
    activation: str,
    info: dict[str, Any],
    *,
    threshold: torch.Tensor | None = None,
    k: int | None = None,
) -> SparseAutoencoder:
    """The dictionary; what is wrong with it is said in the name of its file."""
    if activation == "topk" and not (k is not None and 1 <= k <= weights["b_enc"].numel()):
        raise CytosaeError(
            f"{path} keeps the k largest codes of a token, but k is {k} and not from 1 to {weights['b_enc'].numel()}; get the "
            "file again."
        )
    try:
        return SparseAutoencoder(
            W_enc=weights["W_enc"], b_enc=weights["b_enc"], W_dec=weights["W_dec"], b_dec=weights["b_dec"],
            activation=activation, threshold=threshold, k=k or 0, info=info,
        )  # fmt: skip
    except CytosaeError as error:
        raise CytosaeError(f"{path}: {error}") from error


def unknown_info() -> dict[str, Any]:
    """The keys of ``sae.json`` that a trained dictionary has, none of them known."""
    keys = ("recipe", "seed", "semantics", "token_kinds", "backbone", "layer", "preprocessing", "precision", "tokens",
            "n_cells_train", "n_tokens_train", "n_cells_heldout")  # fmt: skip
    return {**dict.fromkeys(keys), "hyperparameters": {}, "metrics": {}, "training": {}}
