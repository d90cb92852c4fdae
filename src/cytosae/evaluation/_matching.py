"""Which latents of two dictionaries are the same: by their decoder directions, and by their codes on the same tokens."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from scipy.optimize import linear_sum_assignment

from cytosae.sae import SparseAutoencoder

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
#: Up to so many latents the best one-to-one assignment is found; above, mutual nearest neighbours are taken.
HUNGARIAN = 8_000
#: Tokens encoded together, and rows of correlations held in double precision.
_PIECE, _ROWS = 2_048, 512


class Matched(NamedTuple):
    """For each latent of the first dictionary its partner in the second (-1: none), and how alike the two are (0 without)."""

    partner: npt.NDArray[np.int64]
    likeness: Floats


def codes_of(sae: SparseAutoencoder, tokens: torch.Tensor) -> sparse.csc_matrix:
    """Codes of tokens [m, d_in], sparse [m, n_latents]."""
    with torch.inference_mode():
        return sparse.vstack([sparse.csr_matrix(sae.encode(x).numpy()) for x in torch.split(tokens, _PIECE)]).tocsc()


def decoder_cosines(first: SparseAutoencoder, second: SparseAutoencoder, a: Array, b: Array) -> Floats:
    """Cosines of the decoder directions of some latents: float32 [len(a), len(b)]."""
    A, B = (torch.nn.functional.normalize(s.W_dec[torch.from_numpy(at)].float(), dim=1)
            for s, at in ((first, a), (second, b)))  # fmt: skip
    return np.asarray((A @ B.T).numpy(), np.float32)


def code_correlations(first: sparse.csc_matrix, second: sparse.csc_matrix, a: Array, b: Array) -> Floats:
    """Pearson's correlation of codes over the same tokens: float32 [len(a), len(b)]; 0 for a code that does not vary."""
    m = first.shape[0]
    A, B = first[:, a].astype(np.float64), second[:, b].astype(np.float64)
    mean, inverse = [], []
    for X in (A, B):
        centre = np.asarray(X.mean(0)).ravel()
        spread = np.sqrt(np.maximum(np.asarray(X.power(2).mean(0)).ravel() - centre**2, 0))
        mean.append(centre)
        inverse.append(np.where(spread > 0, 1 / np.maximum(spread, 1e-300), 0))
    out = np.empty((A.shape[1], B.shape[1]), np.float32)
    for i in range(0, len(out), _ROWS):
        part = slice(i, i + _ROWS)
        together = (A[:, part].T @ B).toarray() / m - np.outer(mean[0][part], mean[1])
        out[part] = together * inverse[0][part, None] * inverse[1]
    return out


def match(likeness: Floats, limit: int = HUNGARIAN) -> Matched:
    """Pair rows with columns: the assignment of the largest sum (Hungarian), or above `limit` mutual nearest neighbours."""
    n, m = likeness.shape
    partner = np.full(n, -1, np.int64)
    if not n or not m:
        return Matched(partner, np.zeros(n, np.float32))
    if max(n, m) <= limit:
        row, column = linear_sum_assignment(likeness, maximize=True)
    else:
        best, back = likeness.argmax(1), likeness.argmax(0)
        row = np.flatnonzero(back[best] == np.arange(n))
        column = best[row]
    partner[row] = column
    found = np.zeros(n, np.float32)
    found[row] = likeness[row, column]
    return Matched(partner, found)
