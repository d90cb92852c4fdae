"""Where in an image a concept sits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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


def class_token_codes(
    sae: SparseAutoencoder, tokens: torch.Tensor, latents: Sequence[int], n_prefix: int
) -> npt.NDArray[np.float32]:
    """Codes of some concepts on the class token, apart from the maps: it has no place in the image.

    A dictionary trained on patches alone was never fitted to it; compare with the patches only where it was.

    Raises
    ------
    UsageError
        The backbone has no prefix token.
    """
    if n_prefix < 1:
        raise UsageError("These tokens have no class token: their backbone has none; use the maps of the patches.")
    codes: npt.NDArray[np.float32] = sae.encode(tokens[:1].to(sae.W_enc.device))[0, list(latents)].cpu().numpy()
    return codes


def concepts_within(
    codes: npt.NDArray[np.float32],
    where: npt.NDArray[Any] | tuple[float, float, float, float],
    grid: tuple[int, int],
    width: int,
    height: int,
    n: int = 8,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """The concepts that are strongest within a box or a mask, best first.

    Parameters
    ----------
    codes
        [rows * columns, n_latents]: all codes of the patches.
    where
        A box (left, top, right, bottom) in pixels, or a mask [height, width] (of booleans or weights).
    grid
        Rows and columns of patches.
    width, height
        Of the image, in pixels.
    n
        How many.

    Returns
    -------
    latents int64 [<= n], and for each the mean code over the region, every patch weighted by the share of it that lies within

    Raises
    ------
    UsageError
        A box outside of the image or without area, a mask of another size, or an empty one.
    """
    share = region_shares(where, grid, width, height).ravel()
    if len(codes) != len(share):
        raise UsageError(f"{len(codes)} patches do not fill a grid of {grid[0]} x {grid[1]}.")
    amount = share @ codes.astype(np.float64) / share.sum()
    best = np.argsort(-amount, kind="stable")[:n]
    best = best[amount[best] > 0]
    return best, amount[best]


def region_shares(
    where: npt.NDArray[Any] | tuple[float, float, float, float], grid: tuple[int, int], width: int, height: int
) -> npt.NDArray[np.float64]:
    """Share of every patch that lies within a box or a mask: float64 [rows, columns]."""
    rows, columns = grid
    if isinstance(where, np.ndarray):
        if where.shape != (height, width):
            raise UsageError(f"The mask is {list(where.shape)}, but the image is {height} x {width} pixels.")
        share = _cover(height, rows) @ where.astype(np.float64) @ _cover(width, columns).T
    else:
        left, top, right, bottom = where
        if not (0 <= left < right <= width and 0 <= top < bottom <= height):
            raise UsageError(f"The box {tuple(where)} does not lie within an image of {width} x {height} pixels.")
        down, across = _overlap(top, bottom, height, rows), _overlap(left, right, width, columns)
        share = down[:, None] * across[None]
    if not share.sum() > 0:
        raise UsageError("The mask is empty; mark at least one pixel.")
    return np.asarray(share)


def _overlap(low: float, high: float, size: int, parts: int) -> npt.NDArray[np.float64]:
    """Share of each of `parts` equal pieces of [0, size] that [low, high] covers."""
    edges = np.linspace(0, size, parts + 1)
    return np.asarray(np.clip(np.minimum(high, edges[1:]) - np.maximum(low, edges[:-1]), 0, None) / (size / parts))


def _cover(size: int, parts: int) -> npt.NDArray[np.float64]:
    """[parts, size]: how much of each piece each pixel makes up; rows sum to 1."""
    return np.stack([_overlap(i, i + 1, size, parts) / 1.0 for i in range(size)], axis=1)


def patch_box(patch: int, grid: tuple[int, int], width: int, height: int) -> tuple[float, float, float, float]:
    """Corners (left, top, right, bottom) of a patch in an image of `width` x `height` pixels.

    The whole image was resized to the backbone's square, so patches of a wide image are wide.
    """
    row, column = divmod(patch, grid[1])
    if not 0 <= row < grid[0]:
        raise UsageError(f"There is no patch {patch} in a grid of {grid[0]} x {grid[1]}.")
    w, h = width / grid[1], height / grid[0]
    return column * w, row * h, (column + 1) * w, (row + 1) * h
