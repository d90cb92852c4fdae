"""What a finished dictionary is worth on held-out cells, in inference mode."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch

from cytosae._progress import track
from cytosae.sae import ReconstructionSums, SparseAutoencoder, pca_fvu
from cytosae.sae.ops import choose
from cytosae.tokens import TokenStore
from cytosae.training._stream import sample_positions

#: Cells encoded at once.
_CHUNK = 16


def measure(
    sae: SparseAutoencoder, store: TokenStore, rows: npt.NDArray[Any], kind: str, train_sample: torch.Tensor, seed: int
) -> dict[str, Any]:
    """Metrics of `ReconstructionSums` on the tokens of some cells, the frequency histogram, and the line to hold beside them.

    Parameters
    ----------
    sae, store, rows, kind
        The dictionary, and the tokens it is measured on.
    train_sample
        Training tokens [m, d_in], from which the principal components are taken.
    seed
        Of the sample of held-out tokens for the PCA line.

    Returns
    -------
    ``explained_variance``, ``fvu``, ``cosine``, ``l0``, ``dead_share``, ``n_tokens``, ``frequency_histogram``, and
    ``pca_fvu`` of as many principal components as there are codes a token (``pca_components``).
    """
    sums = ReconstructionSums(sae.d_in, sae.n_latents)
    path = choose(sae.W_enc.device.type, sae.d_in, sae.n_latents)
    E, rule = sae.W_enc.T.contiguous(), sae.rule()
    device = sae.W_enc.device
    starts = range(0, len(rows), _CHUNK)
    for start in track(starts, len(starts), "measure", "chunks"):
        x = store.read(rows[start : start + _CHUNK], kind=kind).flatten(0, 1).to(device).float()
        codes = path.select(x - sae.b_dec, E, sae.b_enc, rule)
        sums.update(x, path.decode(codes, sae.W_dec, (sae.n_latents,))[0].add_(sae.b_dec), codes)
    metrics: dict[str, Any] = sums.finish()
    metrics["frequency_histogram"] = sums.frequency_histogram()
    cells = rows[sample_positions(len(rows), seed, 400)]
    components = max(1, min(round(metrics["l0"]), store.d_in - 1))
    metrics["pca_fvu"] = pca_fvu(train_sample, store.read(cells, kind=kind).flatten(0, 1), components)
    metrics["pca_components"] = components
    return metrics
