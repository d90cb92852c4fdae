"""Where the published checkpoint of the golden set is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def golden_file() -> Path:
    given = os.environ.get("CYTOSAE_GOLDEN")
    folder = Path(given) if given else Path(__file__).resolve().parents[3] / "shared" / "golden"
    found = sorted(folder.glob("final_sparse_autoencoder_*.pt"))
    if not found:
        pytest.skip(f"no published checkpoint in {folder}")
    return found[0]
