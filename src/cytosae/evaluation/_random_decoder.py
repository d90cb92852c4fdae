"""A random dictionary with the best decoder it can have: what a sparse code of random directions gives back."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse

from cytosae.evaluation._units import RandomUnits
from cytosae.sae import SparseAutoencoder

#: Tokens on which the decoder is fitted, and steps of the conjugate gradients.
_TOKENS, _STEPS = 20_000, 25
_PIECE = 2048


def with_fitted_decoder(units: RandomUnits, sample: torch.Tensor, seed: int) -> SparseAutoencoder:
    """The random directions as a dictionary, its decoder fitted to `sample` [m, d_in] by ridge regression on the codes.

    Encoding is that of `units`. The decoder minimises ``|codes @ W_dec - (x - b_dec)|^2 + m/1000 |W_dec|^2 mean(codes^2)`` by
    a fixed number of conjugate gradient steps.
    """
    generator = torch.Generator().manual_seed(seed)
    x = sample[torch.randperm(len(sample), generator=generator)[:_TOKENS]]
    codes = sparse.vstack([sparse.csr_matrix(units.encode(piece).numpy()) for piece in torch.split(x, _PIECE)])
    wanted = (x - units.centre).numpy()
    ridge = np.float32(1e-3 * codes.power(2).sum() / max(codes.shape[1], 1) + 1e-12)
    transposed = codes.T.tocsr()
    D = np.zeros((codes.shape[1], wanted.shape[1]), np.float32)
    residual = np.asarray(transposed @ wanted)
    step = residual.copy()
    square = (residual**2).sum(0)
    for _ in range(_STEPS):
        along = transposed @ (codes @ step) + ridge * step
        length = square / np.maximum((step * along).sum(0), 1e-20)
        D += length * step
        residual -= length * along
        before, square = square, (residual**2).sum(0)
        step = residual + square / np.maximum(before, 1e-20) * step
    return SparseAutoencoder(units.W, -units.threshold, torch.from_numpy(D.astype(np.float32)), units.centre)
