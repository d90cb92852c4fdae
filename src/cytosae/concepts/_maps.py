"""Where in an image a concept sits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from cytosae._errors import UsageError
from cytosae.sae import SparseAutoencoder


def concept_maps(
    sae: SparseAutoencoder, tokens: torch.Tensor, latents: Sequence[int], grid: tuple[int, int], n_prefix: int = 0
) -> npt.NDArray[np.float32]:
    """Codes of some concepts on every patch of one image.

    Parameters
    ----------
    sae
        The dictionary.
    tokens
        [n_prefix + rows * columns, d_in], patches in row order.
    latents
        Which concepts.
    grid
        Rows and columns of patches.
    n_prefix
        Tokens before the patches (class token, registers); they have no place in the image and are left out.

    Returns
    -------
    float32 [len(latents), rows, columns]
    """
    rows, columns = grid
    if tokens.shape[0] != n_prefix + rows * columns:
        raise UsageError(
            f"{tokens.shape[0]} tokens do not fill {n_prefix} prefix tokens and a grid of {rows} x {columns}."
        )
    if any(not 0 <= latent < sae.n_latents for latent in latents):
        raise UsageError(f"The dictionary has concepts 0 to {sae.n_latents - 1}; {list(latents)} goes beyond them.")
    codes = sae.encode(tokens[n_prefix:].to(sae.W_enc.device))[:, list(latents)]
    return codes.T.reshape(len(latents), rows, columns).cpu().numpy()


def concept_map(
    sae: SparseAutoencoder, tokens: torch.Tensor, latent: int, grid: tuple[int, int], n_prefix: int = 0
) -> npt.NDArray[np.float32]:
    """Codes of one concept on every patch: float32 [rows, columns]."""
    out: npt.NDArray[np.float32] = concept_maps(sae, tokens, [latent], grid, n_prefix)[0]
    return out


def patch_box(patch: int, grid: tuple[int, int], width: int, height: int) -> tuple[float, float, float, float]:
    """Corners (left, top, right, bottom) of a patch in an image of `width` x `height` pixels.

    The whole image was resized to the backbone's square, so patches of a wide image are wide.
    """
    row, column = divmod(patch, grid[1])
    if not 0 <= row < grid[0]:
        raise UsageError(f"There is no patch {patch} in a grid of {grid[0]} x {grid[1]}.")
    w, h = width / grid[1], height / grid[0]
    return column * w, row * h, (column + 1) * w, (row + 1) * h
