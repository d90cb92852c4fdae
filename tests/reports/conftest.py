"""A small dictionary of known answers."""

from __future__ import annotations

import pytest
import torch

from cytosae import SparseAutoencoder


@pytest.fixture
def few_colours() -> SparseAutoencoder:
    """Three concepts of the stand-in's tokens: how red, how green, how blue a patch is above one half."""
    W = torch.zeros(8, 3)
    W[0, 0] = W[1, 1] = W[2, 2] = 1
    return SparseAutoencoder(W, torch.full((3,), -0.5), W.T.contiguous(), torch.zeros(8))
