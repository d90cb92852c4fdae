"""The inference threshold of BatchTopK: the value above which `k` codes a token lie, on average."""

from __future__ import annotations

import torch

from cytosae.sae import SparseAutoencoder

_CHUNK = 4096


def calibrate_threshold(sae: SparseAutoencoder, tokens: torch.Tensor, k: int) -> float:
    """Threshold at which the ReLU dictionary `sae` has `k` codes a token on these tokens [n, d_in].

    A running mean of the batch thresholds of training misses the target (27 instead of 32 codes); this counts on the
    final weights. The `k * n` largest codes are found exactly: each chunk keeps its candidates above a common bound.
    """
    device = sae.W_enc.device
    wanted = k * len(tokens)
    kept = torch.empty(0)
    bound = 0.0
    for start in range(0, len(tokens), _CHUNK):
        codes = sae.encode(tokens[start : start + _CHUNK].to(device))
        kept = torch.cat([kept, codes[codes > bound].cpu()])
        if len(kept) > 2 * wanted + 1:  # one more than wanted: the threshold lies between the last two
            kept = torch.topk(kept, wanted + 1, sorted=False).values
            bound = float(kept.min())
    if len(kept) <= wanted:
        return 0.0
    values = torch.topk(kept, wanted + 1).values
    return float((values[-2] + values[-1]) / 2)
