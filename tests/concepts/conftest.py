"""Where the golden vectors and the data pack lie, and small dictionaries of known answers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from cytosae import SparseAutoencoder

REPOSITORY = Path(__file__).resolve().parents[2]


def golden_folder() -> Path:
    given = os.environ.get("CYTOSAE_GOLDEN")
    return Path(given) if given else REPOSITORY.parent / "shared" / "golden"


@pytest.fixture
def golden() -> Path:
    return golden_folder()


@pytest.fixture
def colours() -> SparseAutoencoder:
    """Three concepts of the stand-in's tokens: how red, how green, how blue a patch is above one half."""
    W = torch.zeros(8, 3)
    W[0, 0] = W[1, 1] = W[2, 2] = 1
    return SparseAutoencoder(W, torch.full((3,), -0.5), W.T.contiguous(), torch.zeros(8), hash="colours")
