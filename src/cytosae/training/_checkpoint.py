"""Checkpoints: everything a fresh process needs to go on as if it had never stopped."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from cytosae.storage import commit_file

_PATTERN = re.compile(r"step-(\d{8})\.safetensors")
_KEPT = 2


def save_checkpoint(folder: Path, step: int, weights: list[torch.Tensor], adam: Any, silent: torch.Tensor) -> None:
    """Write the state after `step` steps, whole or not at all, and keep the last two.

    The name starts with a dot: a checkpoint belongs to the working folder, not to the artifact.
    """
    from safetensors.torch import save_file

    tensors = {"silent": silent}
    for i, weight in enumerate(weights):
        state = adam.state[weight]
        tensors |= {f"weight.{i}": weight, f"avg.{i}": state["exp_avg"], f"square.{i}": state["exp_avg_sq"]}
    tensors["adam_step"] = adam.state[weights[0]]["step"].reshape(1).clone()
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    place = folder / ".checkpoints"
    place.mkdir(exist_ok=True)
    with commit_file(place / f"step-{step:08d}.safetensors") as temporary:
        save_file(tensors, temporary)
    for old in _all(place)[:-_KEPT]:
        old.unlink()


def load_checkpoint(folder: Path, weights: list[torch.Tensor], adam: Any, silent: torch.Tensor) -> int:
    """Put the newest readable checkpoint into `weights`, `adam` and `silent`; give its step (0: none)."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    for path in reversed(_all(folder / ".checkpoints")):
        try:
            tensors = load_file(path)
        except (SafetensorError, OSError):
            continue
        silent.copy_(tensors["silent"])
        for i, weight in enumerate(weights):
            weight.copy_(tensors[f"weight.{i}"])
            adam.state[weight] = {
                "step": tensors["adam_step"].reshape(()).clone().to(weight.device),  # Adam counts in place: one each
                "exp_avg": tensors[f"avg.{i}"].to(weight.device),
                "exp_avg_sq": tensors[f"square.{i}"].to(weight.device),
            }
        match = _PATTERN.fullmatch(path.name)
        assert match
        return int(match[1])
    return 0


def _all(place: Path) -> list[Path]:
    return sorted(p for p in place.glob("step-*.safetensors") if _PATTERN.fullmatch(p.name)) if place.is_dir() else []
