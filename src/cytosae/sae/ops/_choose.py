"""Which path computes a step: one table, by device, processor and sizes; the choice is recorded by whoever asks."""

from __future__ import annotations

import torch

from cytosae.sae.ops._interface import Path
from cytosae.sae.ops.dense import SwitchingPath
from cytosae.sae.ops.portable import PortablePath


def choose(device: str, d_in: int, n_latents: int, *, products: str = "auto", dense_start: bool = False) -> Path:
    """The path for a dictionary.

    Parameters
    ----------
    device
        As torch names it.
    d_in, n_latents
        Its sizes.
    dense_start
        Whether it is a ReLU dictionary in training, which begins with half its latents on: dense products until it is sparse.
    products
        ``float32``: nothing but float32 products, in plain PyTorch. ``bfloat16``: plain PyTorch, bfloat16 proposes.
        ``auto``: the fastest here. In all of them the codes and gradients are float32.

    Returns
    -------
    ===================  ==========================================================
    asked for, and here   path
    ===================  ==========================================================
    CPU, auto             ``native-int8-amx`` (AMX), ``native-int8`` (VNNI) or
                          ``native-int16`` (AVX2), where a C++ compiler is there
    bfloat16 in hardware  ``portable-bfloat16`` (AMX, AVX-512 or CUDA; auto)
    else                  ``portable-float32``
    ===================  ==========================================================
    """
    if dense_start:
        low = products == "bfloat16" or (products == "auto" and has_bfloat16(device))
        return SwitchingPath(
            choose(device, d_in, n_latents, products=products), torch.bfloat16 if low else torch.float32
        )
    if products == "bfloat16":
        return PortablePath(torch.bfloat16)
    if products == "float32":
        return PortablePath()
    if torch.device(device).type == "cpu":
        from cytosae.sae.ops.native import NativePath, native_library

        if native_library() is not None:
            return NativePath()
    return PortablePath(torch.bfloat16 if _fast_bfloat16(device) else torch.float32)


def has_bfloat16(device: str) -> bool:
    """Whether the device multiplies bfloat16 in hardware."""
    if device != "cpu":
        return torch.device(device).type == "cuda" and torch.cuda.is_bf16_supported()
    probes = (getattr(torch.cpu, f"_is_{name}_supported", lambda: False) for name in ("avx512_bf16", "amx_tile"))
    return any(probe() for probe in probes)


def _fast_bfloat16(device: str) -> bool:
    if torch.device(device).type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return any(
        bool(getattr(torch.cpu, f"_is_{name}_supported", lambda: False)()) for name in ("amx_tile", "avx512_bf16")
    )
