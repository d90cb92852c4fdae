"""Checkpoints: everything a fresh process needs to go on as if it had never stopped."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from cytosae._errors import CytosaeError
from cytosae.storage import commit_file

_PATTERN = re.compile(r"step-(\d{8})\.safetensors")
_KEPT = 2
#: The name starts with a dot: checkpoints belong to the working folder, not to the artifact.
_PLACE = ".checkpoints"


def save_checkpoint(folder: Path, step: int, state: dict[str, torch.Tensor]) -> None:
    """Write the state after `step` steps, whole or not at all, and keep the last two."""
    from safetensors.torch import save_file

    place = folder / _PLACE
    place.mkdir(exist_ok=True)
    with commit_file(place / f"step-{step:08d}.safetensors") as temporary:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}, temporary)
    for old in _all(place)[:-_KEPT]:
        old.unlink()


def readable_steps(folder: Path) -> list[int]:
    """Steps of which a whole checkpoint is there, ascending; one cut in the writing does not count."""
    from safetensors import SafetensorError, safe_open

    steps = []
    for path in _all(folder / _PLACE):
        try:
            with safe_open(path, framework="pt"):  # checks the header against the length of the file
                steps.append(_step(path))
        except (SafetensorError, OSError):
            continue
    return steps


def load_checkpoint(folder: Path, step: int, state: dict[str, torch.Tensor]) -> None:
    """Put the checkpoint of `step` into the tensors of `state`.

    Raises
    ------
    CytosaeError
        It is of another training.
    """
    from safetensors.torch import load_file

    path = folder / _PLACE / f"step-{step:08d}.safetensors"
    tensors = load_file(path)
    if set(tensors) != set(state) or any(tensors[n].shape != t.shape for n, t in state.items()):
        raise CytosaeError(f"{path} belongs to another training; delete {folder} and start again.")
    for name, tensor in state.items():
        tensor.copy_(tensors[name])


def _step(path: Path) -> int:
    match = _PATTERN.fullmatch(path.name)
    assert match
    return int(match[1])


def _all(place: Path) -> list[Path]:
    return sorted(p for p in place.glob("step-*.safetensors") if _PATTERN.fullmatch(p.name)) if place.is_dir() else []
