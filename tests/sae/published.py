"""Where the published checkpoint of the golden set is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def golden_file() -> Path:
    """The one of the folder in ``CYTOSAE_GOLDEN``, else the one in the repository."""
    folder = Path(os.environ.get("CYTOSAE_GOLDEN") or Path(__file__).parents[1] / "golden")
    found = sorted(folder.glob("final_sparse_autoencoder_*.pt"))
    if not found:
        pytest.skip(f"no published checkpoint in {folder}")
    return found[0]
