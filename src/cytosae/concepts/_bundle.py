"""A dictionary with all that is known of it: what the package brings, so that an image can be explained without training."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import pandas as pd

from cytosae.concepts._index import ConceptIndex
from cytosae.concepts._reference import Reference, read_reference
from cytosae.sae import DEFAULT, SparseAutoencoder, bundled_folder, load_sae
from cytosae.storage import read_table

#: Version of the tables `captions` and `technical` of a bundle.
VERSION = 1
#: A suggestion stands beside a concept where so many of its exemplars share it; weaker ones are in `Bundle.captions` only.
SHARED = 0.5


@dataclass(frozen=True)
class Bundle:
    """A folder with ``sae/``, ``index/``, ``reference/``, ``captions.parquet``, ``technical.parquet`` and ``MODEL_CARD.md``.

    Each part is read, and checked, when it is first asked for.
    """

    folder: Path

    @cached_property
    def sae(self) -> SparseAutoencoder:
        """The dictionary."""
        return load_sae(self.folder / "sae")

    @cached_property
    def index(self) -> ConceptIndex:
        """What is known of its concepts, without the exact sums."""
        return ConceptIndex(self.folder / "index")

    @cached_property
    def reference(self) -> Reference:
        """Cells to compare with."""
        return read_reference(self.folder / "reference")

    @cached_property
    def captions(self) -> pd.DataFrame:
        """Suggestions from enrichment: ``latent, column, value, n_with, n, share, share_of_all, lift, q``, best first."""
        return read_table(self.folder / "captions.parquet", "bundle captions", VERSION)[0].to_pandas()

    @cached_property
    def technical(self) -> pd.DataFrame:
        """Concepts that speak of the picture rather than of the cell: ``latent, flags``."""
        return read_table(self.folder / "technical.parquet", "bundle technical", VERSION)[0].to_pandas()

    @property
    def card(self) -> str:
        """The model card, Markdown."""
        return (self.folder / "MODEL_CARD.md").read_text("utf-8")

    def said_of(self, latents: list[int]) -> pd.DataFrame:
        """What is suggested and known of some concepts, in their order.

        Returns
        -------
        ``latent, suggestion, suggestion_share, suggestion_lift, suggestion_q, technical``; null where there is nothing
        """
        shared = self.captions[self.captions["share"] >= SHARED]
        best = shared.drop_duplicates("latent").set_index("latent").reindex(latents)
        text = [
            None if pd.isna(v) else str(v) if c == "label" else f"{str(c).replace('_', ' ')}: {v}"
            for c, v in zip(best["column"], best["value"], strict=True)
        ]
        flags = self.technical.set_index("latent")["flags"].reindex(latents)
        return pd.DataFrame({
            "latent": latents, "suggestion": pd.array(text, dtype=object), "suggestion_share": best["share"].to_numpy(),
            "suggestion_lift": best["lift"].to_numpy(), "suggestion_q": best["q"].to_numpy(),
            "technical": flags.astype(object).where(flags.notna(), None).to_numpy(),
        })  # fmt: skip


@cache
def load_bundle(name: str = DEFAULT) -> Bundle:
    """The bundle of a dictionary in the package.

    Raises
    ------
    UsageError
        No dictionary of this name is in the package.
    CytosaeError
        It should be there and is not.
    """
    return Bundle(bundled_folder(name))
