"""The control that separates what a dictionary learned from what any sparse code of these tokens gives: a frozen random decoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cytosae._errors import UsageError
from cytosae._progress import say
from cytosae.cells import Cells
from cytosae.sae import SparseAutoencoder
from cytosae.storage import read_manifest
from cytosae.tokens import TokenStore
from cytosae.training import Recipe, fit


def train_frozen(cells: Cells, stores: Sequence[TokenStore], sae: Path, out: Path, seed: int) -> SparseAutoencoder:
    """Train by the recipe of a dictionary, on the same cells, all but the decoder; one that is there already is kept.

    Raises
    ------
    UsageError
        The dictionary does not say how it was trained, or it was trained on other tokens than these.
    """
    manifest = read_manifest(sae, "sae", 1)
    config = manifest["config"]
    if len(stores) != 1 or manifest["inputs"].get("tokens") != stores[0].hash or "recipe" not in config:
        raise UsageError(
            f"{sae} was trained on other tokens than these, or does not say how; train the control with "
            "'cytosae fit ... --set decoder=frozen --set start=tied' and give it with --frozen."
        )
    recipe: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config["recipe"].items()}
    recipe |= {"decoder": "frozen", "start": "tied", "blend": 0.0}
    say("frozen-decoder: training the control by the dictionary's own recipe")
    return fit(
        stores[0], cells, Recipe(**recipe), out, seed=seed + 1, where=config["where"], heldout=config.get("heldout", []),
    )  # fmt: skip
