"""The table that chooses a path for a device and a problem."""

from __future__ import annotations

import torch

from cytosae.sae.ops._interface import Path
from cytosae.sae.ops.portable import PortablePath
from cytosae.sae.ops.reference import ReferencePath


def has_bfloat16(device: str) -> bool:
    """Whether the device multiplies bfloat16 in hardware."""
    if torch.device(device).type != "cpu":
        return torch.device(device).type == "cuda" and torch.cuda.is_bf16_supported()
    probes = (getattr(torch.cpu, f"_is_{name}_supported", lambda: False) for name in ("avx512_bf16", "amx_tile"))
    return any(bool(probe()) for probe in probes)


def choose(device: str | torch.device, d_in: int, n_latents: int, *, name: str = "auto") -> Path:
    """The path for a problem; `name` (``reference``, ``portable``) asks for one."""
    if name == "reference":
        return ReferencePath()
    return PortablePath(torch.bfloat16 if has_bfloat16(str(device)) else torch.float32)
