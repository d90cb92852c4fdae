"""What every section works with: cells, tokens, the dictionary and its controls, and the rule by which cells are split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from cytosae._errors import CytosaeError
from cytosae.backbones import Backbone, Layer
from cytosae.cells import Cells
from cytosae.concepts import backbone_of
from cytosae.concepts._stream import StoredTokens
from cytosae.evaluation._pooled import Floats, pooled
from cytosae.evaluation._random_decoder import with_fitted_decoder
from cytosae.evaluation._split import split_for_scoring
from cytosae.evaluation._units import DictionaryUnits, RandomUnits, Units, pca_units, random_units, raw_units
from cytosae.sae import SparseAutoencoder
from cytosae.storage import hash_json

#: Cells from whose tokens means, components and thresholds of the controls are taken.
_SAMPLE_CELLS, _SAMPLE_CELLS_FAST = 400, 100


@dataclass(frozen=True)
class Context:
    """The ingredients of a scorecard.

    Attributes
    ----------
    cells
        The table.
    frame
        The cells that take part, one row each, by ``cell_id``; its index counts from 0.
    tokens
        Their tokens.
    sae
        The dictionary.
    out
        The scorecard's folder; ``out/cache`` holds what can be computed again.
    saes
        Further dictionaries for the front over sparsity, by name.
    frozen
        A dictionary trained with a frozen random decoder, as a control.
    seed, n_draws, fast
        Of everything random; bootstrap draws; whether fewer cells, draws and repeats are used.
    n_random, n_repeats
        Random dictionaries to compare with, and random choices of an equal number of candidates.
    open_test
        Whether the closed test split of WBCAtt is scored.
    weights
        Weight file of the backbone, where it came from one.
    n_closed
        Cells left out since they belong to the closed test split.
    paths
        Where inputs lie, for sections with needs of their own (``sae``, ``cells``, ``index``).
    """

    cells: Cells
    frame: pd.DataFrame
    tokens: StoredTokens
    sae: SparseAutoencoder
    out: Path
    saes: dict[str, SparseAutoencoder] = field(default_factory=dict)
    frozen: SparseAutoencoder | None = None
    seed: int = 0
    n_draws: int = 1000
    fast: bool = False
    n_random: int = 2
    n_repeats: int = 10
    open_test: bool = False
    weights: Path | None = None
    n_closed: int = 0
    paths: dict[str, Path] = field(default_factory=dict)

    @cached_property
    def inputs(self) -> dict[str, str]:
        """Hashes of what goes in."""
        stores = {"tokens" if i == 0 else f"tokens-{i}": s.hash for i, s in enumerate(self.tokens.stores)}
        more = {f"sae-{name}": sae.hash for name, sae in sorted(self.saes.items())}
        frozen = {"sae-frozen-decoder": self.frozen.hash} if self.frozen is not None else {}
        return {"cells": self.cells.hash, "sae": self.sae.hash, **stores, **more, **frozen}

    @cached_property
    def config(self) -> dict[str, Any]:
        """Every setting on which numbers depend."""
        return {"seed": self.seed, "n_draws": self.n_draws, "fast": self.fast, "n_random": self.n_random, "n_repeats": self.n_repeats,
                "open_test": self.open_test, "cell_ids": hash_json(self.frame["cell_id"].astype(int).tolist())}  # fmt: skip

    @cached_property
    def part(self) -> npt.NDArray[Any]:
        """For each cell ``choose`` or ``score`` (see `split_for_scoring`), or ``""``: it takes part in neither."""
        return split_for_scoring(self.frame, self.seed, self.open_test)[0]

    @cached_property
    def unit(self) -> npt.NDArray[np.int64]:
        """For each cell the number of the field, patient or cluster of near duplicates it belongs to; bootstraps draw these."""
        return split_for_scoring(self.frame, self.seed, self.open_test)[1]

    def kinds(self) -> set[str]:
        """Kinds of token that all stores hold."""
        return set.intersection(*(set(s.token_kinds) for s in self.tokens.stores))

    def read(self, rows: npt.NDArray[np.int64], kind: str) -> torch.Tensor:
        """Tokens of some rows of `frame`: float32 [n, tokens of that kind, d_in]."""
        return self.tokens.read(self.frame.iloc[rows], kind)

    @cached_property
    def sample(self) -> torch.Tensor:
        """Patch tokens [m, d_in] of some choosing cells: means, components and thresholds of the controls come from here."""
        rows = np.flatnonzero(self.part == "choose")
        n = min(len(rows), _SAMPLE_CELLS_FAST if self.fast else _SAMPLE_CELLS)
        if not n:
            raise CytosaeError(
                "There is no cell to choose on; give cells of WBCAtt's train split, or more than one field."
            )
        drawn = np.random.Generator(np.random.Philox(key=[self.seed, 3])).choice(rows, n, replace=False)
        return self.read(np.sort(drawn), "patch").flatten(0, 1)

    @cached_property
    def dictionary(self) -> Units:
        """The dictionary."""
        return DictionaryUnits(self.sae)

    @cached_property
    def controls(self) -> list[Units]:
        """Raw dimensions, principal components, random directions, and the frozen decoder where there is one."""
        made: list[Units] = [raw_units(self.sample), pca_units(self.sample), *self.random[: self.n_random]]
        if self.frozen is not None:
            made.append(
                DictionaryUnits(self.frozen, "frozen-decoder", "dictionary with a frozen random decoder", "control")
            )
        return made

    @cached_property
    def random(self) -> list[RandomUnits]:
        """Random directions that fire as often as the latents, drawn at least once."""
        return [random_units(self.sae, self.sample, self.seed, i) for i in range(max(1, self.n_random))]

    @cached_property
    def random_dictionary(self) -> SparseAutoencoder:
        """The first of the random controls, with a decoder fitted to choosing cells: it reconstructs as well as it can."""
        return with_fitted_decoder(self.random[0], self.sample, self.seed)

    @cached_property
    def reconstructing(self) -> dict[str, tuple[str, SparseAutoencoder]]:
        """name -> (title, dictionary) of the controls that give tokens back from codes."""
        made = {"random": ("random directions, fitted decoder", self.random_dictionary)}
        if self.frozen is not None:
            made["frozen-decoder"] = ("frozen random decoder", self.frozen)
        return made

    @cached_property
    def units(self) -> list[Units]:
        """The dictionary, then its controls."""
        return [self.dictionary, *self.controls]

    def features(self, units: Units, pooling: str) -> Floats:
        """Cells x units, float32 [n_cells, n_units] (see `pooled`); rows as in `frame`."""
        return pooled(units, self.tokens, self.frame, pooling, self.out / "cache", tokens_key=self._tokens_key)

    @cached_property
    def _tokens_key(self) -> str:
        return hash_json([s.hash for s in self.tokens.stores])

    @cached_property
    def _backbone(self) -> tuple[Backbone, Layer]:
        return backbone_of(self.sae, "cpu", self.weights)

    def backbone(self) -> tuple[Backbone, Layer] | str:
        """The backbone the dictionary belongs to and the block it reads, or one sentence why there is none."""
        try:
            return self._backbone
        except CytosaeError as error:
            return str(error)

    def lacks_whole_cells(self) -> str | None:
        """Why stored cells cannot be run through the rest of the backbone, in one sentence; None where they can."""
        store = self.tokens.stores[0]
        if not {"class", "patch"} <= self.kinds() or store.sampled:
            return "the token store does not hold the class token and all patches"
        found = self.backbone()
        if isinstance(found, str):
            return f"the rest of the backbone is needed ({found.rstrip('.')})"
        if found[0].n_tokens != store.n_tokens:
            return "the token store does not hold all tokens of the backbone"
        return None


def names_of(frame: pd.DataFrame, column: str) -> Sequence[str]:
    """Known values of a column, sorted."""
    return sorted(frame[column].dropna().astype(str).unique()) if column in frame else []
